"""Recall of calling at all: of the rows that want a tool to be called, the share in which one was.

Low where a model talks instead of calling. Which tool, and with what, is not looked at.
"""

from typing import ClassVar

from luthier.evaluation.metrics._calls import made_calls, wanted_calls
from luthier.evaluation.metrics.base import Prediction, RatioMetric


class CallRecall(RatioMetric):
    """Share of the rows that want a call with one."""

    scores_rows: ClassVar[bool] = False

    def statistics(self, prediction: Prediction) -> tuple[float, float]:
        """(1 if a call was made and one is wanted, 1 if one is wanted).

        Raises:
            EvaluationError: the row's `acceptable` is not of the form that `tool_calls.py` describes.
        """
        called, wanted = bool(made_calls(prediction)), bool(wanted_calls(prediction))
        return float(called and wanted), float(wanted)
