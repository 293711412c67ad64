"""/score: what a reward model says of a reply. A field is honored, or refused."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from luthier.evaluation.rewards import Judgement
from luthier.examples import Conversation, Message
from luthier.serve.api_error import ApiError
from luthier.serve.chat import messages_of
from luthier.serve.fields import NAME_LIMIT, Fields, parse_body
from luthier.serve.tool_choice import tools_of


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """A chat whose last message is the reply that is judged."""

    model: str
    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...]

    @property
    def conversation(self) -> Conversation:
        """The chat."""
        return Conversation(self.messages, self.tools, id="the chat")

    def body(self, judged: Judgement, tokens: int) -> dict[str, Any]:
        """The answer; `tokens` were read for it, and none was written."""
        return {
            "object": "score",
            "model": self.model,
            "score": judged.reward,
            "raw": judged.raw,
            "steps": None if judged.steps is None else list(judged.steps),
            "usage": {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens},
        }


def parse_score(body: bytes) -> ScoreRequest:
    """Read and check a body.

    Raises:
        ApiError: 400, naming the field.
    """
    fields = Fields(parse_body(body))
    asked = ScoreRequest(fields.required_text("model", NAME_LIMIT), messages_of(fields), tools_of(fields))
    fields.finish()
    if asked.messages[-1].role != "assistant":
        raise ApiError(
            "The last of 'messages' must be the assistant's: the reply that is scored.",
            param="messages",
            code="invalid_value",
        )
    return asked
