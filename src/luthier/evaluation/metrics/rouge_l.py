"""ROUGE-L: F1 of the longest common subsequence of words (Lin 2004), by the `rouge-score` library, averaged over rows.

Of several references (`references` in the row) the best counts. The library's own tokenizer drops every letter that is
not ASCII, which would score a Greek answer 0; words here are runs of letters and digits of any script, in lower case.
Scripts without spaces are better served by `chrf`.
"""

import re
from functools import cached_property
from typing import Any

from rouge_score import rouge_scorer, tokenizers

from luthier.evaluation.metrics._text import references
from luthier.evaluation.metrics.base import Prediction, RatioMetric

_WORD = re.compile(r"[^\W_]+")


class _Words(tokenizers.Tokenizer):  # type: ignore[misc]
    """Runs of letters and digits of any script; the library's own words for ASCII text."""

    def tokenize(self, text: str) -> list[str]:
        """Words in lower case."""
        return _WORD.findall(text.lower())


class RougeL(RatioMetric):
    """Mean F1 of the longest common subsequence."""

    @cached_property
    def _scorer(self) -> Any:
        return rouge_scorer.RougeScorer(["rougeL"], tokenizer=_Words())

    def statistics(self, prediction: Prediction) -> tuple[float, float]:
        """(F1, 1)."""
        wanted = references(prediction)
        return float(self._scorer.score_multi(wanted, prediction.output)["rougeL"].fmeasure), 1.0
