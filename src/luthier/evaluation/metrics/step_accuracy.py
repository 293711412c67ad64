"""Step accuracy: the share of steps that are judged right or wrong as their labels say.

A step is said to be right if its probability is above 1/2; exactly 1/2 is half right. Steps whose own label is 1/2 say
nothing and are left out. The baseline is what a judge reaches who says the same of every step: docs/methods.md.
"""

from typing import ClassVar

from luthier.errors import EvaluationError
from luthier.evaluation.metrics.base import Needs, Prediction, RatioMetric


class StepAccuracy(RatioMetric):
    """Share of steps that are judged as they are labeled."""

    needs: ClassVar[Needs] = "steps"

    def statistics(self, prediction: Prediction) -> tuple[float, float]:
        """(steps judged right, steps).

        Raises:
            EvaluationError: the row has no judged steps, or the system judged none.
        """
        labels = prediction.target.get("labels") if isinstance(prediction.target, dict) else None
        if labels is None or prediction.rewards is None or len(labels) != len(prediction.rewards):
            raise EvaluationError(
                f"row {prediction.id}: no judged steps and a probability for each; this metric needs rows with steps "
                "and labels and a model that was trained with objective.type = 'process_reward'"
            )
        told = [(label > 0.5, share) for label, share in zip(labels, prediction.rewards, strict=True) if label != 0.5]
        right = sum(0.5 if share == 0.5 else float((share > 0.5) == is_right) for is_right, share in told)
        return right, float(len(told))
