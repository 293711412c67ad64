"""Bits per byte: how many bits the model needs to tell a byte of the text; lower is better.

    - sum of log2 p(token) / number of UTF-8 bytes

Bytes are the same for every model, tokens are not: so models with other tokenizers can be compared, which perplexity
cannot do. The bits of the token that ends the text count, its bytes are none.
"""

import math
from typing import ClassVar

from luthier.evaluation.metrics._target import target_score
from luthier.evaluation.metrics.base import Needs, Prediction, RatioMetric


class BitsPerByte(RatioMetric):
    """Bits per byte of the target under teacher forcing."""

    needs: ClassVar[Needs] = "logprobs"
    higher_is_better: ClassVar[bool] = False
    worst: ClassVar[float] = float("inf")
    best: ClassVar[float] = 0.0

    def statistics(self, prediction: Prediction) -> tuple[float, float]:
        """(bits, bytes).

        Raises:
            EvaluationError: the system gave no log-probabilities.
        """
        score = target_score(prediction)
        return -score.logprob_sum / math.log(2), float(score.bytes)
