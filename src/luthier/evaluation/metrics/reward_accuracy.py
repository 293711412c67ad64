"""Reward accuracy: the share of preference pairs whose chosen reply has the larger reward.

    1 if r(chosen) > r(rejected), 1/2 if they are equal, else 0

The baseline is the base model with a head that was not trained: near 1/2 whatever the rows are. People agree with one
another on some 65 to 75 % of such pairs, which no reward model of theirs can be expected to exceed (docs/methods.md).
"""

from typing import ClassVar

from luthier.errors import EvaluationError
from luthier.evaluation.metrics.base import Needs, Prediction, RatioMetric


class RewardAccuracy(RatioMetric):
    """Share of pairs that are ranked right; a tie is half right, so exact tests of right or wrong do not apply."""

    needs: ClassVar[Needs] = "rewards"

    def statistics(self, prediction: Prediction) -> tuple[float, float]:
        """(1, 1/2 or 0; 1).

        Raises:
            EvaluationError: the system gave no two rewards.
        """
        if prediction.rewards is None or len(prediction.rewards) != 2:
            raise EvaluationError(
                f"row {prediction.id}: no rewards of a chosen and a rejected reply; this metric needs preference pairs "
                "and a model that was trained with objective.type = 'reward'"
            )
        chosen, rejected = prediction.rewards
        return (1.0 if chosen > rejected else 0.5 if chosen == rejected else 0.0), 1.0
