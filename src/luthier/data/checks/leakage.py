"""Held-out rows whose input already stands in training: their score measures memory, not skill.

Inputs are compared exactly (case, spacing and punctuation at the ends aside) by 64-bit hashes, and nearly by MinHash;
a later split is compared with all earlier ones, so validation must not hold training rows, nor test validation rows.
Where all rows ask the same about a text in the system turn ("Summarize."), that turn belongs to the input too.
"""

from array import array
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from luthier.data.checks import _minhash
from luthier.data.checks._text import canonical, digest, normalized, rows, share, view
from luthier.data.checks.base import PLACES_KEPT, Check, Finding, Places
from luthier.examples import Document, Example

_EXACT_ADVICE = (
    "remove these rows from {split} (or from training): with them, the score of any trained model is too high"
)
_NEAR_ADVICE = "look at some of them; where only wording differs, remove them from {split} or move them to training"


class Leakage(Check):
    """Compares the inputs of each later split with those of the earlier ones."""

    min_splits: ClassVar[int] = 2

    def __init__(self) -> None:
        self._names: list[str] = []
        self._stages = array("q")
        self._asked, self._whole, self._places = array("Q"), array("Q"), Places()
        self._signatures = _minhash.Signatures()

    def see(self, example: Example, split: str) -> None:
        """Hash and sign the input (of a document: the whole text)."""
        if split not in self._names:
            self._names.append(split)
        texts = view(example)
        text = texts.reply if isinstance(example, Document) else texts.prompt
        self._stages.append(self._names.index(split))
        asked = digest(canonical(text))
        self._asked.append(asked)
        self._whole.append(digest(canonical(f"{texts.system}\n{text}")) if texts.system else asked)
        self._signatures.add(normalized(text))
        self._places.add(example.where)

    def findings(self) -> list[Finding]:
        """For each later split an error for inputs seen before, and a warning for inputs much like one seen before."""
        stages = np.array(self._stages, dtype=np.int64)
        digests = self._inputs()
        found: list[Finding] = []
        signatures, numbers = self._signatures.close()
        likeness, nearest = _minhash.nearest_earlier(signatures, stages[numbers])
        for stage, name in enumerate(self._names[1:], start=1):
            here = stages == stage
            leaked = here & np.isin(digests, digests[stages < stage])
            source = _first_earlier(digests, np.flatnonzero(leaked), stages < stage)
            close = (stages[numbers] == stage) & (likeness >= _minhash.NEAR) & ~leaked[numbers]
            found += self._report(name, int(here.sum()), np.flatnonzero(leaked), source, None)
            chosen = np.flatnonzero(close)
            found += self._report(name, int(here.sum()), numbers[chosen], numbers[nearest[chosen]], likeness[chosen])
        return found

    def _inputs(self) -> NDArray[np.uint64]:
        """(N,) a digest of each input; the system turn counts where, as in the split, it makes ten times as many."""
        asked, whole = (np.frombuffer(kept, dtype=np.uint64) for kept in (self._asked, self._whole))
        return whole if len(np.unique(asked)) * 10 <= len(np.unique(whole)) else asked

    def _report(
        self,
        split: str,
        total: int,
        leaked: NDArray[np.int64],
        source: NDArray[np.int64],
        likeness: NDArray[np.float64] | None,
    ) -> list[Finding]:
        if not leaked.size:
            return []
        earlier = " or ".join(self._names[: self._names.index(split)])
        how = "that also stands" if likeness is None else f"nearly the same (Jaccard of {_minhash.NEAR} or more) as one"
        pair = f"{self._places[int(leaked[0])]} and {self._places[int(source[0])]}"
        message = (
            f"{rows(leaked.size)} of {split} ({share(leaked.size, total)}) with an input {how} in {earlier}: {pair}"
        )
        if likeness is not None:
            message += f" ({likeness[0]:.2f})"
        where = tuple(self._places[int(index)] for index in leaked[:PLACES_KEPT])
        advice = (_EXACT_ADVICE if likeness is None else _NEAR_ADVICE).format(split=split)
        return [
            Finding("leakage", "error" if likeness is None else "warning", message, advice, where, int(leaked.size))
        ]


def _first_earlier(
    digests: NDArray[np.uint64], rows_: NDArray[np.int64], earlier: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """For each of `rows_` the first row among `earlier` with the same digest; each has one."""
    candidates = np.flatnonzero(earlier)
    order = np.argsort(digests[candidates], kind="stable")
    position = np.searchsorted(digests[candidates][order], digests[rows_])
    return np.asarray(candidates[order[position]], dtype=np.int64) if rows_.size else rows_
