"""Perplexity: how surprised the model is by the wanted replies, per token; 1 is certainty, lower is better.

    exp(- sum of log p(token) / number of tokens)

Comparable between systems only if they share a tokenizer, as all systems of one run do.
"""

from typing import ClassVar, Literal

import numpy as np

from luthier.evaluation.metrics._target import target_score
from luthier.evaluation.metrics.base import Array, Metric, Prediction, ratio

LARGEST_MEAN = 200.0
"""Nats per token at which perplexity stops to grow."""


class Perplexity(Metric):
    """Perplexity of the target under teacher forcing."""

    needs: ClassVar[Literal["generation", "logprobs"]] = "logprobs"
    higher_is_better: ClassVar[bool] = False
    worst: ClassVar[float] = float("inf")
    counts_tokens: ClassVar[bool] = True

    def statistics(self, prediction: Prediction) -> tuple[float, float]:
        """(negative log-probability, tokens).

        Raises:
            EvaluationError: the system gave no log-probabilities.
        """
        score = target_score(prediction)
        return -score.logprob_sum, float(score.tokens)

    def values(self, statistics_NS: Array, counts_BN: Array) -> Array:
        """(B,) exp of the mean negative log-probability."""
        # a model this surprised is broken; the cap keeps squares of differences within the range of a float
        return np.exp(np.minimum(ratio(counts_BN @ statistics_NS), LARGEST_MEAN))
