"""Answer F1: words that an answer shares with the acceptable answer that fits it best (SQuAD's F1), averaged over rows.

    F1 = 2 * shared / (words given + words wanted),   a word counted as often as both have it

Rajpurkar et al. 2016, arXiv 1606.05250. An answer of many words around the right ones loses precision.
"""

from collections import Counter

from luthier.evaluation.metrics._answers import acceptable, answer_words
from luthier.evaluation.metrics.base import Prediction, RatioMetric


class AnswerF1(RatioMetric):
    """Mean F1 of words against the best of the acceptable answers."""

    def statistics(self, prediction: Prediction) -> tuple[float, float]:
        """(F1, 1).

        Raises:
            EvaluationError: the target is no list of texts.
        """
        given = answer_words(prediction.output)
        return max(_f1(given, answer_words(wanted)) for wanted in acceptable(prediction)), 1.0


def _f1(given: list[str], wanted: list[str]) -> float:
    """1 for two answers without words: then both say nothing."""
    if not given or not wanted:
        return float(given == wanted)
    shared = (Counter(given) & Counter(wanted)).total()
    return 2 * shared / (len(given) + len(wanted))
