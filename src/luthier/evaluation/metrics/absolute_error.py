"""Mean absolute error of numbers, in their own unit.

An answer without a number counts as the mean of the wanted numbers, as in `r_squared`.
"""

import math
from typing import ClassVar

import numpy as np

from luthier.evaluation.metrics._said import number_in, wanted_number
from luthier.evaluation.metrics.base import Array, Metric, Prediction, divide


class AbsoluteError(Metric):
    """How far numbers are off."""

    higher_is_better: ClassVar[bool] = False
    worst: ClassVar[float] = math.inf
    best: ClassVar[float] = 0.0
    scores_rows: ClassVar[bool] = False

    def statistics(self, prediction: Prediction) -> tuple[float, float, float]:
        """(what is wanted, absolute error or 0, 1 if there was a number)."""
        wanted, said = wanted_number(prediction), number_in(prediction.output)
        return wanted, 0.0 if said is None else abs(wanted - said), float(said is not None)

    def values(self, statistics_NS: Array, counts_BN: Array) -> Array:
        """(B,) the mean."""
        wanted_N, error_N, said_N = statistics_NS.T
        rows_B = counts_BN.sum(1)
        error_B = counts_BN @ error_N
        unsaid = said_N == 0
        if unsaid.any():
            mean_B = divide(counts_BN @ wanted_N, rows_B, 0.0)
            off_BU = np.abs(wanted_N[unsaid][None, :] - mean_B[:, None])
            error_B = error_B + (counts_BN[:, unsaid] * off_BU).sum(1)
        return divide(error_B, rows_B, math.nan)
