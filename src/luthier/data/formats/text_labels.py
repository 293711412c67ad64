"""Text and labels: {"text", "labels"}, where a text may have several labels, or none.

The text is the user's turn; the assistant's, and the example's target, is the list of labels. What shall be done with
the text is said by the recipe's `data.instruction`, which becomes the system message.
"""

import json
from collections.abc import Mapping
from typing import Any

from luthier.data.formats.base import Fields
from luthier.data.read import Record, kind_of
from luthier.examples import Conversation, Message

SAMPLE: Mapping[str, Any] = {"text": "It broke and I want my money back.", "labels": ["defect", "refund"]}


def matches(values: Mapping[str, Any]) -> bool:
    """A row with `text` and `labels`."""
    return "text" in values and "labels" in values


def parse(record: Record, instruction: str | None = None) -> Conversation:
    """The conversation of a row: the text, answered by the list of its labels.

    Raises:
        DataError: a field is missing or of the wrong kind.
    """
    fields = Fields(record)
    text, labels = fields.text("text"), fields.require("labels")
    if isinstance(labels, str):  # a cell of a CSV file
        try:
            labels = json.loads(labels)
        except ValueError:
            labels = [part.strip() for part in labels.split(",") if part.strip()]
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise fields.error(f"'labels' is {kind_of(labels)}; expected a list of strings, which may be empty")
    if fields.target() is not None:
        raise fields.error("the row has both 'labels' and 'target'; expected one of them, since the labels are it")
    messages = (Message("user", text), Message("assistant", json.dumps(labels, ensure_ascii=False)))
    return fields.conversation(messages, instruction, target=labels)
