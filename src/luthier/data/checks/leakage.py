"""Held-out rows whose input already stands in training: their score measures memory, not skill.

An error needs proof: the held-out row asks the same (`data/prompts.py`) as a trained reply of an earlier split, which
in a chat may be any. Those that only ask alike (other case, another system turn, other turns around the question) or
nearly the same (MinHash) are warnings. A later split is compared with all earlier ones. Where all rows ask alike about
a text in the system turn ("Summarize."), asking alike takes the system turn in.
"""

from array import array
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from luthier.data.checks import _minhash
from luthier.data.checks._text import normalized, rows, share, view
from luthier.data.checks.base import PLACES_KEPT, Check, Finding, Places, Severity
from luthier.data.prompts import least_common, system_counts
from luthier.examples import Document, Example

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]


class _Kind(NamedTuple):
    """How a kind of leak is reported; `how` completes "with an input"."""

    severity: Severity
    how: str
    advice: str


_SAME = _Kind(
    "error",
    "that is also answered in {earlier}",
    "remove these rows from {split} (or from training): with them, the score of any trained model is too high",
)
_ALIKE = _Kind(
    "warning",
    "that is answered in {earlier} once case, punctuation, system turn and the turns around it are put aside",
    "look at some of them; where the answer is the same, remove them from {split} or move them to training",
)
_NEAR = _Kind(
    "warning",
    f"nearly the same (Jaccard of {_minhash.NEAR} or more) as one in {{earlier}}",
    "look at some of them; where only wording differs, remove them from {split} or move them to training",
)


class _Keys:
    """Digests that belong to rows, any number to each: a digest and its row, in the order they came in."""

    def __init__(self) -> None:
        self._digests, self._owners = array("Q"), array("I")

    def add(self, digests: tuple[int, ...], owner: int) -> None:
        self._digests.extend(digests)
        self._owners.extend([owner] * len(digests))

    def kept(self) -> tuple[U64, I64]:
        owners = np.array(self._owners, dtype=np.int64)
        return np.array(self._digests, dtype=np.uint64), owners


class Leakage(Check):
    """Compares the inputs of each later split with those of the earlier ones."""

    min_splits: ClassVar[int] = 2

    def __init__(self) -> None:
        self._names: list[str] = []
        self._stages = array("B")
        self._final, self._folded, self._whole = array("Q"), array("Q"), array("Q")
        self._trained, self._turns = _Keys(), _Keys()
        self._places, self._signatures = Places(), _minhash.Signatures()

    def see(self, example: Example, split: str) -> None:
        """Hash and sign the input (of a document: the whole text)."""
        if split not in self._names:
            self._names.append(split)
        texts = view(example)
        asked = texts.asked()
        row = self._places.add(example.where)
        self._stages.append(self._names.index(split))
        self._final.append(asked.final)
        self._folded.append(asked.folded)
        self._whole.append(asked.whole)
        self._trained.add(asked.trained, row)
        self._turns.add(asked.turns, row)
        self._signatures.add(normalized(texts.reply if isinstance(example, Document) else texts.prompt))

    def findings(self) -> list[Finding]:
        """For each later split an error for inputs seen before, and warnings for inputs like one seen before."""
        stages = np.array(self._stages, dtype=np.int64)
        same, alike = self._same_keys(), self._alike_keys()
        signatures, numbers = self._signatures.close()
        likeness, nearest = _minhash.nearest_earlier(signatures, stages[numbers])
        found: list[Finding] = []
        for stage, name in enumerate(self._names[1:], start=1):
            total = int((stages == stage).sum())
            sources = _sources(same[0], same[1], stages, stage)
            leaked = sources >= 0
            found += self._report(name, total, _SAME, np.flatnonzero(leaked), sources[leaked])
            sources = _sources(alike, alike, stages, stage)
            like = (sources >= 0) & ~leaked
            found += self._report(name, total, _ALIKE, np.flatnonzero(like), sources[like])
            close = (stages[numbers] == stage) & (likeness >= _minhash.NEAR) & ~(leaked | like)[numbers]
            chosen = np.flatnonzero(close)
            found += self._report(name, total, _NEAR, numbers[chosen], numbers[nearest[chosen]], likeness[chosen])
        return found

    def _same_keys(self) -> tuple[tuple[U64, I64], tuple[U64, I64]]:
        """What each row asks at its end, with the row; and all that each row answers, with the row."""
        final = np.array(self._final, dtype=np.uint64)
        rows_: I64 = np.arange(len(final))
        trained, owners = self._trained.kept()
        return (final, rows_), (np.concatenate((final, trained)), np.concatenate((rows_, owners)))

    def _alike_keys(self) -> tuple[U64, I64]:
        """Folded inputs and, unless all rows ask alike, the longer user turns that are no template, with their rows."""
        folded, whole = (np.array(kept, dtype=np.uint64) for kept in (self._folded, self._whole))
        rows_: I64 = np.arange(len(folded))
        if system_counts(len(np.unique(folded)), len(np.unique(whole))):
            return whole, rows_
        turns, owners = self._turns.kept()
        digests, counts = np.unique(np.concatenate((folded, turns)), return_counts=True)
        rare = counts[np.searchsorted(digests, turns)] < least_common(len(folded))
        return np.concatenate((folded, turns[rare])), np.concatenate((rows_, owners[rare]))

    def _report(
        self, split: str, total: int, kind: _Kind, leaked: I64, source: I64, likeness: NDArray[np.float64] | None = None
    ) -> list[Finding]:
        if not leaked.size:
            return []
        earlier = " or ".join(self._names[: self._names.index(split)])
        where = tuple(self._places[int(index)] for index in leaked[:PLACES_KEPT])
        message = (
            f"{rows(leaked.size)} of {split} ({share(leaked.size, total)}) with an input "
            f"{kind.how.format(earlier=earlier)}: {where[0]} and {self._places[int(source[0])]}"
        )
        if likeness is not None:
            message += f" ({likeness[0]:.2f})"
        return [Finding("leakage", kind.severity, message, kind.advice.format(split=split), where, int(leaked.size))]


def _sources(asked: tuple[U64, I64], answered: tuple[U64, I64], stages: I64, stage: int) -> I64:
    """(N,) for each row of `stage` the first row of an earlier stage that answers what it asks; -1 for none.

    Args:
        asked: digests of what rows ask, and the row of each.
        answered: digests of what rows answer, and the row of each.
        stages: (N,) of each row.
    """
    sources = np.full(len(stages), -1, dtype=np.int64)
    wanted, row = (kept[stages[asked[1]] == stage] for kept in asked)
    earlier = stages[answered[1]] < stage
    keys, owners = answered[0][earlier], answered[1][earlier]
    if not keys.size or not wanted.size:
        return sources
    order = np.lexsort((owners, keys))
    keys, owners = keys[order], owners[order]
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    hit = keys[at] == wanted
    sources[row[hit]] = owners[at[hit]]
    return sources
