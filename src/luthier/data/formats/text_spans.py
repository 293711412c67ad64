"""Text and spans: {"text", "spans"}, where a span is {"start", "end", "label"}; or words with tags: {"tokens", "tags"}.

Places are counted in characters, `end` behind the last one. Words with tags (`B-name`, `I-name` and `O`, as in CoNLL)
become the text with spaces between them, and its spans. The text is the user's turn; the assistant's, and the example's
target, is the list of spans.
"""

import json
from collections.abc import Mapping
from typing import Any

from luthier.data.formats.base import Fields
from luthier.data.read import Record, kind_of
from luthier.examples import Conversation, Message

SAMPLE: Mapping[str, Any] = {
    "text": "Meet Ada in Paris.",
    "spans": [{"start": 5, "end": 8, "label": "person"}, {"start": 12, "end": 17, "label": "place"}],
}


def matches(values: Mapping[str, Any]) -> bool:
    """A row with `text` and `spans`, or with `tokens` and `tags`."""
    return ("text" in values and "spans" in values) or ("tokens" in values and "tags" in values)


def parse(record: Record, instruction: str | None = None) -> Conversation:
    """The conversation of a row: the text, answered by the list of its spans.

    Raises:
        DataError: a field is missing or of the wrong kind, or a span is not in the text.
    """
    fields = Fields(record)
    is_tagged = "tokens" in fields.values and "spans" not in fields.values
    text, spans = _tagged(fields) if is_tagged else (fields.text("text"), _spans(fields))
    for span in spans:
        start, end = span["start"], span["end"]
        if not 0 <= start < end <= len(text):
            raise fields.error(f"a span goes from {start} to {end}, and the text has {len(text)} characters")
    if fields.target() is not None:
        raise fields.error("the row has both spans and 'target'; expected one of them, since the spans are it")
    said = [{"text": text[span["start"] : span["end"]], **span} for span in spans]
    messages = (Message("user", text), Message("assistant", json.dumps(said, ensure_ascii=False)))
    return fields.conversation(messages, instruction, target=said)


def _spans(fields: Fields) -> list[dict[str, Any]]:
    value = fields.require("spans")
    if not isinstance(value, list):
        raise fields.error(f"'spans' is {kind_of(value)}; expected a list of objects")
    for number, span in enumerate(value, 1):
        right = isinstance(span, dict) and isinstance(span.get("label"), str)
        if not right or not all(type(span.get(name)) is int for name in ("start", "end")):
            raise fields.error(f"span {number} is {str(span)[:80]}; expected start, end (whole numbers) and label")
    return [{name: span[name] for name in ("start", "end", "label")} for span in value]


def _tagged(fields: Fields) -> tuple[str, list[dict[str, Any]]]:
    tokens, tags = fields.require("tokens"), fields.require("tags")
    for name, value in (("tokens", tokens), ("tags", tags)):
        if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
            raise fields.error(f"{name!r} is {kind_of(value)}; expected a list of strings")
    if len(tokens) != len(tags):
        raise fields.error(f"{len(tokens)} words in 'tokens' but {len(tags)} in 'tags'; expected one for each")
    spans: list[dict[str, Any]] = []
    at, before = 0, "O"
    for number, (token, tag) in enumerate(zip(tokens, tags, strict=True), 1):
        if tag != "O" and (tag[:2] not in ("B-", "I-") or not tag[2:]):
            raise fields.error(f"tag {number} is {tag!r}; expected O, or B- or I- and a name")
        if tag[:2] == "I-" and before[2:] == tag[2:] and before != "O":
            spans[-1]["end"] = at + len(token)
        elif tag != "O":
            spans.append({"start": at, "end": at + len(token), "label": tag[2:]})
        at, before = at + len(token) + 1, tag
    return " ".join(tokens), spans
