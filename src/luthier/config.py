"""Settings are data: frozen, closed, typed, one docstring per field.

From one definition come validation, `--help`, the JSON schema and the reference page. An unknown key is an error
that suggests the nearest known one.
"""

import hashlib
import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from luthier.errors import RecipeError, did_you_mean as did_you_mean

Tree = dict[str, Any]


class Settings(BaseModel):
    """The base of every group of settings: frozen, and an unknown key is an error."""

    # strict: "8" is not 8, true is not 1, and nothing a user wrote is bent until it fits
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        validate_default=True,  # 32 as the default of a float becomes 32.0, so that it hashes as a given 32.0 does
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )

    @classmethod
    def tables(cls, values: Mapping[str, Any]) -> "dict[str, type[Settings]]":
        """The tables in `values`, by key: the usual mistake is the right key in the wrong one."""
        found = {name: group_of(field.annotation) for name, field in cls.model_fields.items()}
        return {name: group for name, group in found.items() if group is not None}

    @model_validator(mode="before")
    @classmethod
    def _freeze_lists(cls, values: Any) -> Any:
        """TOML and JSON have only lists; settings hold tuples, so that nobody can change them."""
        return {key: _frozen(value) for key, value in values.items()} if isinstance(values, Mapping) else values


def group_of(annotation: Any) -> type[Settings] | None:
    """The group of settings that a field holds, also where the whole group may be absent; None if it holds none."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    for kind in kinds:
        if isinstance(kind, type) and issubclass(kind, Settings):
            return kind
    return None


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


S = TypeVar("S", bound=Settings)
NESTED = "nested_settings"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with settings."""

    path: tuple[str, ...]
    text: str
    known: tuple[str, ...] | None = None
    """Where the key is unknown: the keys that its table has."""

    def tell(self, tables: Mapping[str, type[Settings]]) -> str:
        """The message; `tables` are where an unknown key may belong instead."""
        if self.known is None:
            return self.text
        key = self.path[-1]
        homes = [f"{name}.{key}" for name, table in tables.items() if key in table.model_fields]
        return self.text + (f"; did you mean {homes[0]!r}?" if len(homes) == 1 else did_you_mean(key, self.known))


class SettingsError(RecipeError):
    """Everything that is wrong with a group of settings."""

    def __init__(self, problems: Sequence[Problem], tables: Mapping[str, type[Settings]]) -> None:
        self.problems = problems
        super().__init__("\n".join(problem.tell(tables) for problem in problems))


@contextmanager
def nested() -> Iterator[None]:
    """Within a validator: what is wrong with a part is reported together with all else that is wrong.

    Raises:
        PydanticCustomError: in place of a RecipeError; `build` takes it apart again.
    """
    try:
        yield
    except SettingsError as error:
        raise PydanticCustomError(NESTED, "{problems}", {"problems": tuple(error.problems)}) from None
    except RecipeError as error:
        raise PydanticCustomError(NESTED, "{problems}", {"problems": (Problem((), str(error)),)}) from None


def build(cls: type[S], values: Mapping[str, Any], at: Sequence[str] = ()) -> S:
    """Make settings of type `cls` from plain values; `at` is where they stand in the recipe, for messages.

    Raises:
        RecipeError: a key is unknown, missing, or its value is of the wrong kind or out of range.
    """
    try:
        return cls.model_validate(dict(values))
    except ValidationError as error:
        problems = [problem for found in error.errors() for problem in _problems(cls, found, at)]
        tables = {".".join([*at, name]): table for name, table in cls.tables(values).items()}
        raise SettingsError(problems, tables) from None


def part(settings: Settings, kind: type[S], key: str) -> S:
    """The part of a recipe as what it must be.

    Raises:
        RecipeError: a plug-in put something else under this key.
    """
    if not isinstance(settings, kind):
        raise RecipeError(f"{key}.type: {type(settings).__name__} is not a {kind.__name__}")
    return settings


def _problems(cls: type[Settings], error: Any, at: Sequence[str]) -> Sequence[Problem]:
    path = (*at, *(str(part) for part in error["loc"]))
    name = ".".join(path)
    if error["type"] == NESTED:
        problems: Sequence[Problem] = error["ctx"]["problems"]
        return problems
    if error["type"] == "extra_forbidden":
        known = sorted(_fields_at(cls, [str(p) for p in error["loc"][:-1]]))
        return [Problem(path, f"unknown key {name!r}", tuple(known))]
    if error["type"] == "missing":
        return [Problem(path, f"{name!r} is missing: it has no default")]
    return [Problem(path, f"{name} = {_short(error['input'])}: {_lower_first(error['msg'])}")]


def _short(value: Any, longest: int = 120) -> str:
    text = repr(value)
    return text if len(text) <= longest else text[:longest] + "..."


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


def _fields_at(cls: type[Settings], path: Sequence[str]) -> Iterable[str]:
    """Names of the fields of the settings group that `path` leads to."""
    for part in path:
        field = cls.model_fields.get(part)
        inner = group_of(field.annotation) if field is not None else None
        if inner is None:
            return []
        cls = inner
    return cls.model_fields


def read_toml(path: Path) -> Tree:
    """The plain tree of a TOML file.

    Raises:
        RecipeError: the file is missing, is not UTF-8, or is not TOML (with the line).
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such file; `luthier init train.jsonl -o {path}` writes one") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"{path}: not a readable TOML file: {error}") from None


def override(tree: Tree, assignments: Iterable[str]) -> Tree:
    """A copy of `tree` with each `a.b=value` applied; a value is read as TOML, and as plain text if it is not.

    Raises:
        RecipeError: an assignment has no `=`, or its path runs through something that is not a table.
    """
    copy: Tree = json.loads(json.dumps(tree, default=str))
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        *parents, last = keys = [key.strip() for key in path.split(".")]
        if not equals or not all(keys):
            raise RecipeError(f"--set {assignment!r}: expected key=value, such as training.steps=100")
        node = copy
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise RecipeError(f"--set {assignment!r}: {parent!r} is a value, not a table")
        node[last] = _parse_value(text.strip())
    return copy


def _parse_value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if len(parsed) == 1 else text  # text of several lines can look like more keys


def write_toml(tree: Mapping[str, Any]) -> str:
    """`tree` as TOML text that `read_toml` turns into an equal tree; TOML knows no null, so None is left out.

    Raises:
        RecipeError: a value is of a kind that TOML cannot hold.
    """
    return "\n".join(_toml_lines(tree, ())).strip() + "\n"


def _toml_lines(table: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    plain = {key: value for key, value in table.items() if value is not None and not isinstance(value, Mapping)}
    tables = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    lines = ["", f"[{'.'.join(_toml_key(part) for part in path)}]"] if path and (plain or not tables) else []
    lines += [f"{_toml_key(key)} = {_toml_value(value)}" for key, value in plain.items()]
    for key, value in tables.items():
        lines += _toml_lines(value, (*path, key))
    return lines


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_value(key)


def _toml_value(value: Any) -> str:
    if isinstance(value, str):  # JSON's escapes are TOML's; only DEL is allowed raw by one and not by the other
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        pairs = (f"{_toml_key(key)} = {_toml_value(item)}" for key, item in value.items() if item is not None)
        return "{ " + ", ".join(pairs) + " }"
    if isinstance(value, Sequence):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    raise RecipeError(f"{value!r} cannot be written as TOML: expected text, numbers, true or false, lists or tables")


def canonical_hash(value: Any) -> str:
    """sha256 of the canonical JSON of `value`: equal content gives an equal hash, whatever the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
