"""Graders and testing criteria in bodies: plain values here, which `evaluation.graders` builds by its own schemas."""

from collections.abc import Iterator
from typing import Annotated, Any, TypeAlias

from pydantic import GetJsonSchemaHandler, JsonValue
from pydantic_core import CoreSchema

from luthier import registry
from luthier.evaluation.graders.base import GRADERS, Grader
from luthier.jobs.eval_grading import KINDS


class _AnyGrader:
    """The schema of a grader of any type."""

    def __get_pydantic_json_schema__(self, _: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"oneOf": [schema for _, schema in _schemas(handler)]}


class _AnyCriterion:
    """The schema of a grader as a testing criterion: with a threshold, and messages of any role."""

    def __get_pydantic_json_schema__(self, _: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        kinds = [(name, schema) for name, schema in _schemas(handler) if name in KINDS]
        for name, schema in kinds:
            if KINDS[name] == "optional":
                schema["properties"]["pass_threshold"] = {"type": ["number", "null"]}
            if KINDS[name] == "required":
                schema["properties"]["pass_threshold"] = {"type": "number"}
                schema["required"].append("pass_threshold")
            if schema["properties"].get("input", {}).get("type") == "array":
                schema["properties"]["input"]["items"] = {"type": "object"}
        return {"oneOf": [schema for _, schema in kinds]}


def _schemas(handler: GetJsonSchemaHandler) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every type of grader that the API has, and its settings with the type beside them."""
    for name in registry.names(GRADERS):
        kind = registry.load_class(GRADERS, name, Grader)  # type: ignore[type-abstract]
        if not kind.of_openai:
            continue
        found = handler.resolve_ref_schema(handler(kind.__pydantic_core_schema__))
        properties = {"type": {"const": name}, **{key: dict(value) for key, value in found["properties"].items()}}
        yield name, {**found, "properties": properties, "required": ["type", *found["required"]]}


GraderValues: TypeAlias = Annotated[dict[str, JsonValue], _AnyGrader()]
CriterionValues: TypeAlias = Annotated[dict[str, JsonValue], _AnyCriterion()]
