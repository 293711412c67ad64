"""Brier score: how far the probabilities of all labels are from what is right (Brier 1950).

    sum_c (p_c - [c = y])^2        0: all of it on the right label; 2: all of it on a wrong one

A label that the system does not know has the probability 0.
"""

from typing import ClassVar

from luthier.errors import EvaluationError
from luthier.evaluation.metrics._labels import normalize
from luthier.evaluation.metrics.base import Needs, Prediction, RatioMetric


class Brier(RatioMetric):
    """Mean squared distance of the probabilities from the right label."""

    needs: ClassVar[Needs] = "probabilities"
    higher_is_better: ClassVar[bool] = False
    worst: ClassVar[float] = 2.0
    best: ClassVar[float] = 0.0
    reads_target: ClassVar[bool] = False

    def statistics(self, prediction: Prediction) -> tuple[float, float]:
        """(squared distance, 1)."""
        if not prediction.probabilities:
            raise EvaluationError(f"row {prediction.id}: the answer has no probabilities")
        target = normalize(str(prediction.target))
        total, right = 0.0, 0.0
        for label, probability in prediction.probabilities.items():
            total += probability**2
            if normalize(label) == target:
                right = probability
        return total - right**2 + (1 - right) ** 2, 1.0
