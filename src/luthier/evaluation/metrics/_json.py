"""JSON answers: reading them and taking them apart."""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from scipy.optimize import linear_sum_assignment

from luthier.errors import EvaluationError
from luthier.evaluation.metrics.base import Prediction

MAX_DEPTH = 200
"""Objects and lists within each other; a deeper text does not count as JSON, as RFC 8259 lets a parser decide."""


class NotJson(ValueError):
    """A text is not JSON."""


def parse(text: str) -> Any:
    """The value of a JSON text by RFC 8259: nothing around it but JSON's own white space (space, tab, line ends).

    Stricter than Python: no NaN, no Infinity, no number too large for a float, nothing deeper than `MAX_DEPTH`.

    Raises:
        NotJson: it is not one.
    """
    try:
        return _shallow(_decoder.decode(text))
    except (ValueError, RecursionError) as error:
        raise NotJson(str(error)) from None


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(number: str) -> float:
    value = float(number)
    return value if math.isfinite(value) else _refuse(number)


_decoder = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite)


def _shallow(value: Any) -> Any:
    """The value itself.

    Raises:
        NotJson: it is nested too deep to be taken apart.
    """
    if is_too_deep(value):
        raise NotJson(f"it is nested more than {MAX_DEPTH} deep")
    return value


def is_too_deep(value: Any) -> bool:
    """Whether objects and lists are nested more than `MAX_DEPTH` deep; found without recursion."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return False
    return True


def _inside(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple) else []


def find(text: str) -> Any:
    """The value of a JSON text, or else of the first object or list in it, whatever stands around it.

    What a program does that looks for the braces: an untrained model that explains its answer is judged by the answer.
    Only the first brace or bracket is tried, so a piece of a cut-off object never counts as the object.

    Raises:
        NotJson: there is none, or the first one is not JSON to its end.
    """
    try:
        return parse(text)
    except NotJson:
        start = re.search(r"[{\[]", text)
        if start is None:
            raise
    try:
        return _shallow(_decoder.raw_decode(text, start.start())[0])
    except (ValueError, RecursionError) as error:
        raise NotJson(str(error)) from None


def target_value(prediction: Prediction) -> Any:
    """The wanted value: the target as it is, or parsed if it is a text.

    Raises:
        EvaluationError: the target is a text that is not JSON, or is nested too deep.
    """
    try:
        return parse(prediction.target) if isinstance(prediction.target, str) else _shallow(prediction.target)
    except NotJson as error:
        raise EvaluationError(
            f"row {prediction.id}: the target is not JSON ({error}), but this metric compares JSON values; mend the "
            'row, or choose other metrics (evaluation.task = "text")'
        ) from None


Tree: TypeAlias = "str | list[Tree] | dict[str, Tree]"
"""A JSON value with each leaf as its `canonical` text. What holds nothing else is a leaf: an empty list is one, too."""


def tree(value: Any) -> Tree:
    """The value with its leaves made comparable."""
    if not _inside(value):
        return canonical(value)
    if isinstance(value, Mapping):
        return {str(key): tree(inner) for key, inner in value.items()}
    return [tree(inner) for inner in value]


def leaf_count(value: Tree) -> int:
    """How many leaves there are."""
    return 1 if isinstance(value, str) else sum(map(leaf_count, _inside(value)))


def shared_leaves(a: Tree, b: Tree) -> int:
    """How many leaves two values share: equal ones at the same path.

    The order of a list does not matter. Its leaves are compared as a bag. Its other elements are paired one to one, so
    that as many leaves as possible are shared (Kuhn 1955): a leaf counts only beside those that it belongs to.
    """
    if isinstance(a, str) or isinstance(b, str):
        return int(a == b)
    if isinstance(a, dict) and isinstance(b, dict):
        return sum(shared_leaves(a[key], b[key]) for key in a.keys() & b.keys())
    if isinstance(a, dict) or isinstance(b, dict):
        return 0
    same = (_leaves_of(a) & _leaves_of(b)).total()
    rows, columns = ([e for e in elements if not isinstance(e, str)] for elements in (a, b))
    if not rows or not columns:
        return same
    shared = np.array([[shared_leaves(row, column) for column in columns] for row in rows])
    return same + int(shared[linear_sum_assignment(shared, maximize=True)].sum())


def _leaves_of(elements: list[Tree]) -> Counter[str]:
    return Counter(e for e in elements if isinstance(e, str))


def canonical(value: Any) -> str:
    """A text that is equal for equal JSON values; order of keys, 1 or 1.0, and white space at ends do not matter."""
    return json.dumps(_plain(value), sort_keys=True, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value.strip() if isinstance(value, str) else value


def field_statistics(prediction: Prediction) -> tuple[float, float, float]:
    """(fields right, fields in the answer, fields wanted); an answer without JSON has no fields.

    Raises:
        EvaluationError: the target is not JSON.
    """
    wanted = tree(target_value(prediction))
    try:
        found = tree(find(prediction.output))
    except NotJson:
        return 0.0, 0.0, float(leaf_count(wanted))
    return float(shared_leaves(wanted, found)), float(leaf_count(found)), float(leaf_count(wanted))
