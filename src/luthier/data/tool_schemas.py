"""Whether the arguments of a call fit the JSON Schema that its tool declares. Nothing that it refers to is fetched."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from luthier.examples import ToolCall


def argument_validators(tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What checks the arguments of each tool, by its name; None where it has no schema that can be used."""
    return {name: _validator(parameters) for name, parameters in _offered(tools)}


def calls_that_fit(calls: Sequence[ToolCall], tools: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Of each call whether a tool on offer would take it."""
    validators = argument_validators(tools) if calls else {}
    return [call.name in validators and fits(call.arguments, validators[call.name]) for call in calls]


def fits(arguments: Mapping[str, Any], validator: Any) -> bool:
    """Whether arguments fit; anything does without a validator."""
    if validator is None:
        return True
    from referencing.exceptions import Unresolvable

    try:
        return bool(validator.is_valid(arguments))
    except (Unresolvable, RecursionError):  # a $ref that leads out of the tool, or data too deep to follow
        return True


def _offered(tools: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Name and parameters of the offered tools, in OpenAI's nested shape (`function.name`) or flat (`name`)."""
    for tool in tools:
        inner = tool.get("function", tool)
        name = inner.get("name") if isinstance(inner, Mapping) else None
        if isinstance(name, str):
            yield name, inner.get("parameters")


def _validator(parameters: Any) -> Any:
    if not isinstance(parameters, Mapping) or not parameters:
        return None
    import jsonschema
    from referencing import Registry

    validator = jsonschema.validators.validator_for(parameters, jsonschema.Draft202012Validator)
    try:
        validator.check_schema(dict(parameters))
    except (jsonschema.SchemaError, RecursionError):
        return None
    return validator(parameters, registry=Registry())
