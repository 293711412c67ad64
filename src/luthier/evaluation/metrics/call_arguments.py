"""Arguments of tool calls: of the wanted calls whose function was called, the share with the right arguments.

What `tool_calls` asks beyond `call_names`; a call of the wrong function says nothing here.
"""

from collections import Counter

from luthier.evaluation.metrics._calls import made_calls, most_pairs, wanted_calls
from luthier.evaluation.metrics.base import Prediction, RatioMetric


class CallArguments(RatioMetric):
    """Share of calls of the right function whose arguments are right."""

    def statistics(self, prediction: Prediction) -> tuple[float, float]:
        """(calls that are right, calls of a wanted function); two calls of it count as two if two are wanted.

        Raises:
            EvaluationError: the row's `acceptable` is not of the form that `tool_calls.py` describes.
        """
        made, wanted = made_calls(prediction), wanted_calls(prediction)
        named = Counter(call.name for call in made) & Counter(call.name for call in wanted)
        return float(most_pairs(made, wanted)), float(named.total())
