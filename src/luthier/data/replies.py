"""Generated text to an assistant message: the inverse of how `chatml_tools` (and Qwen's template) writes tool calls.

A call is `<tool_call>`, a JSON object with `name` and `arguments`, `</tool_call>`, with white space between. A JSON
parser reads the object, so the closing tag may occur inside an argument. What does not parse stays text, as it came.
"""

import json
import re
from typing import Any

from luthier.data.strict_json import is_nested_too_deeply
from luthier.examples import Message, ToolCall

OPEN, CLOSE = "<tool_call>", "</tool_call>"

_SPACE = re.compile(r"\s*")
_decoder = json.JSONDecoder()


def parse_reply_text(text: str) -> Message:
    """The assistant message that `text` means: calls in order, and the text around them as content."""
    calls: list[ToolCall] = []
    content: list[str] = []
    at = 0
    while (begin := text.find(OPEN, at)) >= 0:
        parsed = _parse_call(text, begin + len(OPEN))
        if parsed is None:
            content.append(text[at : begin + len(OPEN)])
            at = begin + len(OPEN)
            continue
        call, end = parsed
        before = text[at:begin]
        # the line break before a call belongs to the call, not to the content
        content.append(before[:-1] if before.endswith("\n") else before)
        calls.append(call)
        at = end
    content.append(text[at:])
    return Message("assistant", "".join(content), tool_calls=tuple(calls))


def _parse_call(text: str, at: int) -> tuple[ToolCall, int] | None:
    """The call whose JSON begins at `at`, and where its closing tag ends."""
    try:
        value, end = _decoder.raw_decode(text, _skip_space(text, at))
        # NaN and half of a character are read, but no file and no answer could hold them
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return None
    end = _skip_space(text, end)
    if not text.startswith(CLOSE, end) or not _is_call(value):
        return None
    return ToolCall(value["name"], value["arguments"]), end + len(CLOSE)


def _skip_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _is_call(value: Any) -> bool:
    # a key more would be lost in a ToolCall, so such an object is not taken for one
    return (
        isinstance(value, dict)
        and value.keys() == {"name", "arguments"}
        and isinstance(value["name"], str)
        and isinstance(value["arguments"], dict)
        and not is_nested_too_deeply(value)
    )
