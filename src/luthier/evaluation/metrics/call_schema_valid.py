"""Valid tool calls: of the calls that were made, the share that name a tool on offer, with arguments that fit it.

Arguments fit the JSON Schema of the tool; a tool without one takes anything. Whether they are right is another matter
(`tool_calls`).
"""

from luthier.data.tool_schemas import argument_validators, fits
from luthier.evaluation.metrics._calls import made_calls
from luthier.evaluation.metrics.base import Prediction, RatioMetric


class CallSchemaValid(RatioMetric):
    """Share of calls that a tool on offer would take."""

    def statistics(self, prediction: Prediction) -> tuple[float, float]:
        """(calls that fit, calls)."""
        made = made_calls(prediction)
        validators = argument_validators(prediction.tools) if made else {}
        good = sum(call.name in validators and fits(call.arguments, validators[call.name]) for call in made)
        return float(good), float(len(made))
