"""Turns in an order that a chat template cannot render, or that teaches something else than was meant.

Most templates raise on such rows or, worse, render them anyway with turns dropped. Tool calls are compared with the
tools that the row offers, and with their results. A row whose results do not answer its calls is refused when it is
read from a file.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.data.checks.base import Check, Finding, Severity, Tally
from luthier.data.prompts import tools_text
from luthier.data.tool_results import ResultError, matched_results
from luthier.data.tool_schemas import argument_validators, fits
from luthier.examples import Conversation, Document, Example, Judged, Message, Preference, ToolCall

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
    "unanswered_call": (
        "warning",
        "a tool call without a result before the next turn",
        "add the tool's result; a served model always sees one before it goes on",
    ),
    "wrong_tool_call_id": (
        "error",
        "a tool result that answers no open call, or one of several",
        "give it the id of the call that it answers",
    ),
    "invalid_arguments": (
        "warning",
        "a tool call whose arguments do not fit the tool's parameters",
        "correct the arguments, or the JSON Schema of the parameters",
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
        self._validators: dict[str, dict[str, Any]] = {}

    def see(self, example: Example, split: str) -> None:
        """Look at the order of the turns."""
        if isinstance(example, Document):
            return
        for kind in self._faults(example):
            self._tallies[kind].add(example.where)

    def _faults(self, example: Conversation | Preference | Judged) -> set[str]:
        if isinstance(example, Conversation):
            faults = _order_faults(example.messages)
            if example.messages and example.completion is None:
                faults.add("no_assistant")
            elif example.messages and example.messages[-1].role != "assistant":
                faults.add("empty_last")
            sides: list[Sequence[Message]] = [example.messages]
        else:
            replies = (example.reply,) if isinstance(example, Judged) else (example.chosen, example.rejected)
            sides = [(*example.prompt, *reply) for reply in replies]
            faults = {fault for messages in sides for fault in _order_faults(messages)}
            if not example.prompt:
                faults.add("no_prompt")
                faults.discard("assistant_first")
        for messages in sides:
            faults |= _result_faults(messages)
            faults |= self._call_faults([call for m in messages for call in m.tool_calls], example.tools)
        return faults

    def _call_faults(self, calls: Sequence[ToolCall], tools: Sequence[Mapping[str, Any]]) -> set[str]:
        if not calls:
            return set()
        if not tools:
            return {"no_tools"}
        validators = self._validators_of(tools)
        faults = set() if all(call.name in validators for call in calls) else {"unknown_tool"}
        if any(not fits(call.arguments, validators.get(call.name)) for call in calls):
            faults.add("invalid_arguments")
        return faults

    def _validators_of(self, tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The validator of each tool's arguments by its name, None where it has no usable schema; kept for lists that
        many rows share."""
        text = tools_text(tools)
        found = self._validators.get(text)
        if found is None:
            found = argument_validators(tools)
            if len(self._validators) < _REMEMBERED:
                self._validators[text] = found
        return found

    def findings(self) -> list[Finding]:
        """One finding for each kind of disorder that occurred."""
        return [
            Finding("roles", severity, message, advice, tuple(self._tallies[kind].where), self._tallies[kind].count)
            for kind, (severity, message, advice) in _KINDS.items()
            if self._tallies[kind].count
        ]


_REMEMBERED = 64
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


def _result_faults(messages: Sequence[Message]) -> set[str]:
    """Calls that no result answers before the next turn, but for those at the end; results that answer no open call."""
    try:
        answered = set(matched_results(messages).values())
    except ResultError:
        return {"wrong_tool_call_id"}
    last = max((i for i, m in enumerate(messages) if m.role in ("user", "assistant")), default=0)
    called = {(i, number) for i, m in enumerate(messages[:last]) for number in range(len(m.tool_calls))}
    return {"unanswered_call"} if called - answered else set()
