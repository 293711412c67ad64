"""How far a system writes from the replies that were wanted, over all features at once.

Of each feature: how often an answer has more of it than a wanted reply, minus how often it has less, over all pairs of
an answer and a wanted reply: 0 where both are alike, 1 where every answer has more than every wanted reply (Cliff
1993, Psychological Bulletin 114:494). It goes by ranks, so a feature that wanted replies seldom have cannot outweigh
all others, as it does in their standard deviations. The distance is the mean of the absolute values. It is never zero
by chance: with answer and wanted reply swapped in a random half of the rows, which would change nothing if both were
written alike, 95 of 100 distances stay below `by_chance`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

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
    """By feature, from -1 to 1; those that are the same in every answer and wanted reply are left out."""


def distance_to(
    answers_NF: Array, wanted_NF: Array, groups_N: Groups, confidence: float = 0.95, seed: int = 0
) -> Distance | None:
    """The distance of N answers from N wanted replies; None where no feature varies.

    Args:
        answers_NF: features of the answers, as `measure_style` gives them.
        wanted_NF: features of the wanted replies, row by row.
        groups_N: which rows ask the same.
        confidence: coverage of the intervals.
        seed: decides resamples and swaps.
    """
    both_MF = np.concatenate([answers_NF, wanted_NF])
    varies = (both_MF != both_MF[:1]).any(axis=0)
    if not varies.any():
        return None
    off_NK, swapped_NK = _rank_differences(both_MF[:, varies])
    names = [name for name, kept in zip(FEATURES, varies, strict=True) if kept]
    return Distance(
        bootstrap_interval(_distance, off_NK, confidence, seed, groups_N=groups_N),
        _by_chance(swapped_NK, groups_N, seed),
        {
            name: bootstrap_interval(_mean, off_NK[:, [at]], confidence, seed, groups_N=groups_N)
            for at, name in enumerate(names)
        },
    )


def _rank_differences(both_MK: Array) -> tuple[Array, Array]:
    """(N, K) twice, of answers above their wanted replies; the mean over rows of either is Cliff's delta.

    The first are its influence values, so that resampling rows gives its interval: a row counts by where its answer
    stands among wanted replies and its wanted reply among answers. The second go by ranks among all texts, so that
    swapping the two of a row changes the sign and nothing else.
    """
    rows = len(both_MK) // 2
    ranks_MK = rankdata(both_MK, axis=0)
    differences_NK: Array = (ranks_MK[:rows] - ranks_MK[rows:]) / rows
    among_wanted_NK = (ranks_MK[:rows] - rankdata(both_MK[:rows], axis=0)) / rows
    among_answers_NK = (ranks_MK[rows:] - rankdata(both_MK[rows:], axis=0)) / rows
    return 2 * (among_wanted_NK - among_answers_NK) - differences_NK.mean(axis=0), differences_NK


def _distance(off_NK: Array, counts_BN: Array) -> Array:
    distances_B: Array = np.abs(counts_BN @ off_NK / counts_BN.sum(axis=1, keepdims=True)).mean(axis=1)
    return distances_B


def _mean(off_N1: Array, counts_BN: Array) -> Array:
    means_B: Array = counts_BN @ off_N1[:, 0] / counts_BN.sum(axis=1)
    return means_B


def _by_chance(swapped_NK: Array, groups_N: Groups, seed: int) -> float:
    """Rows of one group are swapped together: they are one observation."""
    rng = np.random.default_rng(seed)
    signs_BG = rng.choice((-1.0, 1.0), size=(SWAPS, count_groups(groups_N)))
    distances_B = np.abs(signs_BG[:, groups_N] @ swapped_NK / len(swapped_NK)).mean(axis=1)
    return float(np.quantile(distances_B, CHANCE))
