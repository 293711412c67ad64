"""The form of a JSON answer, written so that a model can follow it: keys, kinds of values, and what to choose from.

    {"name": "...", "area": "city center | riverside", "family_friendly": true or false, "near": ["...", ...]}

It is drawn from a JSON Schema. Where there is none, `schema_of` makes one from training targets.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

MAX_DEPTH = 4
"""Objects, lists and references within each other that a form shows; deeper ones are `...`."""
FEW_VALUES = 12
"""Texts from which one chooses, at most; more are free text."""
LONGEST_VALUE = 60
"""Characters of such a text, at most."""
TIMES_SEEN = 3
"""How often such a text must occur on average; what occurs once each is free text, however few rows there are."""

_KINDS = {"string": '"..."', "boolean": "true or false", "integer": "whole number", "number": "number", "null": "null"}


def schema_of(values: Sequence[Any], depth: int = MAX_DEPTH) -> dict[str, Any]:
    """A JSON Schema that the values satisfy: types, keys, and the values of a text that has few distinct ones."""
    if depth < 0:
        return {}
    objects = [value for value in values if isinstance(value, Mapping)]
    lists = [value for value in values if isinstance(value, list | tuple)]
    texts = [value for value in values if isinstance(value, str)]
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    whole = all(isinstance(number, int) for number in numbers)
    kinds = [
        _object_schema(objects, depth - 1) if objects else None,
        {"type": "array", "items": schema_of([e for one in lists for e in one], depth - 1)} if lists else None,
        _text_schema(texts) if texts else None,
        {"type": "integer" if whole else "number"} if numbers else None,
        {"type": "boolean"} if any(isinstance(value, bool) for value in values) else None,
        {"type": "null"} if any(value is None for value in values) else None,
    ]
    found = [kind for kind in kinds if kind is not None]
    return found[0] if len(found) == 1 else {"anyOf": found} if found else {}


def _object_schema(objects: Sequence[Mapping[str, Any]], depth: int) -> dict[str, Any]:
    by_key: dict[str, list[Any]] = {}
    for one in objects:
        for key, value in one.items():
            by_key.setdefault(str(key), []).append(value)
    return {
        "type": "object",
        "properties": {key: schema_of(values, depth) for key, values in by_key.items()},
        "required": [key for key, values in by_key.items() if len(values) == len(objects)],
    }


def _text_schema(texts: Sequence[str]) -> dict[str, Any]:
    distinct = sorted(set(texts))
    is_few = 1 < len(distinct) <= min(FEW_VALUES, len(texts) / TIMES_SEEN)
    is_choice = is_few and max(map(len, distinct)) <= LONGEST_VALUE
    return {"type": "string", "enum": distinct} if is_choice else {"type": "string"}


def keys_of(schema: Mapping[str, Any]) -> tuple[list[str], bool]:
    """The keys of the object that a schema describes, none if it is no object; and whether all are required."""
    found = _resolved(schema, schema)
    keys = list(found.get("properties", {})) if isinstance(found, Mapping) else []
    return keys, bool(keys) and set(keys) <= set(found.get("required", []))


def form_of(schema: Mapping[str, Any], max_characters: int) -> str | None:
    """The form; without values to choose from, or with the outermost keys alone, where it would be too long.

    None where the schema says nothing, or even that is too long.
    """
    full = _Drawing(schema)
    for drawing in (full, replace(full, shows_values=False), replace(full, shows_values=False, depth=1)):
        text = drawing.draw(schema, drawing.depth)
        if text != "..." and len(text) <= max_characters:
            return text
    return None


def _resolved(schema: Any, root: Mapping[str, Any]) -> Any:
    """The schema, or what its `$ref` names inside the document; True, which allows everything, if that is not there."""
    for _ in range(MAX_DEPTH):
        if not isinstance(schema, Mapping) or "$ref" not in schema:
            return schema
        pointer = str(schema["$ref"])
        schema = root if pointer.startswith("#") else True
        for part in pointer.split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            schema = schema.get(key, True) if isinstance(schema, Mapping) else True
    return True


@dataclass(frozen=True)
class _Drawing:
    root: Mapping[str, Any]
    shows_values: bool = True
    depth: int = MAX_DEPTH

    def draw(self, schema: Any, depth: int) -> str:
        """A value of the schema, `...` where it may be anything; `depth` more levels are shown."""
        schema = _resolved(schema, self.root)
        if depth < 0 or not isinstance(schema, Mapping):
            return "..."
        if "const" in schema:
            return _choices([schema["const"]])
        if "enum" in schema and self.shows_values:
            return _choices(schema["enum"])
        either = schema.get("anyOf") or schema.get("oneOf")
        if either:
            return " or ".join(dict.fromkeys(self.draw(one, depth) for one in either))
        named = schema.get("type") or [k for k, of in (("object", "properties"), ("array", "items")) if of in schema]
        kinds = [named] if isinstance(named, str) else named
        return " or ".join(self._draw_kind(kind, schema, depth) for kind in kinds) or "..."

    def _draw_kind(self, kind: str, schema: Mapping[str, Any], depth: int) -> str:
        if kind == "object":
            fields = schema.get("properties", {}).items()
            drawn = (f"{json.dumps(key, ensure_ascii=False)}: {self.draw(one, depth - 1)}" for key, one in fields)
            return "{" + (", ".join(drawn) or "...") + "}"
        if kind == "array":
            return f"[{self.draw(schema.get('items', True), depth - 1)}, ...]"
        return _KINDS[kind]


def _choices(values: Sequence[Any]) -> str:
    """Texts in one pair of quotes with `|` between them, other values as JSON."""
    texts = [value for value in values if isinstance(value, str)]
    others = [json.dumps(value, ensure_ascii=False) for value in values if not isinstance(value, str)]
    return " or ".join(([json.dumps(" | ".join(texts), ensure_ascii=False)] if texts else []) + others)
