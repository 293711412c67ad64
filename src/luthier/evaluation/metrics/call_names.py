"""Names of tool calls: the share of rows in which exactly the right functions were called, whatever their arguments.

A row that wants no call is right when none is made.
"""

from collections import Counter
from typing import ClassVar

from luthier.evaluation.metrics._calls import made_calls, wanted_calls
from luthier.evaluation.metrics.base import Prediction, RatioMetric


class CallNames(RatioMetric):
    """Share of rows in which the right functions were called."""

    binary: ClassVar[bool] = True

    def statistics(self, prediction: Prediction) -> tuple[float, float]:
        """(1 if the names are right, each as often as wanted, 1).

        Raises:
            EvaluationError: the row's `acceptable` is not of the form that `tool_calls.py` describes.
        """
        made = Counter(call.name for call in made_calls(prediction))
        return float(made == Counter(call.name for call in wanted_calls(prediction))), 1.0
