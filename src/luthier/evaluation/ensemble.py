"""One reward from several reward models (Coste et al. 2024, arXiv:2310.02743).

A policy that is trained on one reward finds where that one is wrong. Models that were trained with other seeds, rows or
bases are wrong elsewhere:

    mean        sum_m r_m / M
    minimum     min_m r_m                         the paper's worst case
    deviation   mean - k * standard deviation     less where they disagree; the paper subtracts the variance

The rewards must be comparable: each model's own mean and spread are taken off before (`models.heads`). M models; the
standard deviation is that of these models, over M.
"""

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

Combination: TypeAlias = Literal["mean", "minimum", "deviation"]


def combine(rewards_M: Sequence[float], how: Combination = "mean", k: float = 1.0) -> float:
    """One number from the rewards of at least one model."""
    mean = math.fsum(rewards_M) / len(rewards_M)
    if how == "mean":
        return mean
    if how == "minimum":
        return min(rewards_M)
    return mean - k * math.sqrt(math.fsum((r - mean) ** 2 for r in rewards_M) / len(rewards_M))
