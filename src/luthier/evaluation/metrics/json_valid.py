"""JSON validity: the share of answers that a strict JSON parser accepts as they are.

A code fence, a sentence before the object, NaN, a number too large for a float, a no-break space around the value or a
cut-off answer are failures: the program that reads the answer would fail on them.
"""

from typing import ClassVar

from luthier.evaluation.metrics._json import NotJson, parse
from luthier.evaluation.metrics.base import Prediction, RatioMetric


class JsonValid(RatioMetric):
    """Share of answers that are JSON and nothing else."""

    binary: ClassVar[bool] = True
    counts_failures: ClassVar[bool] = True

    def statistics(self, prediction: Prediction) -> tuple[float, float]:
        """(1 if it parses, 1)."""
        try:
            parse(prediction.output)
        except NotJson:
            return 0.0, 1.0
        return 1.0, 1.0
