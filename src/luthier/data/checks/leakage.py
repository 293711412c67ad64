"""Held-out rows whose input already stands in training: their score measures memory, not skill.

An error needs proof: the held-out row asks the same (`data/prompts.py`) as a trained reply of an earlier split, which
in a chat may be any. Those that only ask alike (other case, another system turn, other turns around the question) or
nearly the same are warnings: by shingles (MinHash), by words (reworded, `_likeness.py`), or because the question stands
in a longer row or in a system turn, as one of its examples (`_containment.py`). A later split is compared with all
earlier ones. Where all rows ask alike about a text in the system turn ("Summarize."), asking alike takes the system
turn in.
"""

from array import array
from collections.abc import Iterator
from typing import ClassVar, NamedTuple

import numpy as np

from luthier.data.checks import _minhash
from luthier.data.checks._containment import Contained
from luthier.data.checks._likeness import LEAST, Nearest, WordSets, answers_tell, limit
from luthier.data.checks._shown import Pairs, Shown, pairs
from luthier.data.checks._text import normalized, rows, share, view
from luthier.data.checks._words import F64, I64, U64, word_hashes
from luthier.data.checks.base import PLACES_KEPT, Check, Finding, Places, Severity
from luthier.data.prompts import digest, least_common, system_counts
from luthier.examples import Document, Example


class Kind(NamedTuple):
    """How a kind of leak is reported; `how` completes "with an input"."""

    severity: Severity
    how: str
    advice: str


SAME = Kind(
    "error",
    "that is also answered in {earlier}",
    "remove these rows from {split} (or from training): with them, the score of any trained model is too high",
)
ALIKE = Kind(
    "warning",
    "that is answered in {earlier} once case, punctuation, system turn and the turns around it are put aside",
    "look at some of them; where the answer is the same, remove them from {split} or move them to training",
)
NEAR = Kind(
    "warning",
    f"nearly the same (Jaccard of {_minhash.NEAR} or more) as one in {{earlier}}",
    "look at some of them; where only wording differs, remove them from {split} or move them to training",
)
REWORDED = Kind(
    "warning",
    "and answer like one in {earlier}, reworded",
    "look at some of them; where one is the other reworded, remove them from {split} or move them to training",
)
CLOSE = Kind(
    "note",
    "nearer to one in {earlier}, which has another answer, than such rows naturally are",
    "look at some of them: fine if the difference is what the answer turns on",
)
INSIDE = Kind(
    "warning",
    "that stands inside of a longer text of {earlier}",
    "look at some of them; where the longer text answers it, too, remove them from {split} or from that text",
)
SHOWN = Kind(
    "warning",
    "that stands in a system turn, as an example would",
    "take these examples out of the prompt or these rows out of {split}: the model is shown what it is asked",
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
        self._sets, self._answers = WordSets(), array("Q")
        self._inside, self._shown = Contained(), Shown()

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
        text = normalized(texts.reply if isinstance(example, Document) else texts.prompt)
        self._signatures.add(text)
        words = word_hashes(text)
        self._sets.add(words)
        self._answers.append(0 if isinstance(example, Document) else digest(normalized(texts.reply)))
        rest = "" if isinstance(example, Document) else texts.full[len(texts.prompt) :]
        self._inside.add_text(words + word_hashes(normalized(rest)), row)
        if len(self._names) > 1:
            self._inside.add_question(words, row)
            self._shown.add_question(words, row)
        if texts.system:
            self._shown.add_system(texts.system, row)

    def findings(self) -> list[Finding]:
        """For each later split an error for inputs seen before, and warnings for inputs like one seen before."""
        return [self._finding(*leaks) for leaks in self.leaks()]

    def leaks(self) -> Iterator[tuple[str, Kind, Pairs]]:
        """For each later split the leaked rows of each kind; a row counts once, for the gravest.

        Rows are numbered in the order in which they were seen.
        """
        stages = np.array(self._stages, dtype=np.int64)
        answers = np.frombuffer(self._answers, dtype=np.uint64)
        tell, long_enough, own = answers_tell(answers), self._sets.comparable(), self._sets.among(stages == 0)
        same, alike = self._same_keys(), self._alike_keys()
        near, (close, reworded) = self._near(stages), self._sets.nearest_earlier(stages, answers)
        inside, shown = _containing(self._inside, stages), self._shown.pairs()
        for stage, name in enumerate(self._names[1:], start=1):
            here = stages == stage
            told = np.zeros(len(stages), dtype=bool)
            natural = limit(close.likeness[here & long_enough], own)
            kinds = [
                (SAME, _with(_sources(same[0], same[1], stages, stage))),
                (ALIKE, _with(_sources(alike, alike, stages, stage))),
                (NEAR, _over(near, _minhash.NEAR)),
                (REWORDED, _over(reworded, np.where(tell, LEAST, natural))),
                (INSIDE, inside),
                (SHOWN, shown),
                (CLOSE, _over(close, natural)),
            ]
            for kind, (leaked, source, likeness) in kinds:
                new = here[leaked] & ~told[leaked]
                told[leaked[new]] = True
                if new.any():
                    yield name, kind, (leaked[new], source[new], likeness[new])

    def _near(self, stages: I64) -> Nearest:
        """The earlier row that is likest by MinHash."""
        signatures, numbers = self._signatures.close()
        near = Nearest.none(len(stages))
        near.likeness[numbers], at = _minhash.nearest_earlier(signatures, stages[numbers])
        near.number[numbers[at >= 0]] = numbers[at[at >= 0]]
        return near

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

    def _finding(self, split: str, kind: Kind, pairs: Pairs) -> Finding:
        leaked, source, likeness = pairs
        stage = self._names.index(split)
        earlier = " or ".join(self._names[:stage])
        where = tuple(self._places[int(index)] for index in leaked[:PLACES_KEPT])
        message = (
            f"{rows(leaked.size)} of {split} ({share(leaked.size, self._stages.count(stage))}) with an input "
            f"{kind.how.format(earlier=earlier)}: {where[0]} and {self._places[int(source[0])]}"
        )
        if likeness[0]:
            message += f" ({likeness[0]:.2f})"
        return Finding("leakage", kind.severity, message, kind.advice.format(split=split), where, int(leaked.size))


def _with(sources: I64) -> Pairs:
    """The rows that have a source, the source of each, and no likeness."""
    leaked = np.flatnonzero(sources >= 0)
    return leaked, sources[leaked], np.zeros(len(leaked))


def _over(near: Nearest, least: F64 | float) -> Pairs:
    """The rows that are at least so like their nearest one, those and their likeness."""
    leaked = np.flatnonzero((near.number >= 0) & (near.likeness >= least))
    return leaked, near.number[leaked], near.likeness[leaked]


def _containing(texts: Contained, stages: I64) -> Pairs:
    """The rows that stand in a text of an earlier split; that row, and the share that stands there."""
    first: dict[int, tuple[int, float]] = {}
    for asked, holders, shares in texts.found():
        earlier = np.flatnonzero(stages[holders] < stages[asked])
        if len(earlier):
            first.setdefault(asked, (int(holders[earlier[0]]), float(shares[earlier[0]])))
    return pairs(first)


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
