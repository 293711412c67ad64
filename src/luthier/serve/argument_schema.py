"""A tool's `parameters` as the schema that its arguments are held to while they are written.

What fits it fits `parameters` as well; it is narrower in two ways that keep a call from going wrong:

- An object that lists `properties` and says nothing of others takes no others. Any would fit, and a model that has
  begun to make some up may go on for ever.
- A number has no exponent: 1e999 is a number in JSON, and none that a program can hold.
"""

from collections.abc import Mapping
from typing import Any

NO_ARGUMENTS: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
"""What a tool without `parameters` takes, as OpenAI's API has it."""
_ANY_NAME = "luthier-any-value"
ANY = {"$ref": f"#/$defs/{_ANY_NAME}"}
_NUMBERS = [{"type": "integer"}, {"type": "number", "minimum": -1e15, "maximum": 1e15}]
_ANY_VALUE = {
    "anyOf": [
        {"type": ["null", "boolean", "string"]},
        *_NUMBERS,
        {"type": "array", "items": ANY},
        {"type": "object", "additionalProperties": ANY},
    ]
}
ANY_OBJECT: Mapping[str, Any] = {
    "type": "object",
    "additionalProperties": ANY,
    "$defs": {_ANY_NAME: _ANY_VALUE},
}
_COMBINE = frozenset(("allOf", "anyOf", "oneOf", "if", "not", "$ref", "dependentSchemas"))
"""Beside these keywords, what a schema says is not all that holds."""
_OTHERS = frozenset(("additionalProperties", "unevaluatedProperties", "patternProperties"))
_ANNOTATIONS = frozenset(("description", "title", "default", "examples", "deprecated", "$comment"))
_LIMITS = frozenset(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "enum", "const"))


def arguments_schema(parameters: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The schema of a call's arguments, which are an object whatever `parameters` says."""
    if parameters is None:
        return NO_ARGUMENTS
    schema = _held({**parameters, "type": "object"} if "type" not in parameters else parameters)
    if schema.get("type") != "object":
        schema = {"allOf": [schema, {"type": "object"}]}
    own = parameters.get("$defs", {})
    # what is no object is left to be refused
    return {**schema, "$defs": {**own, **ANY_OBJECT["$defs"]}} if isinstance(own, Mapping) else schema


def _held(schema: Any) -> Any:
    """The schema with its objects closed and its numbers plain, and those in it."""
    if schema is True or (isinstance(schema, Mapping) and not schema.keys() - _ANNOTATIONS):
        return ANY
    if not isinstance(schema, Mapping):
        return schema
    found = dict(schema)
    if isinstance(found.get("anyOf"), list) and not {"properties", "items"} & found.keys():
        found["anyOf"] = [_held(inner) for inner in found["anyOf"]]
    if isinstance(found.get("properties"), Mapping):
        found["properties"] = {name: _held(inner) for name, inner in found["properties"].items()}
    for inside in ("items", "additionalProperties"):
        if inside in found and isinstance(found[inside], Mapping | bool) and found[inside] is not False:
            found[inside] = _held(found[inside])
    if _COMBINE & found.keys():
        return found
    if found.get("type") == "object" and not _OTHERS & found.keys():
        found["additionalProperties"] = False if "properties" in found else ANY
    if found.get("type") == "array" and not {"items", "prefixItems"} & found.keys():
        found["items"] = ANY
    return found if _LIMITS & found.keys() else _with_plain_numbers(found)


def _with_plain_numbers(schema: dict[str, Any]) -> dict[str, Any]:
    types = schema.get("type")
    listed = types if isinstance(types, list) else [types]
    if "number" not in listed:
        return schema
    others = [{"type": other} for other in listed if other != "number"]
    return {**{key: value for key, value in schema.items() if key != "type"}, "anyOf": [*_NUMBERS, *others]}
