"""What a search may try: options or a range for any key of a recipe that decides what is learned.

    optimizer.learning_rate=1e-4..1e-2:log     a range, drawn evenly in the logarithm
    adapter.rank=4..32                         a range of whole numbers
    training.epochs=1.0..4.0                   a range
    adapter.type=lora,dora,ia3                 options, each a TOML value; a bare word is a text

A key that another type does not know is left out where that type is tried. A type other than the recipe's begins from
its own defaults, not from settings that were written for another one.
"""

import itertools
import json
import math
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from luthier.config import Tree, build, override, read_toml
from luthier.errors import RecipeError
from luthier.recipe import PARTS, Recipe

REFUSED: Mapping[str, str] = {
    "data": "all trials share the rows",
    "model": "losses of two bases cannot be compared; `luthier rebase` compares bases",
    "evaluation": "it decides what is measured, not what is learned",
    "cost": "it decides no weight",
    "decision": "it decides the verdict, not what is learned",
    "tracking": "it tells what is learned, and changes nothing of it",
    "retrieval": "trials are trained and asked without passages",
    "seed": "luck is counted with --seeds",
    "objective.type": "another objective trains on other rows",
    "adapter.new_tokens": "all trials share the rows as tokens",
    "training.max_tokens": "all trials share the rows as tokens",
    "training.micro_batch_tokens": "it changes no result",
    "training.gradient_checkpointing": "it changes no result",
    "training.save_every": "it changes no result",
    "training.keep": "it changes no result",
}
"""Keys, and tables of keys, that cannot be tried, and why."""
OF_THE_LOSS = "objective"
"""Table of keys that change what the loss is: values of it cannot be compared."""


