"""Judged steps: {"prompt", "completions", "labels"} (TRL's shape for process rewards), a label for each step.

The steps, a line each, are the assistant's turn; a label is true or false, or the share of 0 to 1 that a step is right.
The example's target holds both lists. Earlier turns of the assistant are read and not judged.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from luthier.data.formats._chat import ChatFields
from luthier.data.formats.prompt_completion import side
from luthier.data.read import Record, kind_of
from luthier.data.steps import SEPARATOR
from luthier.examples import Conversation, Message

SAMPLE: Mapping[str, Any] = {
    "prompt": "Which number is larger, 9.8 or 9.11?",
    "completions": ["The fractions are 0.8 and 0.11.", "0.11 is more than 0.8, so it is 9.11."],
    "labels": [True, False],
}


def matches(values: Mapping[str, Any]) -> bool:
    """A row with `completions` and `labels`."""
    return "completions" in values and "labels" in values


def parse(record: Record, instruction: str | None = None) -> Conversation:
    """The conversation of a row, whose last turn is its steps.

    Raises:
        DataError: a field is missing or of the wrong kind, or steps and labels are not as many.
    """
    fields = ChatFields(record)
    asked = side(fields, "prompt", "user")
    prompt = tuple(replace(m, weight=0.0) if m.role == "assistant" else m for m in asked)  # it has no judged steps
    steps, labels = _steps(fields), _labels(fields)
    if len(steps) != len(labels):
        raise fields.error(f"{len(steps)} steps in 'completions' but {len(labels)} in 'labels'; expected one for each")
    if fields.target() is not None:
        raise fields.error("the row has both 'labels' and 'target'; expected one of them, since the labels are it")
    tools = fields.tools(fields.take("tools"))
    messages = (*prompt, Message("assistant", SEPARATOR.join(steps)))
    return replace(fields.conversation(messages, instruction, tools), target={"steps": steps, "labels": labels})


def _steps(fields: ChatFields) -> list[str]:
    value = fields.require("completions")
    if not isinstance(value, list) or not value:
        raise fields.error(f"'completions' is {kind_of(value)}; expected a list of texts, the steps")
    for number, step in enumerate(value, 1):
        if not isinstance(step, str) or not step.strip():
            raise fields.error(f"step {number} of 'completions' is {kind_of(step)}; expected a text that is not empty")
    return value


def _labels(fields: ChatFields) -> list[float]:
    value = fields.require("labels")
    if not isinstance(value, list):
        raise fields.error(f"'labels' is {kind_of(value)}; expected a list of true and false, one for each step")
    for number, label in enumerate(value, 1):
        if not isinstance(label, bool | int | float) or not 0 <= label <= 1:
            raise fields.error(f"label {number} is {label!r}; expected true or false, or a number from 0 to 1")
    return [float(label) for label in value]
