"""The share of answers that name all labels of a row and no other, in whatever order."""

from typing import ClassVar

from luthier.evaluation.metrics._said import labels_in, wanted_labels
from luthier.evaluation.metrics.base import Prediction, RatioMetric


class LabelsExact(RatioMetric):
    """Share of rows whose labels are all right."""

    binary: ClassVar[bool] = True

    def statistics(self, prediction: Prediction) -> tuple[float, float]:
        """(1 if all are right, 1)."""
        return float(wanted_labels(prediction) == labels_in(prediction.output)), 1.0
