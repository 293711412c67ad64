"""Which questions stand, word for word or nearly, inside of a longer text.

A question is contained in a text that has at least nine of ten of its fingerprints (`_words.py`), two of them such as
few texts have: "how long will it take" is no evidence. A text keeps two thirds of its triples of words, a long one
fewer: the window doubles until at most 2,048 are left, and a question with fewer triples than such a window is not
looked for in it.
"""

import itertools
from array import array
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from luthier.data.checks._words import F64, I64, RUN, U32, WINDOW, picked, triples
from luthier.data.prompts import least_common

SHARE = 0.9
MIN_WORDS = 6
"""A question with fewer words may stand in a longer text by chance."""
MIN_OWN, MIN_FINGERPRINTS = 2, 3
"""Fingerprints that few texts have, and fingerprints of all, that a question needs."""
MOST_FINGERPRINTS = 2048
MOST_ASKED = 4096
"""Words of a question that are looked at."""
RARE = 1000
_BATCH_WORDS, _AT_ONCE = 1 << 14, 1 << 20
_TABLE = (1 << 22) - 1


class Contained:
    """Takes texts and questions as they come, and tells which question stands in which text."""

    def __init__(self) -> None:
        self._waiting: list[U32] = []
        self._owners: list[int] = []
        self._words_waiting = 0
        self._fingerprints, self._ends = array("I"), array("Q", [0])
        self._of, self._doubled = array("I"), array("B")  # by text
        self._asked: list[U32] = []
        self._asked_by = array("I")
        self._texts = 0

    def add_text(self, words: list[int], owner: int) -> None:
        """Take a text in which questions may stand; `owner` is the number that comes back."""
        self._texts += 1
        hashes = np.array(words, dtype=np.uint32)
        if len(hashes) > 2 * MOST_FINGERPRINTS:
            self._keep_long(hashes, owner)
            return
        self._waiting.append(hashes)
        self._owners.append(owner)
        self._words_waiting += len(hashes)
        if self._words_waiting > _BATCH_WORDS:
            self._keep_waiting()

    def add_question(self, words: list[int], owner: int) -> None:
        """Take a question that may stand in a text; a short one is left out."""
        if len(words) >= MIN_WORDS:
            self._asked.append(triples(np.array(words[:MOST_ASKED], dtype=np.uint32)))
            self._asked_by.append(owner)

    def _keep_waiting(self) -> None:
        """Fingerprints of many texts at once. Windows over the seam of two texts only add some."""
        if not self._waiting:
            return
        words = np.concatenate(self._waiting)
        begins = np.cumsum([0, *map(len, self._waiting)])
        hashes = triples(words)
        at = picked(hashes)
        text = np.searchsorted(begins, at, side="right") - 1
        whole = at + RUN <= begins[text + 1]
        at, text = at[whole], text[whole]
        self._store(hashes[at], np.bincount(text, minlength=len(self._waiting)), self._owners, 0)
        self._waiting, self._owners, self._words_waiting = [], [], 0

    def _keep_long(self, words: U32, owner: int) -> None:
        hashes, doubled = triples(words), 0
        at = picked(hashes)
        while len(at) > MOST_FINGERPRINTS:
            doubled += 1
            at = picked(hashes, WINDOW << doubled)
        self._store(hashes[at], np.array([len(at)]), [owner], doubled)

    def _store(self, hashes: U32, counts: I64, owners: list[int], doubled: int) -> None:
        """Keep the fingerprints of texts, one text after the other."""
        self._fingerprints.frombytes(hashes.tobytes())
        self._ends.extend((self._ends[-1] + np.cumsum(counts)).tolist())
        self._of.extend(owners)
        self._doubled.extend([doubled] * len(owners))

    def found(self) -> Iterator[tuple[int, I64, F64]]:
        """For each question that stands in some text: its owner, the owners of these texts and the share of each.

        A question that stands in texts of several lengths may come more than once.
        """
        self._keep_waiting()
        if not self._asked:
            return
        doubled = np.frombuffer(self._doubled, dtype=np.uint8)
        for level in np.unique(doubled).tolist():
            yield from self._found(doubled == level, WINDOW << level)

    def _found(self, among: NDArray[np.bool_], window: int) -> Iterator[tuple[int, I64, F64]]:
        """The same for texts of one window."""
        own = [np.unique(hashes[picked(hashes, window)]) for hashes in self._asked]
        vocabulary = np.unique(np.concatenate(own))
        if not len(vocabulary):
            return
        fingerprint, text = self._hits(vocabulary, among)
        texts = np.bincount(fingerprint, minlength=len(vocabulary))
        is_own = texts < min(least_common(self._texts), RARE)
        starts = np.concatenate(([0], np.cumsum(texts)))
        holders_of = [text[start:end] for start, end in itertools.pairwise(starts.tolist())]
        for owner, hashes in zip(self._asked_by, own, strict=True):
            at = np.searchsorted(vocabulary, hashes)
            rare = at[is_own[at]]
            if len(rare) < MIN_OWN or len(at) < MIN_FINGERPRINTS:
                continue
            holders, counts = np.unique(np.concatenate([holders_of[k] for k in rare]), return_counts=True)
            holders, counts = holders[counts >= SHARE * len(rare)], counts[counts >= SHARE * len(rare)]
            for k in at[~is_own[at]] if len(holders) else ():
                counts = counts + np.isin(holders, holders_of[k])
            share = counts / len(at)
            if len(share) and share.max() >= SHARE:
                yield owner, holders[share >= SHARE], share[share >= SHARE]

    def _hits(self, vocabulary: U32, among: NDArray[np.bool_]) -> tuple[I64, I64]:
        """Which fingerprint of `vocabulary` stands in which text, each pair once, ordered by fingerprint."""
        kept, of = np.frombuffer(self._fingerprints, dtype=np.uint32), np.frombuffer(self._of, dtype=np.uint32)
        ends = np.frombuffer(self._ends, dtype=np.uint64)
        wanted = np.zeros(_TABLE + 1, dtype=bool)
        wanted[vocabulary & np.uint32(_TABLE)] = True
        pairs = [np.zeros(0, dtype=np.uint64)]
        for start in range(0, len(kept), _AT_ONCE):
            at = np.flatnonzero(wanted[kept[start : start + _AT_ONCE] & np.uint32(_TABLE)]) + start
            column = np.minimum(np.searchsorted(vocabulary, kept[at]), len(vocabulary) - 1)
            text = np.searchsorted(ends, at.astype(np.uint64), side="right") - 1
            hit = (vocabulary[column] == kept[at]) & among[text]
            pairs.append((column[hit].astype(np.uint64) << np.uint64(32)) | of[text[hit]])
        both = np.unique(np.concatenate(pairs))
        return (both >> np.uint64(32)).astype(np.int64), (both & np.uint64(0xFFFFFFFF)).astype(np.int64)
