"""Text and label: {"text", "label"}, for classification.

The text is the user's turn, the label (as text) the assistant's and the example's target. What shall be done with
the text is said by the recipe's `data.instruction`, which becomes the system message.
"""

import json
from collections.abc import Mapping
from typing import Any

from luthier.data.formats.base import Fields
from luthier.data.read import Record, kind_of
from luthier.examples import Conversation, Message

SAMPLE: Mapping[str, Any] = {"text": "My card has not arrived yet.", "label": "card_arrival"}


def matches(values: Mapping[str, Any]) -> bool:
    """A row with `text` and `label`."""
    return "text" in values and "label" in values


def parse(record: Record, instruction: str | None = None) -> Conversation:
    """The conversation of a row: the text, answered by its label.

    Raises:
        DataError: a field is missing or of the wrong kind.
    """
    fields = Fields(record)
    text, label = fields.text("text"), _label(fields)
    if fields.target() is not None:
        raise fields.error("the row has both 'label' and 'target'; expected one of them, since the label is the target")
    messages = (Message("user", text), Message("assistant", label))
    return fields.conversation(messages, instruction, target=label)


def _label(fields: Fields) -> str:
    value = fields.require("label")
    if isinstance(value, str):
        return value
    if isinstance(value, int):  # true and false among them, spelled as in the file
        return json.dumps(value)
    raise fields.error(f"'label' is {kind_of(value)}; expected a string or a whole number")
