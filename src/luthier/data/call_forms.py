"""How a chat template writes tool calls, found by rendering calls of made-up words and reading them back.

A form counts only where reading is the inverse of writing. Of such a form the texts around names and arguments are
taken apart as well, for grammars that hold a reply to them.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass

from luthier.data.replies import FORMS, CallForm, parse_reply_text
from luthier.examples import Message, ToolCall

ID = '"<id>"'
"""Stands in the texts of `CallText` where the template writes a call's id."""
_FIRST = ToolCall("vortlink", {"dwaxel": "stumril"}, "call00001")
_SECOND = ToolCall("mirplex", {"fribnot": 1}, "call00002")
Write = Callable[[Message], str | None]
"""What a template makes of a reply, as it is read; None if it refuses."""


@dataclass(frozen=True)
class CallText:
    """The texts that a template writes around names and arguments, both of them JSON: `begin` name `middle` arguments
    `end`, and `join` between the arguments of one call and the name of the next."""

    begin: str
    middle: str
    end: str
    join: str | None
    """None: it writes one call a reply."""
    beside_content: bool
    """Whether text may stand before the calls."""


@dataclass(frozen=True)
class Calls:
    """A form that the template writes."""

    form: CallForm
    text: CallText | None
    """None: it is read, but cannot be taken apart."""
    is_visible: bool = True
    """Whether openings and closings are text like any other; else tokens that are left out of a reply's text."""


def find_calls(write: Callable[[CallForm], Write]) -> Calls | None:
    """The form in which a template writes calls; None if reading none of them is the inverse.

    Args:
        write: for a form, what its reader is given.
    """
    for form in FORMS:
        written = write(form)(Message("assistant", tool_calls=(_FIRST,)))
        if written is not None and same_calls(parse_reply_text(written, form).tool_calls, (_FIRST,)):
            return Calls(form, _take_apart(written, write(form), form))
    return None


def same_calls(found: tuple[ToolCall, ...], wanted: tuple[ToolCall, ...]) -> bool:
    """Whether the calls are the same to the last digit; an id that only one side has does not count."""
    return len(found) == len(wanted) and all(
        a.name == b.name
        and json.dumps(a.arguments) == json.dumps(b.arguments)
        and (a.id == b.id or None in (a.id, b.id))
        for a, b in zip(found, wanted, strict=True)
    )


def lost_when_read(found: Message, said: Message, calls: Calls | None) -> str:
    """What a template does to the calls of a reply, in words, if they are not read back as they were; else empty."""
    if calls is None:
        return "in a form that is not read back, so no call that the model makes would be found"
    if not same_calls(found.tool_calls, said.tool_calls):
        return "so that reading them back gives others"
    if found.content.strip() != said.content.strip():  # templates may trim what stands beside calls
        return "so that its text beside the calls is lost"
    return ""


def _take_apart(written: str, write: Write, form: CallForm) -> CallText | None:
    name, arguments = json.dumps(_FIRST.name), json.dumps(_FIRST.arguments)
    begin, _, rest = written.partition(name)
    middle, _, end = rest.partition(arguments)
    if written != begin + name + middle + arguments + end:
        return None
    join = None
    both = write(Message("assistant", tool_calls=(_FIRST, _SECOND)))
    if both is not None and same_calls(parse_reply_text(both, form).tool_calls, (_FIRST, _SECOND)):
        join = _without_ids(both.removeprefix(written.removesuffix(end)).partition(json.dumps(_SECOND.name))[0])
    beside = write(Message("assistant", "brofind", (_FIRST,)))
    begin, middle, end = map(_without_ids, (begin, middle, end))
    return CallText(begin, middle, end, join, beside is not None and beside.startswith("brofind"))


def _without_ids(text: str) -> str:
    return text.replace(json.dumps(_FIRST.id), ID).replace(json.dumps(_SECOND.id), ID)
