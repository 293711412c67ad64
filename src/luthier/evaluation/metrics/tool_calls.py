"""Tool calls: the share of rows in which exactly the right calls were made, in any order.

A row whose right answer is no call is right when no call is made. Where the row has `acceptable`, in the form of the
Berkeley Function Calling Leaderboard (Patil et al. 2025), any listed value of an argument will do, and of one inside an
object; "" means that the argument may be left out, and texts are compared without case, spaces and punctuation, as that
benchmark does. Without it, calls must equal the wanted ones as JSON.
"""

from typing import ClassVar

from luthier.evaluation.metrics._calls import made_calls, most_pairs, wanted_calls
from luthier.evaluation.metrics.base import Prediction, RatioMetric


class ToolCalls(RatioMetric):
    """Share of rows with the right calls."""

    binary: ClassVar[bool] = True

    def statistics(self, prediction: Prediction) -> tuple[float, float]:
        """(1 if the calls are right, 1).

        Raises:
            EvaluationError: the row's `acceptable` is not of the form described above.
        """
        made, wanted = made_calls(prediction), wanted_calls(prediction)
        return float(len(made) == len(wanted) == most_pairs(made, wanted)), 1.0
