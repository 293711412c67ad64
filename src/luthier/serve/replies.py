"""Answers in OpenAI's shapes."""

import json
from collections.abc import Sequence
from typing import Any

from luthier.data.chat_jinja import plain
from luthier.examples import Message, ToolCall
from luthier.serve.ids import new_id
from luthier.serve.served import Served
from luthier.serve.work import Completion, TokenScore

Json = dict[str, Any]


def usage(prompt_tokens: int, completion_tokens: int) -> Json:
    """Token counts; a prompt counts once however many completions it has."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def model_card(name: str, created: int = 0) -> Json:
    """An entry of the list of models."""
    return {"id": name, "object": "model", "created": created, "owned_by": "luthier"}


def head(kind: str, identity: str, created: int, served: Served) -> Json:
    """What all chunks and answers of one request begin with."""
    fingerprint = served.fingerprint or None
    return {"id": identity, "object": kind, "created": created, "model": served.name, "system_fingerprint": fingerprint}


def chat_logprobs(tokens: Sequence[TokenScore] | None) -> Json | None:
    """`logprobs` of a chat choice; None if they were not asked for."""
    if tokens is None:
        return None
    return {"content": [_chat_score(t) for t in tokens], "refusal": None}


def _chat_score(score: TokenScore) -> Json:
    top = [{"token": text, "logprob": value, "bytes": list(data)} for text, data, value in score.top]
    return {"token": score.text, "logprob": score.logprob, "bytes": list(score.data), "top_logprobs": top}


def completion_logprobs(tokens: Sequence[TokenScore] | None, offset: int = 0) -> Json | None:
    """`logprobs` of a plain completion; `offset` is the length of the text that came before."""
    if tokens is None:
        return None
    offsets = []
    for score in tokens:
        offsets.append(offset)
        offset += len(score.text)
    return {
        "tokens": [t.text for t in tokens],
        "token_logprobs": [t.logprob for t in tokens],
        "top_logprobs": [{text: value for text, _, value in t.top} for t in tokens],
        "text_offset": offsets,
    }


def tool_calls_json(calls: Sequence[ToolCall]) -> list[Json]:
    """Tool calls as a client sees them; the model gives them no ids, so the server does."""
    return [
        {
            "id": call.id or new_id("call"),
            "type": "function",
            "function": {"name": call.name, "arguments": json.dumps(plain(call.arguments), ensure_ascii=False)},
        }
        for call in calls
    ]


def reply_of(completion: Completion, served: Served, with_tools: bool) -> tuple[Message, str]:
    """The assistant message that a completion means, and its finish reason.

    Tool calls are looked for only if tools were offered. A completion that a stop text cut short is text: what stands
    before the cut is not a whole call.
    """
    done = completion.done
    if with_tools and not done.cut:
        parsed = served.template.parse_reply(done.ids)
        if parsed.tool_calls:
            return parsed, "tool_calls" if done.reason == "stop" else done.reason
    return Message("assistant", completion.text), done.reason


def chat_choice(index: int, completion: Completion, served: Served, with_tools: bool, scored: bool) -> Json:
    """One entry of `choices`."""
    reply, reason = reply_of(completion, served, with_tools)
    message: Json = {"role": "assistant", "content": reply.content, "refusal": None}
    if reply.tool_calls:
        message["content"] = reply.content or None
        message["tool_calls"] = tool_calls_json(reply.tool_calls)
    logprobs = chat_logprobs(completion.tokens if scored else None)
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": reason}


def completion_choice(index: int, completion: Completion, scored: bool) -> Json:
    """One entry of `choices` of a plain completion."""
    logprobs = completion_logprobs(completion.tokens if scored else None)
    return {"index": index, "text": completion.text, "logprobs": logprobs, "finish_reason": completion.done.reason}
