"""What a chat template can do, found by rendering small conversations of made-up words and looking for the words.

Templates do not declare what they leave out: SmolLM2's renders neither tools nor tool calls, and says nothing.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

import jinja2

from luthier.examples import Message

Render = Callable[[Sequence[dict[str, Any]], list[Any] | None, bool], str]
"""(messages, tools, add_generation_prompt) -> text; raises one of RENDER_ERRORS."""

RENDER_ERRORS = (jinja2.TemplateError, TypeError, ValueError, KeyError, IndexError, AttributeError)
"""What a template can raise by its own fault while it renders."""

CAPABILITIES = ("system", "tools", "tool_calls", "tool_results")

PROBE_ASKED = "quelzap"
_USER = {"role": "user", "content": PROBE_ASKED}
_ASSISTANT = {"role": "assistant", "content": "brofind"}
PROBE_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "vortlink",
        "description": "does mirplex",
        "parameters": {"type": "object", "properties": {"dwaxel": {"type": "string", "description": "a fribnot"}}},
    },
}


def _calling(arguments: Any) -> dict[str, Any]:
    function = {"name": "vortlink", "arguments": arguments}
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "id": "call00001", "function": function}],
    }


def _attempt(render: Render, messages: Sequence[dict[str, Any]], tools: list[Any] | None = None) -> str:
    """The rendered text, or "" if the template refuses."""
    try:
        return render(messages, tools, False)
    except RENDER_ERRORS:
        return ""


def wants_arguments_as_text(render: Render) -> bool:
    """Whether the template writes a call's arguments as they come, and so needs them as JSON text."""
    arguments = {"dwaxel": "stumril"}
    as_object = _attempt(render, [_USER, _calling(arguments)], [PROBE_TOOL])
    if '"stumril"' in as_object:
        return False
    return '"stumril"' in _attempt(render, [_USER, _calling(json.dumps(arguments))], [PROBE_TOOL])


def writes_call_ids(render: Render, arguments_as_text: bool) -> bool:
    """Whether the template shows by an id which call a result answers."""
    return "call00001" in _attempt(render, _answered(arguments_as_text), [PROBE_TOOL])


def _answered(arguments_as_text: bool) -> list[dict[str, Any]]:
    """A question, a call, its result, and the reply."""
    arguments: Any = {"dwaxel": "stumril"}
    call = _calling(json.dumps(arguments) if arguments_as_text else arguments)
    result = {"role": "tool", "content": "gorvane", "tool_call_id": "call00001", "name": "vortlink"}
    return [_USER, call, result, _ASSISTANT]


def find_capabilities(render: Render, arguments_as_text: bool) -> frozenset[str]:
    """Which of CAPABILITIES the template renders."""
    answered = _answered(arguments_as_text)
    system = _attempt(render, [{"role": "system", "content": "hespral"}, _USER, _ASSISTANT])
    tools = _attempt(render, [_USER, _ASSISTANT], [PROBE_TOOL])
    calls = _attempt(render, answered[:2], [PROBE_TOOL])
    called = calls.replace(_attempt(render, [_USER, _ASSISTANT], [PROBE_TOOL]).partition("quelzap")[0], "")
    results = _attempt(render, answered, [PROBE_TOOL])
    found = {
        "system": "hespral" in system,
        "tools": "vortlink" in tools and "mirplex" in tools,
        "tool_calls": "vortlink" in called and "stumril" in called,
        "tool_results": "gorvane" in results,
    }
    return frozenset(name for name, there in found.items() if there)


def kinds_of(messages: Sequence[Message], tools: Sequence[Any]) -> dict[str, str]:
    """The kinds of content, as CAPABILITIES names them, that a chat needs, each with the first place that needs it."""
    places = {"tools": "tools"} if tools else {}
    for index, message in enumerate(messages):
        if message.tool_calls:
            places.setdefault("tool_calls", f"messages[{index}].tool_calls")
        if message.role == "tool":
            places.setdefault("tool_results", f"messages[{index}]")
        if message.role in ("system", "developer") and message.content.strip():
            places.setdefault("system", f"messages[{index}]")
    return places


def skeleton(render: Render) -> tuple[str, str]:
    """A rendered conversation of made-up words, and what of it stands behind the reply; both "" if it is refused."""
    text = _attempt(render, [{"role": "system", "content": "hespral"}, _USER, _ASSISTANT]) or _attempt(
        render, [_USER, _ASSISTANT]
    )
    return text, text[text.rindex("brofind") + len("brofind") :] if "brofind" in text else ""
