"""Answer match: the share of answers that equal an acceptable one, word for word (SQuAD's exact match).

Case, punctuation and articles make no difference; Rajpurkar et al. 2016, arXiv 1606.05250.
"""

from typing import ClassVar

from luthier.evaluation.metrics._answers import acceptable, answer_words
from luthier.evaluation.metrics.base import Prediction, RatioMetric


class AnswerMatch(RatioMetric):
    """Share of answers with the words of an acceptable one."""

    binary: ClassVar[bool] = True

    def statistics(self, prediction: Prediction) -> tuple[float, float]:
        """(1 if equal, 1).

        Raises:
            EvaluationError: the target is no list of texts.
        """
        given = answer_words(prediction.output)
        return float(any(given == answer_words(wanted) for wanted in acceptable(prediction))), 1.0
