"""Lists of labels and of spans as answers say them, and numbers."""

import json
import math
import re
from collections import Counter
from typing import Any

from luthier.errors import EvaluationError
from luthier.evaluation.metrics._labels import normalize
from luthier.evaluation.metrics.base import Prediction

LOOKED_AT, LARGEST = 10_000, 1e48
"""Characters of an answer, and the number that none may reach."""
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


def labels_in(text: str) -> frozenset[str]:
    """The labels of a JSON list, or else those between commas."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = text.strip().strip("[]").split(",")
    parts = found if isinstance(found, list) else [found]
    return frozenset(label for label in (normalize(str(part)) for part in parts) if label)


def wanted_labels(prediction: Prediction) -> frozenset[str]:
    """The row's labels.

    Raises:
        EvaluationError: its target is no list.
    """
    return frozenset(normalize(str(label)) for label in _listed(prediction, "labels"))


def spans_in(text: str) -> Counter[tuple[str, str]]:
    """How often an answer, a JSON list of objects, names each text with each label."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = []
    return _counted(found if isinstance(found, list) else [found])


def wanted_spans(prediction: Prediction) -> Counter[tuple[str, str]]:
    """The same of what the row wants.

    Raises:
        EvaluationError: its target is no list.
    """
    return _counted(_listed(prediction, "spans"))


def number_in(text: str) -> float | None:
    """The first number of an answer; None: it has none, or one that no statistics can bear."""
    found = _NUMBER.search(text[:LOOKED_AT].replace(",", ""))
    number = float(found.group()) if found else math.inf
    return number if abs(number) < LARGEST else None


def wanted_number(prediction: Prediction) -> float:
    """The row's number.

    Raises:
        EvaluationError: its target is none, or one that no statistics can bear.
    """
    target = prediction.target
    try:
        found = math.nan if isinstance(target, bool) else float(target)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not abs(found) < LARGEST:  # true for NaN too
        raise EvaluationError(
            f"row {prediction.id}: the target is {str(target)[:80]!r}; expected a number below {LARGEST:g}"
        )
    return found


def _listed(prediction: Prediction, what: str) -> list[Any]:
    target = prediction.target
    if isinstance(target, str):
        try:
            target = json.loads(target)
        except ValueError:
            target = None
    if not isinstance(target, list | tuple):
        raise EvaluationError(f"row {prediction.id}: the target is no list of {what}")
    return list(target)


def _counted(items: list[Any]) -> Counter[tuple[str, str]]:
    named = (item for item in items if isinstance(item, dict) and "text" in item and "label" in item)
    return Counter((str(item["text"]).strip(), normalize(str(item["label"]))) for item in named)
