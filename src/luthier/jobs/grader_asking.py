"""What graders ask models, as requests of the chat API, and what they make of the answers."""

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.data.write import message_values
from luthier.evaluation.graders.base import ModelReply, SamplingParams
from luthier.examples import Message


def grader_body(model: str, messages: Sequence[Message], sampling: SamplingParams) -> dict[str, Any]:
    """The request, without what the grader leaves to the host."""
    values = {
        "max_completion_tokens": sampling.max_completions_tokens,
        "reasoning_effort": sampling.reasoning_effort,
        "seed": sampling.seed,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
    }
    given = {name: value for name, value in values.items() if value is not None}
    return {"model": model, "messages": [message_values(message) for message in messages], **given}


def grader_reply(answer: Mapping[str, Any]) -> ModelReply:
    """What a chat completion says to a grader."""
    message = answer["choices"][0]["message"]
    return ModelReply(message.get("content") or "", answer["usage"]["total_tokens"], bool(message.get("refusal")))
