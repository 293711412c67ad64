"""Short answers as SQuAD compares them (Rajpurkar et al. 2016, arXiv 1606.05250, section 6.1).

Case, punctuation, the articles `a`, `an` and `the`, and white space make no difference. Of several acceptable answers
the one that fits best counts. Beyond the paper: punctuation is that of every script, not of ASCII alone, and texts are
compared in one Unicode form (NFKC), so that a typographic quote or a half-width letter costs nothing.
"""

import re
import unicodedata
from collections.abc import Sequence

from luthier.errors import EvaluationError
from luthier.evaluation.metrics.base import Prediction

_ARTICLE = re.compile(r"\b(a|an|the)\b")


def answer_words(text: str) -> list[str]:
    """The words of an answer that count, in order."""
    plain = unicodedata.normalize("NFKC", text).lower()
    kept = "".join(c for c in plain if unicodedata.category(c)[0] not in "PS")
    return _ARTICLE.sub(" ", kept).split()


def acceptable(prediction: Prediction) -> Sequence[str]:
    """The answers of which any will do: the target, a list of texts or one text.

    Raises:
        EvaluationError: the target is of another kind.
    """
    target = prediction.target
    if isinstance(target, str):
        return [target]
    if not isinstance(target, list | tuple) or not target or not all(isinstance(text, str) for text in target):
        raise EvaluationError(
            f"row {prediction.id}: the target must be a list of acceptable answers, or one; found {target!r:.80}"
        )
    return target
