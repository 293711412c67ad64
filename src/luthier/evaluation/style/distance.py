"""How far a system writes from the replies that were wanted, over all features at once.

Of each feature: the mean of (answer minus wanted reply) over rows, in standard deviations of the wanted replies, a
standardized mean difference (Cohen 1988, Statistical Power Analysis, ch. 2). The distance is the mean of their
absolute values, so 0.5 means that features lie half a standard deviation off. It is never zero by chance: with
answer and wanted reply swapped in a random half of the rows, which would change nothing if both were written alike,
95 of 100 distances stay below `by_chance`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from luthier.evaluation.metrics.base import Array
from luthier.evaluation.significance import Groups, Interval, bootstrap_interval, count_groups
from luthier.evaluation.style.features import FEATURES

SWAPS = 2000
CHANCE = 0.95


@dataclass(frozen=True)
class Distance:
    """How far one system writes from what was wanted."""

    distance: Interval
    by_chance: float
    """A system that writes like the wanted replies stays below this 95 times in 100."""
    features: Mapping[str, Interval]
    """By feature, in standard deviations of the wanted replies; those that the wanted replies never vary in are left
    out, as they have no such unit."""


def distance_to(
    answers_NF: Array, wanted_NF: Array, groups_N: Groups, confidence: float = 0.95, seed: int = 0
) -> Distance | None:
    """The distance of N answers from N wanted replies; None where no feature of the wanted replies varies.

    Args:
        answers_NF: features of the answers, as `measure_style` gives them.
        wanted_NF: features of the wanted replies, row by row.
        groups_N: which rows ask the same.
        confidence: coverage of the intervals.
        seed: decides resamples and swaps.
    """
    spread_F = wanted_NF.std(axis=0, ddof=1) if len(wanted_NF) > 1 else np.zeros(wanted_NF.shape[1])
    varies = spread_F > 1e-9
    if not varies.any():
        return None
    off_NK = (answers_NF - wanted_NF)[:, varies] / spread_F[varies]
    names = [name for name, kept in zip(FEATURES, varies, strict=True) if kept]
    return Distance(
        bootstrap_interval(_distance, off_NK, confidence, seed, groups_N=groups_N),
        _by_chance(off_NK, groups_N, seed),
        {
            name: bootstrap_interval(_mean, off_NK[:, [at]], confidence, seed, groups_N=groups_N)
            for at, name in enumerate(names)
        },
    )


def _distance(off_NK: Array, counts_BN: Array) -> Array:
    distances_B: Array = np.abs(counts_BN @ off_NK / counts_BN.sum(axis=1, keepdims=True)).mean(axis=1)
    return distances_B


def _mean(off_N1: Array, counts_BN: Array) -> Array:
    means_B: Array = counts_BN @ off_N1[:, 0] / counts_BN.sum(axis=1)
    return means_B


def _by_chance(off_NK: Array, groups_N: Groups, seed: int) -> float:
    """Rows of one group are swapped together: they are one observation."""
    rng = np.random.default_rng(seed)
    signs_BG = rng.choice((-1.0, 1.0), size=(SWAPS, count_groups(groups_N)))
    distances_B = np.abs(signs_BG[:, groups_N] @ off_NK / len(off_NK)).mean(axis=1)
    return float(np.quantile(distances_B, CHANCE))
