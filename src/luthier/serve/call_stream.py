"""A reply as it is written, taken apart into text and tool calls.

Text is passed on at once, but for what may be the beginning of a call. A call is passed on when it is whole: until then
nobody can tell it from text. Put together, the pieces are what `parse_reply_text` makes of the whole reply.
"""

from collections.abc import Iterator
from typing import TypeAlias

from luthier.data.replies import CallForm, parse_calls_at, parse_reply_text
from luthier.examples import ToolCall
from luthier.serve.text import overlap

Piece: TypeAlias = str | ToolCall


class CallReader:
    """Reads one reply, whose calls are visible text."""

    def __init__(self, form: CallForm) -> None:
        self._form = form
        self._held = ""
        self._is_text = False

    def add(self, text: str) -> Iterator[Piece]:
        """What is known after more of the reply."""
        self._held += text
        if self._form.opening:
            yield from self._opened()
            return
        # where a call is the whole reply, what begins otherwise is text to its end
        self._is_text = self._is_text or not f"{self._held.lstrip()}{{".startswith("{")
        if self._is_text:
            yield from self._pass(len(self._held))

    def _opened(self) -> Iterator[Piece]:
        opening, closing = self._form.opening, self._form.closing
        while (begin := self._held.find(opening)) >= 0:
            yield from self._pass(begin - self._held[:begin].endswith("\n"))
            start = self._held.index(opening) + len(opening)
            parsed = parse_calls_at(self._held, start, self._form) if closing in self._held else None
            if parsed is None:
                return  # not whole yet, or no call at all
            calls, end = parsed
            self._held = self._held[end:]
            yield from calls
        kept = overlap(self._held, opening)
        kept += self._held[: len(self._held) - kept].endswith("\n")  # it belongs to the call, if there is one
        yield from self._pass(len(self._held) - kept)

    def _pass(self, count: int) -> Iterator[str]:
        text, self._held = self._held[:count], self._held[count:]
        if text:
            yield text

    def flush(self) -> Iterator[Piece]:
        """What was held back, when the reply is over."""
        rest = parse_reply_text(self._held, self._form)
        self._held = ""
        if rest.content:
            yield rest.content
        yield from rest.tool_calls
