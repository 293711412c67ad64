"""Accuracy: the share of answers that name the right label.

Labels are compared as a person would: case, extra spaces, quotes and a full stop at the end do not matter, so a chatty
baseline is not marked down for its manners. For the letter of the answer there is `exact_match`.
"""

from typing import ClassVar

from luthier.evaluation.metrics._labels import target_and_output
from luthier.evaluation.metrics.base import Prediction, RatioMetric


class Accuracy(RatioMetric):
    """Share of answers that are the right label."""

    binary: ClassVar[bool] = True

    def statistics(self, prediction: Prediction) -> tuple[float, float]:
        """(1 if right, 1)."""
        target, output = target_and_output(prediction)
        return float(target == output), 1.0
