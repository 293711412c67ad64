"""Which call each tool result answers.

By its id where it has one; without ids, by the name of its tool, and else in the order of the calls. A template that
writes no ids (most do not) shows results in the order in which they stand, so they are put into the order of the
calls before they are rendered, and named after them: then it cannot matter which result came back first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from luthier.examples import Message, ToolCall


class ResultError(ValueError):
    """A result answers no call, or nobody can tell which one. `index` is the message's."""

    def __init__(self, index: int, why: str) -> None:
        super().__init__(f"message {index + 1} (tool) {why}")
        self.index = index


def matched_results(messages: Sequence[Message]) -> Mapping[int, tuple[int, int]]:
    """For each tool message the message and the number of the call that it answers.

    A result without an id that no call precedes answers nothing that is known of, and is left out: there are rows whose
    calls are plain text.

    Raises:
        ResultError: a result has the id of no open call, answers a call twice, or fits several calls.
    """
    found: dict[int, tuple[int, int]] = {}
    caller, waiting, calls = 0, dict[int, ToolCall](), 0
    for index, message in enumerate(messages):
        if message.role == "tool":
            if not calls and message.tool_call_id is None:
                continue
            number = _answered(message, waiting, index, calls)
            del waiting[number]
            found[index] = caller, number
        elif message.role in ("user", "assistant"):
            caller, waiting, calls = index, dict(enumerate(message.tool_calls)), len(message.tool_calls)
    return found


def _answered(message: Message, waiting: Mapping[int, ToolCall], index: int, calls: int) -> int:
    wanted = message.tool_call_id
    if wanted is None:
        return _without_id(message, waiting, index, calls)
    same = [number for number, call in waiting.items() if call.id == wanted]
    if len(same) > 1:
        raise ResultError(index, f"answers {wanted!r}, the id of {len(same)} calls; expected an id of its own for each")
    # where ids were taken off the calls alone, the order is left
    same = same or [number for number, call in waiting.items() if call.id is None]
    if not same:
        known = ", ".join(repr(call.id) for call in waiting.values()) or "none"
        raise ResultError(
            index,
            f"has the tool_call_id {wanted!r}, which is that of no call that waits for a result ({known}); "
            "expected the id of a call of the assistant's turn before it, each once",
        )
    return same[0]


def _without_id(message: Message, waiting: Mapping[int, ToolCall], index: int, calls: int) -> int:
    if not waiting:
        raise ResultError(index, f"is one result more than the {calls} calls before it; expected one for each call")
    named = [number for number, call in waiting.items() if message.name in (None, call.name)]
    if not named:
        raise ResultError(index, f"is a result of {message.name!r}, which no call that waits for a result names")
    without = [number for number in named if waiting[number].id is None]
    if len(named) > 1 and not without:
        raise ResultError(
            index,
            f"has no tool_call_id, and {len(named)} calls with ids wait for a result; expected the id of one of them",
        )
    return (without or named)[0]


def in_order_of_calls(messages: Sequence[Message], gaps: bool = False) -> tuple[Message, ...]:
    """The messages with the results of a turn in the order of its calls, and named after them where they have no name.

    Raises:
        ResultError: as `matched_results`; or, unless there may be `gaps`, a call has no result and a later one has.
    """
    answers = matched_results(messages)
    found: list[Message] = list(messages)
    by_caller: dict[int, list[int]] = {}
    for index, (caller, _) in answers.items():
        by_caller.setdefault(caller, []).append(index)
    for caller, places in by_caller.items():
        ordered = sorted(places, key=lambda index: answers[index][1])
        for expected, (place, index) in enumerate(zip(places, ordered, strict=True)):
            number = answers[index][1]
            if number != expected and not gaps:
                raise ResultError(
                    index,
                    f"answers call {number + 1} of its turn, and call {expected + 1} has no result; "
                    "expected one for each",
                )
            name = messages[index].name or messages[caller].tool_calls[number].name
            found[place] = replace(messages[index], name=name)
    return tuple(found)
