"""Texts as hashes of their words, and the word hashes that tell a run of words from any other.

Two sketches of a text are made from them. Its *set of words*, for likeness whatever the order; and its *fingerprints*,
for a run of words that stands in a longer text: of every `window` triples of words in a row the one with the smallest
hash is kept (winnowing, Schleimer, Wilkerson and Aiken 2003). A run of `window + 2` words that two texts share gives
them a fingerprint in common, and the fingerprints that lie inside of the run are the same in both.
"""

from typing import TypeAlias
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

U32: TypeAlias = NDArray[np.uint32]
U64: TypeAlias = NDArray[np.uint64]
I64: TypeAlias = NDArray[np.int64]
F64: TypeAlias = NDArray[np.float64]

RUN = 3
"""Words of which a fingerprint is the hash."""
WINDOW = 2
"""Fingerprints of which one is kept; runs of `WINDOW + RUN - 1` words are found for certain."""
_APOSTROPHE = "\u2019".encode()
_SCRIPTS_WITHOUT_BLANKS = frozenset((0xE0, 0xE1, *range(0xE3, 0xEE), *range(0xF0, 0xF5)))


def word_hashes(text: bytes) -> list[int]:
    """32-bit hashes of the words of a text that `normalized` folded, in order.

    Words of scripts that may be written without blanks (Chinese, Thai) are cut into overlapping pairs of characters.
    """
    if text.isascii():
        return [crc32(word) for word in text.split()]
    hashes: list[int] = []
    for word in text.replace(_APOSTROPHE, b" ").split():
        if word.isascii() or _SCRIPTS_WITHOUT_BLANKS.isdisjoint(word):
            hashes.append(crc32(word))
        else:
            letters = word.decode("utf-8", "surrogatepass")
            pairs = (letters[at : at + 2] for at in range(max(len(letters) - 1, 1)))
            hashes.extend(crc32(pair.encode("utf-8", "surrogatepass")) for pair in pairs)
    return hashes


def triples(words: U32) -> U32:
    """(M - 2,) hashes of the runs of three words in (M,) word hashes; empty for fewer than three words."""
    if len(words) < RUN:
        return np.zeros(0, dtype=np.uint32)
    mixed = words[:-2] * np.uint32(0x9E3779B1)
    mixed = (mixed ^ (mixed >> np.uint32(15)) ^ words[1:-1]) * np.uint32(0x85EBCA77)
    mixed = (mixed ^ (mixed >> np.uint32(13)) ^ words[2:]) * np.uint32(0xC2B2AE3D)
    return np.asarray(mixed ^ (mixed >> np.uint32(16)), dtype=np.uint32)


def picked(hashes: U32, window: int = WINDOW) -> I64:
    """Where the smallest hash of each `window` in a row stands, each place once; empty for fewer hashes than that."""
    if len(hashes) < window:
        return np.zeros(0, dtype=np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(hashes, window)
    return np.unique(np.arange(len(windows)) + windows.argmin(axis=1))
