"""JSON answers: reading them and taking them apart."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from luthier.errors import EvaluationError
from luthier.evaluation.metrics.base import Prediction


class NotJson(ValueError):
    """A text is not JSON."""


def parse(text: str) -> Any:
    """The value of a JSON text by RFC 8259: no NaN, no Infinity, nothing around it but white space.

    Raises:
        NotJson: it is not one.
    """
    try:
        return json.loads(text.strip(), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise NotJson(str(error)) from None


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_decoder = json.JSONDecoder(parse_constant=_refuse)


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
        return _decoder.raw_decode(text, start.start())[0]
    except (ValueError, RecursionError) as error:
        raise NotJson(str(error)) from None


def target_value(prediction: Prediction) -> Any:
    """The wanted value: the target as it is, or parsed if it is a text.

    Raises:
        EvaluationError: the target is a text that is not JSON.
    """
    if not isinstance(prediction.target, str):
        return prediction.target
    try:
        return parse(prediction.target)
    except NotJson as error:
        raise EvaluationError(
            f"row {prediction.id}: the target is not JSON ({error}), but this metric compares JSON values; mend the "
            'row, or choose other metrics (evaluation.task = "text")'
        ) from None


def leaves(value: Any) -> Counter[tuple[str, str]]:
    """Every (path, value) at the ends of a JSON value, with how often it occurs.

    Elements of a list share one path, so their order does not matter. Texts are compared without white space at the
    ends; 1 and 1.0 are equal, 1 and true are not. An empty object or list is a leaf.
    """
    return Counter(_leaves(value, ""))


def _leaves(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{json.dumps(key)}")
    elif isinstance(value, list) and value:
        for inner in value:
            yield from _leaves(inner, f"{path}[]")
    else:
        yield path, canonical(value)


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
    wanted = leaves(target_value(prediction))
    try:
        found = leaves(find(prediction.output))
    except NotJson:
        found = Counter()
    return float((wanted & found).total()), float(found.total()), float(wanted.total())
