"""Unpaired preferences: {"prompt", "completion", "label"}, where label says whether the completion was good.

A side is a text or a list of messages, as in `prompt_completion`. The label is true or false, in CSV its name. What a
thumb up or down below an answer leaves behind; `kto` and `bco` learn from it.
"""

from collections.abc import Mapping
from typing import Any

from luthier.data.formats._chat import ChatFields, require_reply
from luthier.data.formats.prompt_completion import is_verdict, side
from luthier.data.read import Record, kind_of
from luthier.examples import Judged

SAMPLE: Mapping[str, Any] = {"prompt": "What is the capital of France?", "completion": "Paris", "label": True}


def matches(values: Mapping[str, Any]) -> bool:
    """A row with `prompt`, `completion` and a verdict in `label`."""
    return "prompt" in values and "completion" in values and is_verdict(values.get("label"))


def parse(record: Record, instruction: str | None = None) -> Judged:
    """The judged reply of a row; `instruction` is the prompt's system message if it has none.

    Raises:
        DataError: a field is missing or of the wrong kind.
    """
    fields = ChatFields(record)
    prompt, reply = side(fields, "prompt", "user"), side(fields, "completion", "assistant")
    require_reply(fields, reply, "completion")
    fields.require_results_matched((*prompt, *reply), "prompt and completion: ")
    label = fields.require("label")
    if isinstance(label, str) and fields.kind == "csv" and is_verdict(label):
        label = label.strip().lower() == "true"
    if not isinstance(label, bool):
        raise fields.error(f"'label' is {kind_of(label)}; expected true (the completion is good) or false")
    return Judged(
        fields.with_system(prompt, instruction),
        reply,
        label,
        fields.tools(fields.take("tools")),
        record.where,
        fields.id(),
        fields.group(),
        fields.extra(),
    )
