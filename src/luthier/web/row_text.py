"""A row of a training file taken apart into the texts that people read and mend, and put together again."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from luthier.report.text import visible

MESSAGES = ("messages", "preferred_output", "non_preferred_output", "prompt", "chosen", "rejected")
"""Fields that hold a list of messages, or a text."""


@dataclass(frozen=True)
class Turn:
    """One text of a row."""

    place: str
    """Where it stands: keys and numbers with slashes between them."""
    who: str
    """The role, with the field for all but `messages`."""
    text: str
    beside: str = ""
    """What is shown and mended as JSON alone: the calls that it makes, or the call that it answers."""


def turns(line: str) -> list[Turn]:
    """The texts of a row, in order; none if it is built in a way that has to be read as JSON."""
    try:
        values = json.loads(line)
    except ValueError:
        return []
    if not isinstance(values, Mapping):
        return []
    found: list[Turn] = []
    given = values.get("input")
    if isinstance(given, Mapping):
        found += _messages("input/messages", given.get("messages"))
    for field in values:
        if field in MESSAGES or field == "completion":
            inner = values[field]
            found += [Turn(field, field, inner)] if isinstance(inner, str) else _messages(field, inner)
    return found


def tools(line: str) -> str:
    """The tools that a row offers, as a list or as its text, one a line as JSON; empty for none."""
    try:
        values = json.loads(line)
        given = values.get("input", values) if isinstance(values, Mapping) else None
        listed = given.get("tools") if isinstance(given, Mapping) else None
        listed = json.loads(listed) if isinstance(listed, str) else listed
    except ValueError:
        return ""
    return "\n".join(json.dumps(tool, ensure_ascii=False) for tool in listed) if isinstance(listed, list) else ""


def _messages(place: str, messages: Any) -> Iterator[Turn]:
    for number, message in enumerate(messages if isinstance(messages, list) else []):
        if not isinstance(message, Mapping):
            continue
        content, beside = message.get("content"), _beside(message)
        if isinstance(content, str) or (content is None and beside):
            side = "" if place == "messages" else f"{place.partition('/')[0].replace('_', ' ')}: "
            yield Turn(f"{place}/{number}/content", f"{side}{message.get('role', '')}", content or "", beside)


def _beside(message: Mapping[str, Any]) -> str:
    """Tool calls, a line each, or the id of the call that a tool result answers."""
    calls = message.get("tool_calls")
    if isinstance(calls, list) and calls:
        return "\n".join(json.dumps(call, ensure_ascii=False) for call in calls)
    answered = message.get("tool_call_id")
    return f"answers {answered}" if isinstance(answered, str) else ""


def with_texts(line: str, texts: Mapping[str, str]) -> str:
    """The row with other texts at their places; a text that is as it was shown stays as it was."""
    values = json.loads(line)
    for turn in turns(line):
        text = texts.get(turn.place, "").replace("\r\n", "\n")
        if turn.place in texts and text != visible(turn.text).replace("\r\n", "\n"):
            *above, last = (int(part) if part.isdigit() else part for part in turn.place.split("/"))
            inner = values
            for part in above:
                inner = inner[part]
            inner[last] = text
    return json.dumps(values, ensure_ascii=False)


def indented(line: str) -> str:
    """A row as JSON over several lines; what would be shown otherwise than it is stands as an escape."""
    try:
        text = json.dumps(json.loads(line), ensure_ascii=False, indent=1)
    except ValueError:
        return line
    return "".join(c if visible(c) == c else json.dumps(c)[1:-1] for c in text)


def compact(text: str) -> str:
    """A row of `indented` on one line again; as it is if it is no JSON."""
    try:
        return json.dumps(json.loads(text), ensure_ascii=False)
    except ValueError:
        return text.replace("\r", " ").replace("\n", " ")
