"""Rows that say exactly what an earlier row of the same split says.

A repeated row is weighted as often as it occurs: the model memorizes it, and the validation loss looks better than
it is. Rows are told apart by 64-bit hashes of all their turns; ids and places do not count.
"""

from array import array

import numpy as np

from luthier.data.checks._text import rows, share, view
from luthier.data.checks.base import PLACES_KEPT, Check, Finding, Places
from luthier.examples import Example


class _Split:
    def __init__(self) -> None:
        self.digests, self.places = array("Q"), Places()


class ExactDuplicates(Check):
    """Counts the rows of each split that repeat an earlier one."""

    def __init__(self) -> None:
        self._splits: dict[str, _Split] = {}

    def see(self, example: Example, split: str) -> None:
        """Keep 16 bytes for the row."""
        kept = self._splits.setdefault(split, _Split())
        kept.digests.append(view(example).exact())
        kept.places.add(example.where)

    def findings(self) -> list[Finding]:
        """One warning for each split with repeats; places are those of the repeats, not of the first row."""
        return [finding for split, kept in self._splits.items() for finding in _repeats(split, kept)]


def _repeats(split: str, kept: _Split) -> list[Finding]:
    digests = np.frombuffer(kept.digests, dtype=np.uint64)
    order = np.argsort(digests, kind="stable")
    ordered = digests[order]
    same = np.flatnonzero(ordered[1:] == ordered[:-1]) + 1
    if not same.size:
        return []
    repeats = np.sort(order[same])
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    sizes = np.diff(np.append(starts, ordered.size))
    example = int(repeats[0])
    first = int(order[np.searchsorted(ordered, digests[example])])
    message = (
        f"{rows(repeats.size)} of {split} ({share(repeats.size, len(digests))}) repeat an earlier row exactly: "
        f"{int((sizes > 1).sum()):,} different rows occur more than once, up to {int(sizes.max()):,} times; "
        f"{kept.places[example]} repeats {kept.places[first]}"
    )
    if split == "train":
        advice = 'data.duplicates = "drop" leaves them out of training; keep them if the frequency shall be learned'
    else:
        advice = f"remove them: in {split} each counts as often as it occurs; data.duplicates leaves {split} as it is"
    where = tuple(kept.places[int(index)] for index in repeats[:PLACES_KEPT])
    return [Finding("exact_duplicates", "warning", message, advice, where, int(repeats.size))]
