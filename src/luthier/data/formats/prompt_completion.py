"""Prompt and completion: {"prompt", "completion"}, each a text or a list of messages.

A text prompt is a user turn and a text completion an assistant turn. Rows that also say whether the completion was
good (KTO) are refused, since training on all of them would teach the bad ones too.
"""

from collections.abc import Mapping
from typing import Any

from luthier.data.formats._chat import ChatFields, require_reply
from luthier.data.read import Record
from luthier.examples import Conversation, Message, Role

SAMPLE: Mapping[str, Any] = {"prompt": "What is the capital of France?", "completion": "Paris"}


def matches(values: Mapping[str, Any]) -> bool:
    """A row with `prompt` and `completion`."""
    return "prompt" in values and "completion" in values


def parse(record: Record, instruction: str | None = None) -> Conversation:
    """The conversation of a row; `instruction` is its system message if it has none.

    Raises:
        DataError: a field is missing or of the wrong kind, or the row is one of KTO's.
    """
    fields = ChatFields(record)
    prompt = side(fields, "prompt", "user")
    completion = side(fields, "completion", "assistant")
    require_reply(fields, completion, "completion")
    if isinstance(fields.values.get("label"), bool):
        raise fields.error(
            "the row has a completion and a label of true or false (unpaired preferences, as KTO takes them), which no "
            "format here reads; keep the good completions only, or write pairs of chosen and rejected"
        )
    return fields.conversation(prompt + completion, instruction, fields.tools(fields.take("tools")))


def side(fields: ChatFields, name: str, role: Role) -> tuple[Message, ...]:
    """The messages of one side of a row: a text is one message of `role`, a list is a list of messages."""
    value = fields.require(name)
    if isinstance(value, str):
        return (Message(role, value),)
    return fields.messages(value, name)
