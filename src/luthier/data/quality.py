"""Figures of each training row: what it repeats, how far it stands apart, what is wrong with it, how hard it is.

One pass over the rows; nothing is judged here. `selection.py` keeps rows by these figures, and `luthier data score`
writes them down.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier import registry
from luthier.data.checks import _minhash
from luthier.data.checks._text import View, normalized
from luthier.data.checks.base import PACKAGE, Check
from luthier.data.label_errors import LabelError, are_labels, label_errors, label_of, missing_packages
from luthier.data.space import Space, of_length_one
from luthier.errors import DataError
from luthier.examples import Document, Example

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

ROW_CHECKS = ("empty", "encoding", "roles", "suspicious_answers")
"""Checks that judge a row by itself; an error or a warning is a fault of the row."""
COMPARED_WITH = 16_384
"""Rows, evenly spread, among which the nearest one is looked for; all rows of a smaller file."""
_AT_ONCE = 1024


@dataclass
class Quality:
    """Figures by row, in the order of the file (N rows).

    `repeats` is the earlier row that a row equals, `alike` the first row of the group of near-duplicates that it is
    in; itself if there is none. `points` are of length 1 (`space.py`). `outlier` is 1 less the cosine to the nearest
    other row that is no duplicate, times how much of the row's own point is in the space: 1 for a row that is like no
    other.
    `suspected` holds rows whose label is probably wrong; None if answers are no labels or they cannot be
    judged, which `notes` then tells.
    `losses` is NaN where nothing is trained on, and None without a model.
    """

    examples: Sequence[Example]
    characters: I64
    reply_characters: I64
    repeats: I64
    alike: I64
    points: F32
    outlier: F64
    faults: dict[int, tuple[str, ...]]
    labels: list[str | None] | None = None
    suspected: dict[int, LabelError] | None = None
    losses: F64 | None = None
    notes: list[str] = field(default_factory=list)

    def values(self, row: int) -> dict[str, Any]:
        """The figures of one row, ready for JSON; rows are named by their lines."""
        where = self.examples[row].where
        _, unit, number = where.parts()
        group = int(self.alike[row])
        found: dict[str, Any] = {
            unit: number,
            "id": self.examples[row].id,
            "characters": int(self.characters[row]),
            "reply_characters": int(self.reply_characters[row]),
            "repeats": self._number(int(self.repeats[row]), row),
            "near_duplicate_of": self._number(group, row),
            "outlier": round(float(self.outlier[row]), 4),
            "faults": list(self.faults.get(row, ())),
        }
        if self.labels is not None:
            error = (self.suspected or {}).get(row)
            found |= {
                "label": self.labels[row],
                "likelier_label": None if error is None else error.likelier,
                "label_confidence": None if error is None else round(error.confidence, 4),
            }
        if self.losses is not None:
            loss = float(self.losses[row])
            found["loss"] = None if np.isnan(loss) else round(loss, 4)
        return found

    def _number(self, other: int, row: int) -> int | None:
        return None if other == row else self.examples[other].where.parts()[2]


def measure(examples: Sequence[Example], say: Callable[[str], None] = lambda text: None) -> Quality:
    """The figures of all rows but `losses`, which need a model (`losses.py`).

    Args:
        examples: at least one row.
        say: told what is being done.
    """
    say("reading the rows' texts")
    space, signatures = Space(), _minhash.Signatures()
    first: dict[int, int] = {}
    repeats, lengths, texts = np.arange(len(examples)), np.zeros((len(examples), 2), dtype=np.int64), []
    faults: dict[int, tuple[str, ...]] = {}
    checks = {name: registry.load_class(PACKAGE, name, Check) for name in ROW_CHECKS}  # type: ignore[type-abstract]
    labels: list[str | None] = []
    for row, example in enumerate(examples):
        view = View(example)
        asked = example.text if isinstance(example, Document) else view.prompt
        space.add(normalized(asked))
        signatures.add(view.normalized_row())
        repeats[row] = first.setdefault(view.exact(), row)
        lengths[row] = len(view.full), len(view.reply)
        labels.append(label_of(example))
        texts.append(asked)
        if found := _faults(example, checks):
            faults[row] = found
    say("comparing the rows")
    alike = _alike(signatures, repeats)
    points = space.points()
    unit, outlier = of_length_one(points), _outliers(points, alike)
    quality = Quality(examples, lengths[:, 0], lengths[:, 1], repeats, alike, unit, outlier, faults)
    if are_labels(labels):
        quality.labels = labels
        _suspect(quality, texts, say)
    return quality


def _suspect(quality: Quality, texts: Sequence[str], say: Callable[[str], None]) -> None:
    """Find label errors, or say in the notes why that cannot be."""
    if (missing := missing_packages()) is not None:
        quality.notes.append(missing)
        return
    say("looking for wrong labels")
    try:
        quality.suspected = {error.row: error for error in label_errors(texts, quality.labels or ())}
    except DataError as error:  # every other figure is there
        quality.notes.append(str(error))


def _faults(example: Example, checks: dict[str, type[Check]]) -> tuple[str, ...]:
    found = []
    for name, cls in checks.items():
        check = cls()
        check.see(example, "train")
        if any(finding.severity != "note" for finding in check.findings()):
            found.append(name)
    return tuple(found)


def _alike(signatures: _minhash.Signatures, repeats: I64) -> I64:
    """(N,) the first row of each row's group of near-duplicates; exact repeats belong to the group of their first."""
    signed, numbers = signatures.close(repeats == np.arange(len(repeats)))
    group, _ = _minhash.groups(signed)
    alike: I64 = np.arange(len(repeats))
    alike[numbers] = numbers[group]
    return alike[repeats]


def _outliers(points: F32, alike: I64) -> F64:
    """(N,) how far each row is from the nearest of `COMPARED_WITH` rows that are of another group."""
    every = max(-(-len(points) // COMPARED_WITH), 1)
    others = np.arange(0, len(points), every)
    beside = of_length_one(points[others])
    found = np.ones(len(points))
    for start in range(0, len(points), _AT_ONCE):
        cosine = points[start : start + _AT_ONCE] @ beside.T
        cosine[alike[start : start + _AT_ONCE, None] == alike[None, others]] = -1
        found[start : start + _AT_ONCE] = 1 - cosine.max(axis=1, initial=0)
    return found
