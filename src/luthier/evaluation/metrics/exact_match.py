"""Exact match: the share of answers that are right to the letter, or equal as JSON.

A text counts without white space at its ends. Where the target is a JSON object or list, given as a value or as a
text, the first object or list in the answer is compared as a value, so key order, spacing and words around it do not
matter (`json_valid` minds them). A target such as `3` or `true` that is a text stays one: it may be a label.
"""

from typing import Any, ClassVar

from luthier.evaluation.metrics._json import NotJson, canonical, find, parse, target_value
from luthier.evaluation.metrics.base import Prediction, RatioMetric


class ExactMatch(RatioMetric):
    """Share of answers equal to the target."""

    binary: ClassVar[bool] = True

    def statistics(self, prediction: Prediction) -> tuple[float, float]:
        """(1 if equal, 1).

        Raises:
            EvaluationError: the target is nested too deep.
        """
        if _is_text(prediction.target):
            return float(prediction.output.strip() == prediction.target.strip()), 1.0
        wanted = canonical(target_value(prediction))
        try:
            found = canonical(find(prediction.output))
        except NotJson:
            return 0.0, 1.0
        return float(found == wanted), 1.0


def _is_text(target: Any) -> bool:
    """Whether a target is a text that is no JSON object or list."""
    if not isinstance(target, str):
        return False
    try:
        return not isinstance(parse(target), dict | list)
    except NotJson:
        return True
