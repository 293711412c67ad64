"""A source is cut into passages at the borders of paragraphs and sentences, so that each can be read by itself.

Lengths are counted in words, which need no tokenizer and mean the same whatever model embeds or reads them. A word is
what `lexical.words` calls one. A sentence that is longer than a passage is cut between words, never inside one. The
end of one passage is repeated at the beginning of the next, whole sentences only, so that what a border separates is
found together in one of them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from luthier.rag.lexical import WORD
from luthier.rag.passages import Passage, Source

_PARAGRAPH = re.compile(r"\n[^\S\n]*\n\s*")
# a full stop, with the quotes or brackets that close after it, and white space; CJK stops need none
_SENTENCE = re.compile(r"[.!?…][\"'”’)\]]*\s+|[。！？]\s*")


@dataclass(frozen=True)
class _Piece:
    """A sentence, or a part of a very long one."""

    start: int
    end: int
    words: int
    opens_paragraph: bool


def chunk(source: Source, size: int | None, overlap: int = 0) -> list[Passage]:
    """The passages of a source, in order; together they hold every word of it.

    Args:
        source: what is cut.
        size: most words of a passage; None leaves the source whole.
        overlap: most words that a passage repeats of the one before; less than `size`.
    """
    if size is None:
        return _passages(source, [(0, len(source.text))])
    pieces = _pieces(source.text, size)
    spans, first = [], 0
    while first < len(pieces):
        last = _fill(pieces, first, size)
        spans.append((pieces[first].start, pieces[last - 1].end))
        first = last if last == len(pieces) else _step_back(pieces, first, last, overlap, size)
    return _passages(source, spans)


def _fill(pieces: Sequence[_Piece], first: int, size: int) -> int:
    """Where the passage ends that begins with piece `first`: full, or at a paragraph when it is half full already."""
    words, last = 0, first
    while last < len(pieces) and words + pieces[last].words <= size:
        words += pieces[last].words
        last += 1
    if last == len(pieces):
        return last
    borders = [at for at in range(first + 1, last + 1) if pieces[at].opens_paragraph]
    if borders and 2 * sum(piece.words for piece in pieces[first : borders[-1]]) >= size:
        return borders[-1]
    return max(last, first + 1)


def _step_back(pieces: Sequence[_Piece], first: int, last: int, overlap: int, size: int) -> int:
    """Where the next passage begins: whole sentences back, but not across a paragraph, and never without progress."""
    words, at, ahead = 0, last, pieces[last].words
    while at - 1 > first and not pieces[at].opens_paragraph:
        words += pieces[at - 1].words
        if words > overlap or words + ahead > size:
            break
        at -= 1
    return at


def _pieces(text: str, size: int) -> list[_Piece]:
    found: list[_Piece] = []
    for paragraph in _split(text, 0, len(text), _PARAGRAPH):
        opens = True
        for start, end in _split(text, *paragraph, _SENTENCE):
            for piece in _within(text, start, end, size):
                found.append(_Piece(*piece, opens))
                opens = False
    return found


def _split(text: str, start: int, end: int, border: re.Pattern[str]) -> list[tuple[int, int]]:
    """Spans between the ends of borders, without white space around them; none that is empty."""
    ends = [match.end() for match in border.finditer(text, start, end)]
    spans = zip([start, *ends], [*ends, end], strict=True)
    return [span for a, b in spans if (span := _strip(text, a, b))[0] < span[1]]


def _strip(text: str, start: int, end: int) -> tuple[int, int]:
    inner = text[start:end]
    return start + len(inner) - len(inner.lstrip()), end - len(inner) + len(inner.rstrip())


def _within(text: str, start: int, end: int, size: int) -> list[tuple[int, int, int]]:
    """The span with its words; cut before every `size`-th word if it has more."""
    words = [match.start() for match in WORD.finditer(text, start, end)]
    if len(words) <= size:
        return [(start, end, len(words))]
    cuts = [start, *words[size::size], end]
    counts = [min(size, len(words) - size * index) for index in range(len(cuts) - 1)]
    return [(*_strip(text, a, b), n) for a, b, n in zip(cuts, cuts[1:], counts, strict=False)]


def _passages(source: Source, spans: Sequence[tuple[int, int]]) -> list[Passage]:
    return [
        Passage(
            source.id if len(spans) == 1 else f"{source.id}#{number}",
            source.text[start:end],
            source.title,
            source.id,
            start,
            end,
        )
        for number, (start, end) in enumerate(spans, 1)
    ]
