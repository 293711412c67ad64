"""Token accuracy: the share of the wanted reply's tokens that are the model's first choice, given those before."""

from typing import ClassVar, Literal

from luthier.evaluation.metrics._target import target_score
from luthier.evaluation.metrics.base import Prediction, RatioMetric


class TokenAccuracy(RatioMetric):
    """Share of target tokens predicted."""

    needs: ClassVar[Literal["generation", "logprobs"]] = "logprobs"
    counts_tokens: ClassVar[bool] = True

    def statistics(self, prediction: Prediction) -> tuple[float, float]:
        """(tokens predicted, tokens).

        Raises:
            EvaluationError: the system gave no log-probabilities.
        """
        score = target_score(prediction)
        return float(score.correct), float(score.tokens)
