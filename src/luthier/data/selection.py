"""Which rows of a file to keep: those that are whole and differ from each other, as many as asked for.

First what teaches nothing or something wrong is left out: faults, repeats, near-duplicates, probable label errors. Of
what remains, `coverage` keeps the rows that stand for the most others. With s(i, j) the cosine of two rows, 0 if
negative or if their labels differ, it makes

    F(S) = sum over rows i of  max over j in S of  s(i, j)        (facility location)

large by adding the row with the largest gain among a random sample of N / K * ln(10) rows, or 8 if that is more: within
1 - 1/e - 0.1 of the best F on average (Mirzasoleiman et al. 2015, arXiv:1409.7938; of the kind for data: Wei, Iyer and
Bilmes 2015). Unlike farthest-point selection it passes outliers by, since they stand for few. `easy` and `hard` keep
the rows of the lowest and the highest loss instead. All is deterministic.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from luthier.data.quality import Quality
from luthier.errors import DataError

By: TypeAlias = Literal["coverage", "easy", "hard"]
WAYS: tuple[By, ...] = get_args(By)
I64 = NDArray[np.int64]
F32 = NDArray[np.float32]

STOOD_FOR = 4096
"""Rows, evenly spread, that the kept ones are to stand for; all rows of a smaller file."""
LEAST_LOOKED_AT, MISSED = 8, 0.1
_AT_ONCE = 256
REASONS = ("fault", "repeat", "near-duplicate", "label error", "not chosen")


@dataclass(frozen=True)
class Dropped:
    """Why a row was left out: one of `REASONS`, and the row or the words that explain it."""

    reason: str
    detail: str


@dataclass(frozen=True)
class Selection:
    """Rows kept, in the order of the file, and why each other one was not.

    `coverage` is the mean of max s(i, j) over the rows that remained, after each kept row in the order of choice;
    empty unless rows were chosen by coverage.
    """

    kept: I64
    dropped: Mapping[int, Dropped]
    coverage: tuple[float, ...] = ()


def select(quality: Quality, keep: int, by: By = "coverage", seed: int = 0) -> Selection:
    """Choose at most `keep` rows.

    Raises:
        DataError: `by` is a loss, and the rows have none.
    """
    dropped = _unfit(quality)
    fit = np.array([row for row in range(len(quality.examples)) if row not in dropped], dtype=np.int64)
    if by == "coverage":
        chosen, coverage = _covering(quality.points[fit], _codes(quality, fit), min(keep, len(fit)), seed)
        rows = fit[chosen]
    else:
        rows, coverage = _by_loss(quality, fit, by)[:keep], ()
    for row in np.setdiff1d(fit, rows).tolist():
        dropped[row] = Dropped("not chosen", f"{len(rows):,} rows were to be kept, by {by}")
    return Selection(np.sort(rows), dropped, coverage)


def _unfit(quality: Quality) -> dict[int, Dropped]:
    """The rows that are never kept. A group of near-duplicates keeps its first row that is fit."""
    dropped: dict[int, Dropped] = {}
    suspected = quality.suspected or {}
    stands: dict[int, int] = {}
    for row, (same, group) in enumerate(zip(quality.repeats.tolist(), quality.alike.tolist(), strict=True)):
        if faults := quality.faults.get(row):
            dropped[row] = Dropped("fault", ", ".join(faults))
        elif same != row:
            dropped[row] = Dropped("repeat", f"of {_place(quality, same)}")
        elif error := suspected.get(row):
            dropped[row] = Dropped("label error", f"{error.label!r}, likelier {error.likelier!r}")
        elif stands.setdefault(group, row) != row:
            dropped[row] = Dropped("near-duplicate", f"of {_place(quality, stands[group])}")
    return dropped


def _place(quality: Quality, row: int) -> str:
    _, unit, number = quality.examples[row].where.parts()
    return f"{unit} {number}"


def _codes(quality: Quality, rows: I64) -> I64:
    """A number for the label of each of these rows; 0 for all where there are no labels."""
    if quality.labels is None:
        return np.zeros(len(rows), dtype=np.int64)
    labels = quality.labels
    return np.unique([str(labels[row]) for row in rows], return_inverse=True)[1].astype(np.int64)


def _by_loss(quality: Quality, fit: I64, by: By) -> I64:
    if quality.losses is None:
        raise DataError(f"rows are chosen by their loss ({by}), and no model was named; expected --model")
    losses = quality.losses[fit]
    known = ~np.isnan(losses)
    sign = 1 if by == "easy" else -1
    return fit[known][np.argsort(sign * losses[known], kind="stable")]


def _covering(points: F32, labels: I64, keep: int, seed: int) -> tuple[I64, tuple[float, ...]]:
    """`keep` rows of (N, D) points in the order of choice, and the coverage after each."""
    if not len(points):
        return np.zeros(0, dtype=np.int64), ()
    others = np.arange(0, len(points), max(-(-len(points) // STOOD_FOR), 1))
    covered = np.zeros(len(others), dtype=np.float32)
    chosen, coverage = [], []
    for sample in _samples(len(points), keep, seed):
        best, covered = _best(points, labels, sample, others, covered)
        chosen.append(int(sample[best]))
        coverage.append(float(covered.mean()))
        sample[best] = -1  # gone from the sampler's list
    return np.array(chosen, dtype=np.int64), tuple(coverage)


def _best(points: F32, labels: I64, sample: I64, others: I64, covered: F32) -> tuple[int, F32]:
    """The place in the sample of the row with the largest gain, and what is covered with it; few rows kept of many mean
    a large sample, so it is looked at in blocks."""
    best, most, then = 0, -math.inf, covered
    beside = points[others].T
    for start in range(0, len(sample), _AT_ONCE):
        rows = sample[start : start + _AT_ONCE]
        likeness = np.maximum(points[rows] @ beside, 0)
        likeness[labels[rows, None] != labels[None, others]] = 0
        np.maximum(likeness, covered, out=likeness)
        sums = likeness.sum(axis=1)
        first = int(sums.argmax())
        if sums[first] > most:
            best, most, then = start + first, float(sums[first]), likeness[first].copy()
    return best, then


def _samples(rows: int, keep: int, seed: int) -> Iterator[I64]:
    """`keep` times a sample of the rows that are left; the receiver sets the one that it takes to -1."""
    chance = np.random.default_rng(seed)
    left = np.arange(rows)
    size = max(math.ceil(rows / max(keep, 1) * math.log(1 / MISSED)), LEAST_LOOKED_AT)
    for number in range(keep):
        count = rows - number
        at = np.unique(chance.integers(0, count, size)) if size < count else np.arange(count)
        sample = left[at]
        yield sample
        (taken,) = np.flatnonzero(sample == -1)
        left[at[taken]] = left[count - 1]
