"""Raw text: {"text"}, trained on from its first token to its last.

For continued pre-training and for measuring perplexity. There are no turns, so a recipe's `data.instruction` cannot
apply and is refused.
"""

from collections.abc import Mapping
from typing import Any

from luthier.data.formats.base import Fields
from luthier.data.read import Record
from luthier.examples import Document

SAMPLE: Mapping[str, Any] = {"text": "Led Zeppelin were an English rock band formed in London in 1968."}

# a row that has one of these beside `text` means something else by it
_OTHERS = (
    *("label", "labels", "number", "spans", "messages", "conversations"),
    *("prompt", "completion", "instruction", "chosen", "input"),
)


def matches(values: Mapping[str, Any]) -> bool:
    """A row with `text` and none of the fields that another format reads."""
    return "text" in values and not any(name in values for name in _OTHERS)


def parse(record: Record, instruction: str | None = None) -> Document:
    """The document of a row.

    Raises:
        DataError: `text` is missing or no string, or an instruction was given.
    """
    fields = Fields(record)
    if instruction is not None:
        raise fields.error("raw text has no system message; remove data.instruction, or use another data.format")
    return Document(fields.text("text"), record.where, fields.id(), fields.group(), fields.extra())
