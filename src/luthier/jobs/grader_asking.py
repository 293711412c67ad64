"""What graders ask models, as requests of the chat API, and what they make of the answers."""

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.data.write import message_values
from luthier.evaluation.graders.base import ModelReply
from luthier.examples import Message


def grader_body(model: str, messages: Sequence[Message], sampling: Mapping[str, Any]) -> dict[str, Any]:
    """The request; `max_completions_tokens` is how graders spell `max_completion_tokens`."""
    values = {("max_completion_tokens" if key == "max_completions_tokens" else key): sampling[key] for key in sampling}
    return {"model": model, "messages": [message_values(message) for message in messages], **values}


def grader_reply(answer: Mapping[str, Any]) -> ModelReply:
    """What a chat completion says to a grader."""
    message = answer["choices"][0]["message"]
    return ModelReply(message.get("content") or "", answer["usage"]["total_tokens"], bool(message.get("refusal")))
