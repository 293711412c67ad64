"""A row as people see it: which tokens are trained on, which only read, and which control the model.

On a terminal trained text stands on green, the rest is gray, and control tokens are bold; elsewhere trained text stands
between ⟦ and ⟧. Text of the data cannot move the cursor, change a color or pretend to be a mark.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from luthier.data.checks._text import safe
from luthier.examples import Row, Where
from luthier.preflight._text import decode

GREEN, GRAY, BOLD, PLAIN = "\x1b[30;42m", "\x1b[90m", "\x1b[1m", "\x1b[0m"
OPEN, CLOSE = "⟦", "⟧"


@dataclass(frozen=True)
class Segment:
    """Neighboring tokens of one kind, as text."""

    text: str
    trained: bool
    control: bool


def segments(row: Row, tokenizer: Any) -> Iterator[Segment]:
    """The text of a row in pieces; each control token is a piece of its own."""
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    # the first token has nothing before it, so it is never trained on whatever the mask says
    kinds = [
        (bool(weight) and at > 0, i in special)
        for at, (i, weight) in enumerate(zip(row.ids, row.loss_mask, strict=True))
    ]
    start = 0
    for at in range(1, len(kinds) + 1):
        if at == len(kinds) or kinds[at] != kinds[start] or kinds[start][1]:
            yield Segment(decode(tokenizer, row.ids[start:at]), *kinds[start])
            start = at


def render_row(row: Row, where: Where, tokenizer: Any, color: bool) -> str:
    """A heading with counts, then the row's text; line breaks are shown as ↵ and kept."""
    share = row.trained_tokens / len(row.ids) if row.ids else 0.0
    heading = (
        f"row {safe(row.id)} ({safe(str(where))}): {len(row.ids)} tokens, {row.trained_tokens} trained ({share:.0%})"
    )
    pieces = list(segments(row, tokenizer))
    body = "".join(map(_colored, pieces)) if color else _marked(pieces)
    return f"{BOLD}{heading}{PLAIN}\n{body}" if color else f"{heading}\n{body}"


def _colored(piece: Segment) -> str:
    style = (GREEN if piece.trained else GRAY) + (BOLD if piece.control else "")
    # styles end with each line, or the green would run to the right edge of the terminal
    return "\n".join(f"{style}{line}{PLAIN}" if line else "" for line in _visible(piece.text).split("\n"))


def _marked(pieces: list[Segment]) -> str:
    parts: list[str] = []
    trained = False
    for piece in pieces:
        if piece.trained != trained:
            parts.append(OPEN if piece.trained else CLOSE)
            trained = piece.trained
        text = _visible(piece.text)
        parts.append(text.replace(OPEN, "\\u27e6").replace(CLOSE, "\\u27e7"))
    return "".join(parts) + (CLOSE if trained else "")


def _visible(text: str) -> str:
    return "↵\n".join(safe(line) for line in text.split("\n"))