@dataclass(frozen=True)
class Options:
    """One of several values."""

    key: str
    values: tuple[Any, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """The values as JSON, by which a study knows them."""
        return tuple(json.dumps(value) for value in self.values)

    @property
    def ends(self) -> tuple[Any, ...]:
        """Values that must be allowed for all to be."""
        return self.values

    def dump(self) -> Any:
        """As a space in TOML says it."""
        return list(self.values)


@dataclass(frozen=True)
class Range:
    """Every value from `low` to `high`, both included."""

    key: str
    low: float
    high: float
    log: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether only whole numbers are meant: both ends are written so."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def ends(self) -> tuple[Any, ...]:
        """Values that must be allowed for all to be."""
        return self.low, self.high

    def dump(self) -> Any:
        """As a space in TOML says it."""
        return {"low": self.low, "high": self.high, "log": self.log}


Dimension: TypeAlias = Options | Range


def parse_try(text: str) -> Dimension:
    """`KEY=LOW..HIGH[:log]` or `KEY=A,B,C`.

    Raises:
        RecipeError: it is neither.
    """
    key, equals, value = (part.strip() for part in text.partition("="))
    if not key or not equals or not value:
        raise RecipeError(f"--try {text!r}: expected KEY=LOW..HIGH, KEY=LOW..HIGH:log, or KEY=A,B,C")
    numbers, _, scale = value.partition(":")
    low, dots, high = numbers.partition("..")
    if dots:
        if scale not in ("", "log"):
            raise RecipeError(f"--try {text!r}: {scale!r} is no scale; expected `log` or nothing")
        return _range(key, _number(low, text), _number(high, text), scale == "log")
    return _options(key, _listed(value))


def _number(text: str, given: str) -> float:
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        if math.isfinite(value):
            return value
    raise RecipeError(f"--try {given!r}: {text.strip()!r} is no number")


def _listed(text: str) -> list[Any]:
    """The values of a list without its brackets: TOML values, or bare words."""
    try:
        values = tomllib.loads(f"values = [{text}]")
    except tomllib.TOMLDecodeError:
        return [override({}, [f"value={one}"])["value"] for one in text.split(",")]
    return list(values["values"])


def read_space(path: Path) -> list[Dimension]:
    """The dimensions of a TOML file: a list of options, or a table with `low`, `high` and perhaps `log`, by key.

    Raises:
        RecipeError: it cannot be read, or a value is neither.
    """
    return [_dimension(key, value, path) for key, value in _leaves(read_toml(path))]


def _leaves(tree: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and not {"low", "high"} & value.keys():
            yield from _leaves(value, f"{at}{key}.")
        else:
            yield f"{at}{key}", value


def _dimension(key: str, value: Any, path: Path) -> Dimension:
    if isinstance(value, list):
        return _options(key, value)
    if isinstance(value, Mapping) and {"low", "high"} <= value.keys() <= {"low", "high", "log"}:
        low, high, log = value["low"], value["high"], value.get("log", False)
        if isinstance(log, bool) and all(type(end) in (int, float) for end in (low, high)):
            return _range(key, low, high, log)
    raise RecipeError(
        f"{path}: {key} = {value!r}: expected a list of options, or {{ low = 1e-4, high = 1e-2, log = true }}"
    )


def _range(key: str, low: float, high: float, log: bool) -> Range:
    if not low < high:
        raise RecipeError(f"{key}: from {low:g} to {high:g} is no range; expected a lower end below the upper one")
    if log and low <= 0:
        raise RecipeError(f"{key}: a range in the logarithm begins above 0, this one at {low:g}")
    return Range(key, low, high, log)


def _options(key: str, values: Sequence[Any]) -> Options:
    found = Options(key, tuple(values))
    if len(set(found.labels)) < 2 or len(set(found.labels)) < len(values):
        raise RecipeError(
            f"{key}: expected at least two options, all different, found {list(values)}; one is for --set"
        )
    return found


def ordered(dimensions: Sequence[Dimension]) -> list[Dimension]:
    """Types first, since they decide which keys there are.

    Raises:
        RecipeError: there are none, or two of a key.
    """
    if not dimensions:
        raise RecipeError("nothing to try: name keys with --try, such as --try optimizer.learning_rate=1e-4..1e-2:log")
    keys = [dimension.key for dimension in dimensions]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise RecipeError(f"{twice[0]} is to be tried in two ways; expected one")
    return sorted(dimensions, key=lambda dimension: not dimension.key.endswith(".type"))


def settle(
    tree: Tree, dimensions: Sequence[Dimension], draw: Callable[[Dimension], Any]
) -> tuple[Tree, dict[str, Any]]:
    """The recipe of one trial as a tree, and the values that were drawn for it.

    Args:
        tree: the recipe as given.
        dimensions: types first.
        draw: gives the value of a dimension; asked only where the types drawn so far know its key.
    """
    values: dict[str, Any] = {}
    for dimension in dimensions:
        if _knows(tree, dimension.key):
            values[dimension.key] = draw(dimension)
            tree = put(tree, dimension.key, values[dimension.key])
    return tree, values


def put(tree: Tree, key: str, value: Any) -> Tree:
    """A copy with one key set; another type takes the place of the settings of the old one."""
    *groups, last = key.split(".")
    copy: Tree = json.loads(json.dumps(tree))
    part = groups[0] if len(groups) == 1 and last == "type" else ""
    if part in PARTS and copy.get(part, {}).get("type", PARTS[part][1]) != value:
        copy[part] = {}
    node = copy
    for group in groups:
        node = node.setdefault(group, {})
        if not isinstance(node, dict):
            raise RecipeError(f"{key}: {group!r} is a value in this recipe, not a table")
    node[last] = value
    return copy


def _knows(tree: Tree, key: str) -> bool:
    """Whether the recipe has such a key with the types that it names; below a setting, anything may stand."""
    group, _, rest = key.partition(".")
    if not rest or rest == "type":
        return True
    table = Recipe.tables(tree).get(group)
    return table is not None and rest.partition(".")[0] in table.model_fields


def require_space(tree: Tree, dimensions: Sequence[Dimension], by_loss: bool) -> None:
    """Check every dimension against the recipe, with each choice of types.

    Raises:
        RecipeError: a key cannot be tried, is unknown with every type, or one of its values is refused.
    """
    for dimension in dimensions:
        _require_allowed(dimension.key, by_loss)
    types = [d for d in dimensions if isinstance(d, Options) and d.key.endswith(".type")]
    others = [d for d in dimensions if d not in types]
    known: set[str] = set()
    for combination in itertools.product(*(d.values for d in types)):
        chosen = tree
        for dimension, value in zip(types, combination, strict=True):
            chosen = put(chosen, dimension.key, value)
        build(Recipe, chosen)
        for dimension in others:
            if _knows(chosen, dimension.key):
                known.add(dimension.key)
                for end in dimension.ends:
                    build(Recipe, put(chosen, dimension.key, end))
    for dimension in others:
        if dimension.key not in known:  # the recipe says it better than we could
            build(Recipe, put(tree, dimension.key, dimension.ends[0]))
            raise RecipeError(f"{dimension.key}: no key of this recipe")


def _require_allowed(key: str, by_loss: bool) -> None:
    for refused, reason in REFUSED.items():
        if key == refused or key.startswith(f"{refused}."):
            raise RecipeError(f"{key} cannot be tried: {reason}")
    if by_loss and key.partition(".")[0] == OF_THE_LOSS:
        raise RecipeError(f"{key} changes what the loss is, so losses cannot be compared; use --by metric")
