"""Rows that are nearly the same as an earlier row: other spacing, a corrected typo, one changed word.

They weigh like repeats in training, and a random split puts one of them on each side. Found by MinHash over the
varying part of each row (see `_minhash.py`), so a shared instruction does not make all rows alike.
"""

from array import array

import numpy as np

from luthier.data.checks import _minhash
from luthier.data.checks._text import rows, share, view
from luthier.data.checks.base import PLACES_KEPT, Check, Finding, Places
from luthier.examples import Example


class NearDuplicates(Check):
    """Groups the rows of the first split (what is trained on) whose texts have an estimated Jaccard of 0.8 or more."""

    def __init__(self) -> None:
        self._split: str | None = None
        self._signatures = _minhash.Signatures()
        self._digests, self._places = array("Q"), Places()

    def see(self, example: Example, split: str) -> None:
        """Sign the row: 144 bytes."""
        self._split = self._split or split
        if split != self._split:
            return
        texts = view(example)
        self._signatures.add(texts.normalized_row())
        self._digests.append(texts.exact())
        self._places.add(example.where)

    def findings(self) -> list[Finding]:
        """One warning that counts rows; exact repeats are left to their own check."""
        digests = np.frombuffer(self._digests, dtype=np.uint64)
        unique = np.zeros(len(digests), dtype=bool)
        unique[np.unique(digests, return_index=True)[1]] = True
        signatures, numbers = self._signatures.close(unique)
        group, likeness = _minhash.groups(signatures)
        later = np.flatnonzero(group != np.arange(len(group)))
        if not later.size:
            return []
        sizes = np.bincount(group)
        example = int(later[0])
        where = tuple(self._places[int(numbers[index])] for index in later[:PLACES_KEPT])
        first = self._places[int(numbers[group[example]])]
        message = (
            f"{rows(later.size)} of {self._split} ({share(later.size, len(digests))}) nearly the same as an "
            f"earlier row (estimated Jaccard of {_minhash.NEAR} or more over the varying text): "
            f"in groups of up to {int(sizes.max()):,} rows ({int((sizes > 1).sum()):,} in all); "
            f"{where[0]} is like {first}"
        )
        if example in likeness:
            message += f" ({likeness[example]:.2f})"
        advice = (
            "look at some of them: keep one of each group unless the variants are meant; "
            "the split keeps those on one side whose prompts are alike"
        )
        return [Finding("near_duplicates", "warning", message, advice, where, int(later.size))]
