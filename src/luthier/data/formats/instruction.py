"""Instruction, input, output: {"instruction", "input", "output"} (Alpaca's shape; `input` may be absent or empty).

Instruction and input, a blank line between them, are the user's turn and the output is the assistant's. `system` is
a system message and `history` a list of earlier [question, answer] turns, as some tools write them.
"""

from collections.abc import Mapping
from typing import Any

from luthier.data.formats.base import Fields
from luthier.data.read import Record, kind_of
from luthier.examples import Conversation, Message

SAMPLE: Mapping[str, Any] = {
    "instruction": "Translate into French.",
    "input": "Good morning",
    "output": "Bonjour",
}


def matches(values: Mapping[str, Any]) -> bool:
    """A row with `instruction` and `output`."""
    return "instruction" in values and "output" in values


def parse(record: Record, instruction: str | None = None) -> Conversation:
    """The conversation of a row; the recipe's `instruction` is its system message if it has none.

    Raises:
        DataError: a field is missing or of the wrong kind.
    """
    fields = Fields(record)
    asked, given = fields.text("instruction"), fields.optional_text("input")
    messages = (
        *_history(fields),
        Message("user", f"{asked}\n\n{given}" if asked and given else asked or given or ""),
        Message("assistant", fields.text("output")),
    )
    return fields.conversation(messages, instruction)


def _history(fields: Fields) -> tuple[Message, ...]:
    turns = fields.take("history")
    if turns is None or turns == "":
        return ()
    if not isinstance(turns, list):
        raise fields.error(f"'history' is {kind_of(turns)}; expected a list of [question, answer] pairs")
    messages: list[Message] = []
    for i, pair in enumerate(turns):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise fields.error(f"history[{i}] is no pair of texts; expected [question, answer]")
        messages += [Message("user", pair[0]), Message("assistant", pair[1])]
    return tuple(messages)
