"""Whether items fit a schema, in a process that can be ended: `python -m luthier.jobs.item_check SECONDS < REQUEST`.

A client writes the schema, and a pattern of a few characters can keep Python's `re` at work for years. The request is a
line of JSON with the schema and then one line for each item; the answer is a JSON object, empty if all fit.
"""

import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from re import error as PatternError
from typing import IO, Any

import jsonschema
from referencing.exceptions import Unresolvable

from luthier.errors import EvaluationError
from luthier.evaluation.schema import validator_of

SECONDS = 20
"""Of processor time."""
START_SECONDS = 20
MEMORY_BYTES = 1024 * 1024 * 1024
SHOWN_CHARS = 300
SCHEMA_BYTES = 64 * 1024
SCHEMA_DEPTH = 32
REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")


def check_schema(schema: Mapping[str, Any]) -> None:
    """Whether it is a schema that items can be held against.

    Raises:
        EvaluationError: it is none, is too large or too deep, or names a schema elsewhere.
    """
    size = len(json.dumps(schema, ensure_ascii=False).encode())
    if size > SCHEMA_BYTES:
        raise EvaluationError(f"the schema has {size:,} bytes; expected at most {SCHEMA_BYTES:,}")
    stack: list[tuple[Any, int]] = [(schema, 1)]
    while stack:
        node, depth = stack.pop()
        if depth > SCHEMA_DEPTH:
            raise EvaluationError(f"the schema is nested more than {SCHEMA_DEPTH} deep")
        if isinstance(node, Mapping):
            for name in REFERENCES:
                where = node.get(name)
                if isinstance(where, str) and not where.startswith("#"):
                    raise EvaluationError(
                        f"the schema has {name!r}: {where[:80]!r}; expected one within itself, such as '#/$defs/name'"
                    )
        inner = node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ()
        stack.extend((one, depth + 1) for one in inner)
    try:
        jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator).check_schema(dict(schema))
    except jsonschema.SchemaError as error:
        raise EvaluationError(f"no JSON Schema: {error.message[:SHOWN_CHARS]} at {error.json_path}") from None


def first_misfit(
    schema: Mapping[str, Any], items: Sequence[Mapping[str, Any]], seconds: int = SECONDS
) -> tuple[int, str] | None:
    """The number of the first item that does not fit, from 0, and why; None if all fit.

    Raises:
        EvaluationError: it could not be found out, as the schema cannot be applied or takes too long.
    """
    with tempfile.TemporaryFile() as given:
        for value in (schema, *items):
            given.write(json.dumps(value).encode() + b"\n")
        given.seek(0)
        try:
            ended = subprocess.run(
                [sys.executable, "-P", "-m", "luthier.jobs.item_check", str(seconds)],
                stdin=given,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=2 * seconds + START_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise _too_long(seconds) from None
    try:
        found = json.loads(ended.stdout)
    except ValueError:
        raise _too_long(seconds) from None
    if "problem" in found:
        raise EvaluationError(found["problem"])
    return (found["number"], found["misfit"]) if found else None


def _too_long(seconds: int) -> EvaluationError:
    return EvaluationError(
        f"the items could not be held against item_schema within {seconds} seconds and "
        f"{MEMORY_BYTES // 2**20} MiB; use a simpler schema or fewer items"
    )


def look(lines: IO[bytes]) -> dict[str, Any]:
    """What the process answers to a request."""
    validator = validator_of(json.loads(lines.readline()))
    for number, line in enumerate(lines):
        try:
            error = next(validator.iter_errors(json.loads(line)), None)
        except Unresolvable as failure:
            return {"problem": f"item_schema names what it does not have: {failure!s:.200}"}
        except (PatternError, RecursionError, jsonschema.exceptions.UnknownType) as failure:
            return {"problem": f"item_schema cannot be applied: {failure!s:.200}"}
        if error is not None:
            return {"number": number, "misfit": f"{error.message[:SHOWN_CHARS]} at {error.json_path[:100]}"}
    return {}


def main() -> None:
    """Bound this process and answer."""
    seconds = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    print(json.dumps(look(sys.stdin.buffer)))


if __name__ == "__main__":
    main()
