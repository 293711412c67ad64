"""JSON Schemas: read from a file, and turned into a validator that fetches nothing."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
from referencing import Registry

from luthier.errors import EvaluationError


def read_schema(path: Path) -> dict[str, Any]:
    """The JSON Schema in a file.

    Raises:
        EvaluationError: the file is missing, is not JSON, or is not a schema.
    """
    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
        jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator).check_schema(schema)
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{path}: not a readable JSON file: {error}; evaluation.json_schema names it") from None
    except jsonschema.SchemaError as error:
        raise EvaluationError(f"{path}: not a JSON Schema: {error.message} at {error.json_path}") from None
    if not isinstance(schema, dict):
        raise EvaluationError(f"{path}: expected a JSON Schema, an object with `properties`; found {schema!r}")
    return schema


def validator_of(schema: Mapping[str, Any]) -> Any:
    """A validator in the dialect that `$schema` names, else 2020-12; what a `$ref` names elsewhere is not fetched."""
    cls = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
    return cls(schema, registry=Registry())
