"""Where two tokenizers cut a reply in the same way, so that what one model expects there can be told to the other.

Both models read the same text. A token of one stands where a token of the other does if both begin and end at the same
byte of the same turn; before it both have read the same, and it is the same word to both. Where the text is cut
otherwise nothing can be told: the first piece of a word for one is the whole word for the other. This is the part of
cross-tokenizer distillation that compares probabilities of equal tokens (what TRL's GOLD calls the matched vocabulary);
left out is comparing sorted probabilities of unequal ones (ULD, Boizard et al. 2024, arXiv:2402.12030).
"""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

Piece: TypeAlias = bytes | None
"""What a token says; None: it ends a turn."""


def aligned(mine: Sequence[Piece], theirs: Sequence[Piece]) -> list[int | None]:
    """For each of my tokens the place of theirs that says the same at the same place; None where there is none.

    Of a turn whose text is another one, nothing is aligned. Mine may end earlier.
    """
    places = {span: place for place, span in enumerate(_spans(theirs))}
    differing = _differing_turns(mine, theirs)
    return [None if span[0] in differing else places.get(span) for span in _spans(mine)]


def _spans(pieces: Sequence[Piece]) -> list[tuple[int, int, int]]:
    """Turn, first byte and end of each token; one that ends a turn has an end that no text has."""
    found, turn, at = [], 0, 0
    for piece in pieces:
        if piece is None:
            found.append((turn, at, -1))
            turn, at = turn + 1, 0
        else:
            found.append((turn, at, at + len(piece)))
            at += len(piece)
    return found


def _differing_turns(mine: Sequence[Piece], theirs: Sequence[Piece]) -> set[int]:
    a, b = _texts(mine), _texts(theirs)
    return {turn for turn, text in enumerate(a) if turn >= len(b) or not b[turn].startswith(text)}


def _texts(pieces: Sequence[Piece]) -> list[bytes]:
    """The text of each turn."""
    texts = [b""]
    for piece in pieces:
        if piece is None:
            texts.append(b"")
        else:
            texts[-1] += piece
    return texts


def shared_vocabulary(mine: Mapping[int, bytes], theirs: Mapping[int, bytes]) -> dict[int, int]:
    """Their token ids and mine that say the same, by theirs; of several that do, the first of each."""
    first: dict[bytes, int] = {}
    for token, piece in sorted(mine.items()):
        first.setdefault(piece, token)
    taken: set[bytes] = set()
    found = {}
    for token, piece in sorted(theirs.items()):
        if piece in first and piece not in taken:
            found[token] = first[piece]
            taken.add(piece)
    return found
