"""F1 over all labels of all rows: 2 tp / (2 tp + fp + fn), so that every label of every row counts alike.

An answer is a JSON list, or labels between commas; labels are compared as a person would. Rows that want no label and
are given none count nothing.
"""

from luthier.evaluation.metrics._said import labels_in, wanted_labels
from luthier.evaluation.metrics.base import Prediction, RatioMetric


class LabelsF1(RatioMetric):
    """Micro-averaged F1 of lists of labels."""

    def statistics(self, prediction: Prediction) -> tuple[float, float]:
        """(2 tp, 2 tp + fp + fn)."""
        wanted, said = wanted_labels(prediction), labels_in(prediction.output)
        return 2.0 * len(wanted & said), float(len(wanted) + len(said))
