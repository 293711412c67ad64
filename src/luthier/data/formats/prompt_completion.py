"""Prompt and completion: {"prompt", "completion"}, each a text or a list of messages.

A text prompt is a user turn and a text completion an assistant turn. Rows that also say whether the completion was
good are of the format `unpaired_preference`: training on all of them would teach the bad ones too.
"""

from collections.abc import Mapping
from typing import Any

from luthier.data.formats._chat import ChatFields, require_reply
from luthier.data.read import Record
from luthier.examples import Conversation, Message, Role

SAMPLE: Mapping[str, Any] = {"prompt": "What is the capital of France?", "completion": "Paris"}


def matches(values: Mapping[str, Any]) -> bool:
    """A row with `prompt` and `completion`, and no verdict on it."""
    return "prompt" in values and "completion" in values and not is_verdict(values.get("label"))


def parse(record: Record, instruction: str | None = None) -> Conversation:
    """The conversation of a row; `instruction` is its system message if it has none.

    Raises:
        DataError: a field is missing or of the wrong kind, or the row has a verdict.
    """
    fields = ChatFields(record)
    prompt = side(fields, "prompt", "user")
    completion = side(fields, "completion", "assistant")
    require_reply(fields, completion, "completion")
    if is_verdict(fields.values.get("label")):
        raise fields.error(
            "the row has a completion and a label of true or false, a verdict on it; read it as "
            'data.format = "unpaired_preference" (for kto and bco), or keep the good completions only'
        )
    return fields.conversation(prompt + completion, instruction, fields.tools(fields.take("tools")))


def is_verdict(label: Any) -> bool:
    """Whether a `label` says that a completion was good or bad; files of texts alone, such as CSV, spell it out."""
    return isinstance(label, bool) or (isinstance(label, str) and label.strip().lower() in ("true", "false"))


def side(fields: ChatFields, name: str, role: Role) -> tuple[Message, ...]:
    """The messages of one side of a row: a text is one message of `role`, a list is a list of messages."""
    value = fields.require(name)
    if isinstance(value, str):
        return (Message(role, value),)
    return fields.messages(value, name)
