"""Exact match: the share of answers that are right to the letter, or equal as JSON.

A text counts without white space at its ends. Where the target is a JSON value, the first object or list in the
answer is compared as a value, so key order, spacing and words around it do not matter (`json_valid` minds them).
"""

from typing import ClassVar

from luthier.evaluation.metrics._json import NotJson, canonical, find
from luthier.evaluation.metrics.base import Prediction, RatioMetric


class ExactMatch(RatioMetric):
    """Share of answers equal to the target."""

    binary: ClassVar[bool] = True

    def statistics(self, prediction: Prediction) -> tuple[float, float]:
        """(1 if equal, 1)."""
        if isinstance(prediction.target, str):
            return float(prediction.output.strip() == prediction.target.strip()), 1.0
        try:
            found = canonical(find(prediction.output))
        except NotJson:
            return 0.0, 1.0
        return float(found == canonical(prediction.target)), 1.0
