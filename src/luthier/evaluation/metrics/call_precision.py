"""Precision of calling at all: of the rows in which a tool was called, the share in which a call was wanted.

Low where a model calls what does not fit instead of saying so. Which tool, and with what, is not looked at.
"""

from typing import ClassVar

from luthier.evaluation.metrics._calls import made_calls, wanted_calls
from luthier.evaluation.metrics.base import Prediction, RatioMetric


class CallPrecision(RatioMetric):
    """Share of the rows with calls that want one."""

    scores_rows: ClassVar[bool] = False

    def statistics(self, prediction: Prediction) -> tuple[float, float]:
        """(1 if a call was made and one is wanted, 1 if one was made).

        Raises:
            EvaluationError: the row's `acceptable` is not of the form that `tool_calls.py` describes.
        """
        called, wanted = bool(made_calls(prediction)), bool(wanted_calls(prediction))
        return float(called and wanted), float(called)
