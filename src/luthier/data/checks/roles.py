"""Turns in an order that a chat template cannot render, or that teaches something else than was meant.

Most templates raise on such rows or, worse, render them anyway with turns dropped.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.data.checks.base import Check, Finding, Severity, Tally
from luthier.examples import Conversation, Document, Example, Message, Preference

_KINDS: dict[str, tuple[Severity, str, str]] = {
    "no_assistant": (
        "error",
        "no assistant turn, so there is nothing to learn from",
        "add the reply, or remove these rows",
    ),
    "no_messages": ("error", "no messages at all", "remove these rows"),
    "no_prompt": ("error", "a preference without a prompt", "add the turns that both replies answer"),
    "empty_last": (
        "warning",
        "the conversation does not end with an assistant turn; the turns after the last reply are never trained on",
        "end each row with the reply that shall be learned",
    ),
    "user_twice": (
        "warning",
        "two user turns in a row",
        "join them into one turn, or add the reply that is missing between them",
    ),
    "assistant_twice": (
        "warning",
        "two assistant turns in a row",
        "join them; a served model ends its turn after the first",
    ),
    "system_later": (
        "warning",
        "a system turn that is not the first turn",
        "put the system turn first; many templates drop or refuse later ones",
    ),
    "assistant_first": (
        "warning",
        "the conversation begins with an assistant turn",
        "add the user turn that it answers; the served model never starts a conversation",
    ),
    "tool_orphan": (
        "warning",
        "a tool result that no call precedes",
        "keep the assistant turn with its tool_calls before each tool result",
    ),
    "unknown_tool": (
        "warning",
        "a call of a tool that the row does not offer",
        "list the tool under `tools`, or the model learns to call what it was not given",
    ),
    "no_tools": (
        "warning",
        "tool calls in a row that offers no tools",
        "add the `tools` list that will be sent when the model is served",
    ),
}


class Roles(Check):
    """Checks who speaks when, and that tool calls and tool results belong together."""

    def __init__(self) -> None:
        self._tallies = {kind: Tally() for kind in _KINDS}

    def see(self, example: Example, split: str) -> None:
        """Look at the order of the turns."""
        if isinstance(example, Document):
            return
        for kind in self._faults(example):
            self._tallies[kind].add(example.where)

    def _faults(self, example: Conversation | Preference) -> set[str]:
        if isinstance(example, Conversation):
            faults = _order_faults(example.messages)
            if example.messages and example.completion is None:
                faults.add("no_assistant")
            elif example.messages and example.messages[-1].role != "assistant":
                faults.add("empty_last")
            messages: Sequence[Message] = example.messages
        else:
            faults = _order_faults((*example.prompt, *example.chosen)) | _order_faults(
                (*example.prompt, *example.rejected)
            )
            if not example.prompt:
                faults.add("no_prompt")
                faults.discard("assistant_first")
            messages = (*example.prompt, *example.chosen, *example.rejected)
        return faults | _tool_faults(messages, example.tools)

    def findings(self) -> list[Finding]:
        """One finding for each kind of disorder that occurred."""
        return [
            Finding("roles", severity, message, advice, tuple(self._tallies[kind].where), self._tallies[kind].count)
            for kind, (severity, message, advice) in _KINDS.items()
            if self._tallies[kind].count
        ]


_NEXT = {("user", "user"): "user_twice", ("assistant", "assistant"): "assistant_twice"}


def _order_faults(messages: Sequence[Message]) -> set[str]:
    if not messages:
        return {"no_messages"}
    faults: set[str] = set()
    calls_open, before, spoken = False, "", False
    for message in messages:
        role = message.role
        if role == "system" and spoken:
            faults.add("system_later")
        if role == "assistant" and not spoken:
            faults.add("assistant_first")
        if role == "tool" and not calls_open:
            faults.add("tool_orphan")
        if (before, role) in _NEXT:
            faults.add(_NEXT[before, role])
        calls_open = bool(message.tool_calls) if role == "assistant" else calls_open and role == "tool"
        spoken = spoken or role not in ("system", "developer")
        before = role
    return faults


def _tool_faults(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> set[str]:
    called = {call.name for message in messages for call in message.tool_calls}
    if not called:
        return set()
    if not tools:
        return {"no_tools"}
    return {"unknown_tool"} if called - _tool_names(tools) else set()


def _tool_names(tools: Sequence[Mapping[str, Any]]) -> set[str]:
    """Names of the offered tools, in OpenAI's nested shape (`function.name`) or flat (`name`)."""
    names = set()
    for tool in tools:
        inner = tool.get("function", tool)
        name = inner.get("name") if isinstance(inner, Mapping) else None
        if isinstance(name, str):
            names.add(name)
    return names
