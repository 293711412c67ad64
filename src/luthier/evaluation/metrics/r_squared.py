"""The share of the spread of wanted numbers that answers explain: 1 - sum (y - a)^2 / sum (y - mean)^2.

0 is what always answering the mean of the wanted numbers gets. An answer without a number says nothing, and counts as
the mean. A resample has its own mean.
"""

import math
from typing import ClassVar

import numpy as np

from luthier.evaluation.metrics._said import number_in, wanted_number
from luthier.evaluation.metrics.base import Array, Metric, Prediction, divide


class RSquared(Metric):
    """Explained share of the spread of numbers."""

    worst: ClassVar[float] = -math.inf
    scores_rows: ClassVar[bool] = False

    def statistics(self, prediction: Prediction) -> tuple[float, float, float]:
        """(what is wanted, squared error or 0, 1 if there was a number)."""
        wanted, said = wanted_number(prediction), number_in(prediction.output)
        return wanted, 0.0 if said is None else (wanted - said) ** 2, float(said is not None)

    def values(self, statistics_NS: Array, counts_BN: Array) -> Array:
        """(B,) the share."""
        wanted_N, squared_N, said_N = statistics_NS.T
        if len(wanted_N):  # the share is that of numbers near 0, whose squares lose no digits
            wanted_N = wanted_N - np.median(wanted_N)
        rows_B = counts_BN.sum(1)
        mean_B = divide(counts_BN @ wanted_N, rows_B, 0.0)
        spread_B = counts_BN @ wanted_N**2 - rows_B * mean_B**2
        unsaid_BN = counts_BN * (1 - said_N)
        unsaid_B = unsaid_BN @ wanted_N**2 - 2 * mean_B * (unsaid_BN @ wanted_N) + mean_B**2 * unsaid_BN.sum(1)
        share_B: Array = 1 - divide(counts_BN @ squared_N + unsaid_B, spread_B, math.nan)
        return share_B
