"""chrF: F2 of character n-grams up to six letters (Popović 2015), over the whole corpus, from 0 to 1.

    chrF = (1 + 4) P R / (4 P + R)        P, R: precision and recall, averaged over n = 1 ... 6

Spaces do not count. Counts are summed over rows before anything is divided, as `sacrebleu` does (whose score is 100
times this one; a test compares them). Of several references (`references` in the row) the one that fits best counts.
"""

from collections import Counter

import numpy as np

from luthier.evaluation.metrics._text import references
from luthier.evaluation.metrics.base import Array, Metric, Prediction, divide

ORDER = 6
BETA_SQUARED = 4.0


class Chrf(Metric):
    """Corpus chrF2."""

    def statistics(self, prediction: Prediction) -> tuple[float, ...]:
        """Six n-gram counts each of the answer, of the reference, and of both."""
        options = [_counts(prediction.output, wanted) for wanted in references(prediction)]
        return max(options, key=lambda counts: float(_score(np.array([counts]))[0]))

    def values(self, statistics_NS: Array, counts_BN: Array) -> Array:
        """(B,) of the summed counts."""
        return _score(counts_BN @ statistics_NS)


def _ngrams(text: str, order: int) -> Counter[str]:
    letters = "".join(text.split())
    return Counter(letters[i : i + order] for i in range(len(letters) - order + 1))


def _counts(output: str, wanted: str) -> tuple[float, ...]:
    found = [_ngrams(output, n) for n in range(1, ORDER + 1)]
    asked = [_ngrams(wanted, n) for n in range(1, ORDER + 1)]
    # an order for which the reference is too short says nothing about the answer
    given = [float(f.total()) if a else 0.0 for f, a in zip(found, asked, strict=True)]
    both = [float((f & a).total()) for f, a in zip(found, asked, strict=True)]
    return (*given, *(float(a.total()) for a in asked), *both)


def _score(sums_BS: Array) -> Array:
    given, asked, both = sums_BS[:, :ORDER], sums_BS[:, ORDER : 2 * ORDER], sums_BS[:, 2 * ORDER :]
    used = (given > 0) & (asked > 0)
    orders = used.sum(axis=1).astype(np.float64)
    precision = divide((divide(both, given, 0.0) * used).sum(axis=1), orders, 0.0)
    recall = divide((divide(both, asked, 0.0) * used).sum(axis=1), orders, 0.0)
    return divide((1 + BETA_SQUARED) * precision * recall, BETA_SQUARED * precision + recall, 0.0)
