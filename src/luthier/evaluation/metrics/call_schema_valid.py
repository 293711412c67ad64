"""Valid tool calls: of the calls that were made, the share that name a tool on offer, with arguments that fit it.

Arguments fit the JSON Schema of the tool; a tool without one takes anything. Whether they are right is another matter
(`tool_calls`).
"""

from luthier.data.tool_schemas import calls_that_fit
from luthier.evaluation.metrics._calls import made_calls
from luthier.evaluation.metrics.base import Prediction, RatioMetric


class CallSchemaValid(RatioMetric):
    """Share of calls that a tool on offer would take."""

    def statistics(self, prediction: Prediction) -> tuple[float, float]:
        """(calls that fit, calls)."""
        good = calls_that_fit(made_calls(prediction), prediction.tools)
        return float(sum(good)), float(len(good))
