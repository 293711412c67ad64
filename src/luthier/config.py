"""Settings are data: frozen, closed, typed, one docstring per field.

From one definition come validation, `--help`, the JSON schema and the reference page. An unknown key is an error
that suggests the nearest known one.
"""

import difflib
import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from luthier.errors import RecipeError

Tree = dict[str, Any]


class Settings(BaseModel):
    """The base of every group of settings: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())


S = TypeVar("S", bound=Settings)


def build(cls: type[S], values: Mapping[str, Any], at: Sequence[str] = ()) -> S:
    """Make settings of type `cls` from plain values; `at` is where they stand in the recipe, for messages.

    Raises:
        RecipeError: a key is unknown, missing, or its value is of the wrong kind or out of range.
    """
    try:
        return cls.model_validate(dict(values))
    except ValidationError as error:
        raise RecipeError("\n".join(_explain(cls, e, at) for e in error.errors())) from None


def _explain(cls: type[Settings], error: Any, at: Sequence[str]) -> str:
    path = [*at, *(str(part) for part in error["loc"])]
    name = ".".join(path)
    if error["type"] == "extra_forbidden":
        known = sorted(_fields_at(cls, [str(p) for p in error["loc"][:-1]]))
        return f"unknown key {name!r}{did_you_mean(path[-1], known)}"
    if error["type"] == "missing":
        return f"{name!r} is missing: it has no default"
    return f"{name} = {error['input']!r}: {error['msg']}"


def _fields_at(cls: type[Settings], path: Sequence[str]) -> Iterable[str]:
    """Names of the fields of the settings group that `path` leads to."""
    for part in path:
        field = cls.model_fields.get(part)
        inner = field.annotation if field is not None else None
        if not (isinstance(inner, type) and issubclass(inner, Settings)):
            return []
        cls = inner
    return cls.model_fields


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """`; did you mean 'x'?` for the nearest known words, or the list of them when none is near."""
    if not known:
        return ""
    close = difflib.get_close_matches(word, known, n=2)
    if close:
        return "; did you mean " + " or ".join(repr(c) for c in close) + "?"
    return "; known here: " + ", ".join(known)


def read_toml(path: Path) -> Tree:
    """The plain tree of a TOML file.

    Raises:
        RecipeError: the file is missing, is not UTF-8, or is not TOML (with the line).
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such file; `luthier init train.jsonl -o {path}` writes one") from None
    except (IsADirectoryError, PermissionError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"{path}: not a readable TOML file: {error}") from None


def override(tree: Tree, assignments: Iterable[str]) -> Tree:
    """A copy of `tree` with each `a.b=value` applied; a value is read as TOML, and as plain text if it is not.

    Raises:
        RecipeError: an assignment has no `=`, or its path runs through something that is not a table.
    """
    copy: Tree = json.loads(json.dumps(tree, default=str))
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path.strip():
            raise RecipeError(f"--set {assignment!r}: expected key=value, such as training.steps=100")
        *parents, last = path.strip().split(".")
        node = copy
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise RecipeError(f"--set {assignment!r}: {parent!r} is a value, not a table")
        node[last] = _parse_value(text.strip())
    return copy


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def canonical_hash(value: Any) -> str:
    """sha256 of the canonical JSON of `value`: equal content gives an equal hash, whatever the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
