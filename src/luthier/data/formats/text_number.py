"""Text and number: {"text", "number"}, such as how urgent a text is.

The text is the user's turn, the number the assistant's and the example's target. What shall be done with the text is
said by the recipe's `data.instruction`, which becomes the system message.
"""

import math
from collections.abc import Mapping
from typing import Any

from luthier.data.formats.base import Fields
from luthier.data.read import Record
from luthier.examples import Conversation, Message

SAMPLE: Mapping[str, Any] = {"text": "The site is down, nobody can order.", "number": 4.5}


def matches(values: Mapping[str, Any]) -> bool:
    """A row with `text` and `number`."""
    return "text" in values and "number" in values


def parse(record: Record, instruction: str | None = None) -> Conversation:
    """The conversation of a row: the text, answered by its number.

    Raises:
        DataError: a field is missing or of the wrong kind.
    """
    fields = Fields(record)
    text, given = fields.text("text"), fields.require("number")
    try:
        number = math.nan if isinstance(given, bool) else float(given)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise fields.error(f"'number' is {str(given)[:80]!r}; expected a number")
    if fields.target() is not None:
        raise fields.error("the row has both 'number' and 'target'; expected one of them, since the number is it")
    messages = (Message("user", text), Message("assistant", f"{number:.15g}"))
    return fields.conversation(messages, instruction, target=number)
