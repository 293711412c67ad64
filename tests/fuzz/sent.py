"""What a request sent at the place that a refusal names."""

import re
from collections.abc import Sequence
from typing import Any


def is_whole_float(body: Any, param: str | None) -> bool:
    """Whether a refusal is for a number like 1.0, which is an integer to JSON Schema and none here."""
    value = _value_at(body, re.findall(r"[^.\[\]]+", param or ""))
    return isinstance(value, float) and value.is_integer()


def _value_at(node: Any, place: Sequence[str]) -> Any:
    """The value, or None if there is none."""
    if not place:
        return node
    head, *rest = place
    if isinstance(node, list):
        return _value_at(node[int(head)], rest) if head.isdecimal() and int(head) < len(node) else None
    if not isinstance(node, dict):
        return None
    if head in node:
        return _value_at(node[head], rest)
    if head == node.get("type"):  # of several kinds of object pydantic names the one that was chosen
        return _value_at(node, rest)
    return node.get(f"{head}[{rest[0]}]") if len(rest) == 1 else None  # a field of a form
