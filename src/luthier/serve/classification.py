"""/classify: what a trained head says of texts, in the shape that vLLM gives it. A field is honored, or refused."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.evaluation.calibration import Threshold
from luthier.evaluation.said import Said
from luthier.examples import Conversation, Message
from luthier.serve.api_error import ApiError
from luthier.serve.chat import messages_of
from luthier.serve.fields import NAME_LIMIT, Fields, parse_body
from luthier.serve.ids import new_id
from luthier.serve.tool_choice import tools_of

MAX_INPUTS = 256
"""Texts of one request."""
NO_EFFECT = ("user",)
"""Fields that change no answer."""


@dataclass(frozen=True, slots=True)
class ClassifyRequest:
    """Texts, or one chat whose last message is the user's."""

    model: str
    texts: tuple[str, ...]
    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...]
    precision: float | None
    """Wanted share of right answers among those that are given; None: all are given."""

    def conversations(self, system: str = "") -> list[Conversation]:
        """What is read, in its order; texts are led by the system message of the training rows."""
        if self.messages:
            return [Conversation(self.messages, self.tools, id="the chat")]
        lead = (Message("system", system),) if system else ()
        return [Conversation((*lead, Message("user", text)), id=f"input {i}") for i, text in enumerate(self.texts)]

    def body(self, said: Sequence[Said], tokens: int, threshold: Threshold | None) -> dict[str, Any]:
        """The answer; `tokens` were read for it, and none was written."""
        return {
            "id": new_id("classify"),
            "object": "list",
            "created": int(time.time()),
            "model": self.model,
            "data": [self._item(index, one, threshold) for index, one in enumerate(said)],
            "usage": {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens},
        }

    def _item(self, index: int, said: Said, threshold: Threshold | None) -> dict[str, Any]:
        item: dict[str, Any] = {"index": index, **said.item}
        if self.precision is not None:
            item["answered"] = threshold is not None and said.confidence >= threshold.confidence
            item["threshold"] = None if threshold is None else threshold.confidence
        return item


def parse_classify(body: bytes) -> ClassifyRequest:
    """Read and check a body.

    Raises:
        ApiError: 400, naming the field.
    """
    fields = Fields(parse_body(body))
    model, texts = fields.required_text("model", NAME_LIMIT), _texts(fields)
    precision = None if fields.get("precision") is None else fields.number("precision", 0.0, 1.0, 0.0)
    messages = () if texts else messages_of(fields)
    asked = ClassifyRequest(model, texts, messages, tools_of(fields) if messages else (), precision)
    fields.without_effect(NO_EFFECT)
    fields.finish()
    if asked.messages and asked.messages[-1].role != "user":
        raise ApiError(
            "The last of 'messages' must be the user's: a head reads what is asked.",
            param="messages",
            code="invalid_value",
        )
    return asked


def _texts(fields: Fields) -> tuple[str, ...]:
    value = fields.get("input")
    if value is None:
        return ()
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise fields.wrong("input", "a string or an array of strings")
    if len(texts) > MAX_INPUTS:
        raise ApiError(f"'input' may hold at most {MAX_INPUTS} texts; got {len(texts)}.", param="input")
    return tuple(texts)
