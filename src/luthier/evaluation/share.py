"""Numbers of rows as metrics, so that intervals and paired tests apply to what was counted or judged elsewhere."""

import math
from typing import ClassVar

from luthier.errors import EvaluationError
from luthier.evaluation.metrics.base import Array, Metric, Prediction


class Share(Metric):
    """How many of the rows were counted; the one statistic of a row is 1 or 0."""

    binary = True

    def statistics(self, prediction: Prediction) -> tuple[float, ...]:
        """There are none of a prediction; raises EvaluationError."""
        raise EvaluationError("a share has no predictions; what is counted is given")

    def values(self, statistics_NS: Array, counts_BN: Array) -> Array:
        """(B,) the share of the rows in each resample."""
        shares_B: Array = counts_BN @ statistics_NS[:, 0] / counts_BN.sum(axis=1)
        return shares_B


class Score(Share):
    """The mean of one number a row, from 0 to 1."""

    binary = False


class Number(Score):
    """The mean of one number a row, of any size."""

    worst: ClassVar[float] = -math.inf
    best: ClassVar[float] = math.inf
