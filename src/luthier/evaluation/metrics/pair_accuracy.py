"""Pair accuracy: the share of preference pairs whose chosen reply is more probable than the rejected one.

    1 if log p(chosen) > log p(rejected), 1/2 if they are equal, else 0

The baseline is the ranking of the base model by the same rule. The implicit reward of DPO, beta * log(pi / reference),
would be no baseline: before training it is 0 for every reply, so every pair is a tie. A sum over tokens favors short
replies, in the base as in the trained model; `per_token` divides it by their number.
"""

from typing import ClassVar

from luthier.errors import EvaluationError
from luthier.evaluation.metrics._target import target_score
from luthier.evaluation.metrics.base import Needs, Prediction, RatioMetric, TargetScore


class PairAccuracy(RatioMetric):
    """Share of pairs that are ranked right; a tie is half right, so exact tests of right or wrong do not apply."""

    needs: ClassVar[Needs] = "pairs"

    per_token: bool = False
    """Compare the mean log-probability of a token instead of the sum."""

    def statistics(self, prediction: Prediction) -> tuple[float, float]:
        """(1, 1/2 or 0; 1).

        Raises:
            EvaluationError: the system gave no log-probabilities, or the row is no preference pair.
        """
        if prediction.rejected_score is None:
            raise EvaluationError(
                f"row {prediction.id}: no log-probabilities of a rejected reply; this metric needs preference pairs "
                "and a system that is a model"
            )
        margin = self._value(target_score(prediction)) - self._value(prediction.rejected_score)
        return (1.0 if margin > 0 else 0.5 if margin == 0 else 0.0), 1.0

    def _value(self, score: TargetScore) -> float:
        """Natural logarithm of the probability of a reply, or its mean over tokens."""
        return score.logprob_sum / max(score.tokens, 1) if self.per_token else score.logprob_sum
