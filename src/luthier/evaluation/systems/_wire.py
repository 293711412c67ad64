"""Messages as the chat API writes them, both ways, and the tokens that it tells."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from luthier.data.replies import parse_reply_text
from luthier.data.tool_results import ResultError, matched_results
from luthier.errors import EvaluationError
from luthier.evaluation.systems._responses import Usage
from luthier.examples import Message, ToolCall


def wire_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as the chat API takes them: arguments as JSON text, and an id for every call and its result.

    Raises:
        EvaluationError: a tool result answers no call, or nobody can tell which one.
    """
    try:
        answers = matched_results(messages)
    except ResultError as error:
        raise EvaluationError(f"these messages cannot be sent: {error}") from None
    ids = [[call.id or f"call_{n}_{i}" for i, call in enumerate(m.tool_calls)] for n, m in enumerate(messages)]
    found: list[dict[str, Any]] = []
    for number, message in enumerate(messages):
        values: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.name:
            values["name"] = message.name
        if message.tool_calls:
            values["tool_calls"] = [
                {
                    "id": identifier,
                    "type": "function",
                    "function": {"name": c.name, "arguments": json.dumps(dict(c.arguments), ensure_ascii=False)},
                }
                for identifier, c in zip(ids[number], message.tool_calls, strict=True)
            ]
        if message.role == "tool":
            caller, place = answers.get(number, (None, 0))
            values["tool_call_id"] = f"call_{number}" if caller is None else ids[caller][place]
        found.append(values)
    return found


def reply_of(message: Mapping[str, Any]) -> Message:
    """The assistant message of a chat completion.

    Calls that the server left in the text are parsed as those of other systems; a call that is no call, since its
    arguments are no JSON object, stays as text.
    """
    content = message.get("content")
    text = content if isinstance(content, str) else ""
    given = message.get("tool_calls")
    if not given:
        return parse_reply_text(text)
    calls: list[ToolCall] = []
    odd: list[str] = []
    for one in given if isinstance(given, list) else [given]:
        call = _call(one)
        if call is not None:
            calls.append(call)
        else:
            odd.append(json.dumps(one, ensure_ascii=False))
    return Message("assistant", "\n".join([text, *odd] if text or not odd else odd), tool_calls=tuple(calls))


def _call(value: Any) -> ToolCall | None:
    try:
        function = value["function"]
        name, arguments = function["name"], json.loads(function["arguments"] or "{}")
        json.dumps(arguments, allow_nan=False).encode()
    except (LookupError, TypeError, ValueError, RecursionError):
        return None
    identifier = value.get("id")
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return None
    return ToolCall(name, arguments, identifier if isinstance(identifier, str) else None)


def first_logprobs(logprobs: Any) -> dict[str, float]:
    """The likeliest first tokens of a choice and their log-probabilities, from its `logprobs`; none where it tells
    none."""
    try:
        listed = [(one["token"], one["logprob"]) for one in logprobs["content"][0]["top_logprobs"]]
    except (LookupError, TypeError):
        return {}
    numbers = ((token, value) for token, value in listed if isinstance(value, int | float))
    return {token: float(value) for token, value in numbers if isinstance(token, str)}


def usage_of(values: Mapping[str, Any]) -> Usage | None:
    """What a chat completion says it took; None if it does not say."""
    given = values.get("usage")
    found = [given.get(name) for name in ("prompt_tokens", "completion_tokens")] if isinstance(given, Mapping) else []
    whole = [n for n in found if isinstance(n, int) and not isinstance(n, bool) and n >= 0]
    return Usage(*whole) if len(whole) == 2 else None
