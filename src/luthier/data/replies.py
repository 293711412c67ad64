"""Generated text to an assistant message: the inverse of how chat templates write tool calls.

Three forms are read, each the inverse of what a family of templates writes (`data/call_forms.py` finds out which):

- tagged (`chatml_tools`, Qwen, Hermes): `<tool_call>`, an object with `name` and `arguments`, `</tool_call>`;
- listed (Mistral): `[TOOL_CALLS]`, a list of such objects, each with an `id` or none;
- bare (Llama 3): the whole reply is one object with `name` and `parameters`.

A JSON parser reads the objects, so a closing tag may occur inside an argument. What does not parse stays text, as it
came.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from luthier.data.strict_json import is_nested_too_deeply
from luthier.examples import Message, ToolCall

_SPACE = re.compile(r"\s*")
_decoder = json.JSONDecoder()


@dataclass(frozen=True)
class CallForm:
    """How a family of models writes the calls of a reply."""

    name: str
    opening: str
    """Stands before each call, or before the list of them; empty where a call is the whole reply."""
    closing: str
    """Stands behind each call; empty for none."""
    arguments: str
    """The key of the arguments in a call's object."""
    is_list: bool = False


TAGGED = CallForm("tagged", "<tool_call>", "</tool_call>", "arguments")
LISTED = CallForm("listed", "[TOOL_CALLS]", "", "arguments", is_list=True)
BARE = CallForm("bare", "", "", "parameters")
FORMS = (TAGGED, LISTED, BARE)


def parse_reply_text(text: str, form: CallForm = TAGGED) -> Message:
    """The assistant message that `text` means: calls in order, and the text around them as content."""
    if not form.opening:
        call = _whole_call(text, form)
        return Message("assistant", text) if call is None else Message("assistant", tool_calls=(call,))
    calls: list[ToolCall] = []
    content: list[str] = []
    at = 0
    while (begin := text.find(form.opening, at)) >= 0:
        parsed = parse_calls_at(text, begin + len(form.opening), form)
        if parsed is None:
            content.append(text[at : begin + len(form.opening)])
            at = begin + len(form.opening)
            continue
        found, end = parsed
        content.append(text[at:begin].removesuffix("\n"))  # the line break before a call belongs to the call
        calls += found
        at = end
    content.append(text[at:])
    return Message("assistant", "".join(content), tool_calls=tuple(calls))


def parse_calls_at(text: str, at: int, form: CallForm) -> tuple[list[ToolCall], int] | None:
    """The call, or all calls of a list, whose JSON begins at `at`, and where their closing tag ends."""
    value, end = _json_at(text, at)
    entries = value if form.is_list else [value]
    if not isinstance(entries, list) or not entries:
        return None
    calls = [_call(entry, form) for entry in entries]
    end = _skip_space(text, end) if form.closing else end
    if None in calls or not text.startswith(form.closing, end):
        return None
    return [call for call in calls if call is not None], end + len(form.closing)


def _whole_call(text: str, form: CallForm) -> ToolCall | None:
    value, end = _json_at(text, 0)
    return _call(value, form) if _skip_space(text, end) == len(text) else None


def _json_at(text: str, at: int) -> tuple[Any, int]:
    """The JSON value that begins at `at`, and its end; None if there is none that a file and an answer could hold."""
    try:
        value, end = _decoder.raw_decode(text, _skip_space(text, at))
        # NaN and half of a character are read, but no file and no answer could hold them
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return None, at
    return value, end


def _skip_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _call(value: Any, form: CallForm) -> ToolCall | None:
    # a key more would be lost in a ToolCall, so such an object is not taken for one
    good = (
        isinstance(value, dict)
        and value.keys() - ({"id"} if form.is_list else set()) == {"name", form.arguments}
        and isinstance(value["name"], str)
        and isinstance(value[form.arguments], dict)
        and isinstance(value.get("id", ""), str)
        and not is_nested_too_deeply(value)
    )
    return ToolCall(value["name"], value[form.arguments], value.get("id")) if good else None
