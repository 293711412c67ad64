"""Settings: closed, strict, overridable, hashable, and written back without loss."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, strategies as st
from pydantic import Field

from luthier.config import Settings, build, canonical_hash, did_you_mean, override, read_toml, write_toml
from luthier.errors import RecipeError


class Inner(Settings):
    """A group inside a group."""

    depth: int = Field(1, ge=1)
    """How deep."""
    rate: float = Field(0.5, gt=0, lt=1)
    """How fast."""


class Outer(Settings):
    """A group of settings with one of each kind."""

    name: str
    """What it is called."""
    inner: Inner = Inner()
    """The group inside."""
    words: tuple[str, ...] = ()
    """Some words."""
    mode: Literal["fast", "exact"] = "fast"
    """How it is done."""
    on: bool = False
    """Whether it is done."""


def message(values: Mapping[str, Any], at: tuple[str, ...] = ()) -> str:
    """What `build` says about wrong values."""
    with pytest.raises(RecipeError) as caught:
        build(Outer, values, at)
    return str(caught.value)


def test_builds_with_defaults_and_is_frozen() -> None:
    built = build(Outer, {"name": "x", "inner": {"depth": 3}, "words": ["a", "b"]})
    assert built == Outer(name="x", inner=Inner(depth=3), words=("a", "b"))
    with pytest.raises(ValueError, match="frozen"):
        built.name = "y"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"name": "x", "inner": {"dept": 3}}, "unknown key 'inner.dept'; did you mean 'depth'?"),
        ({"nam": "x"}, "unknown key 'nam'; did you mean 'name'?"),
        ({"name": "x", "zzz": 1}, "known here: inner, mode, name, on, words"),
        ({"name": "x", "depth": 3}, "unknown key 'depth'; did you mean 'inner.depth'?"),
        ({}, "'name' is missing: it has no default"),
        ({"name": "x", "inner": {"depth": 0}}, "inner.depth = 0: input should be greater than or equal to 1"),
        ({"name": "x", "mode": "fas"}, "mode = 'fas': input should be 'fast' or 'exact'"),
        ({"name": "x", "inner": 3}, "inner = 3: "),
    ],
)
def test_says_what_is_wrong_and_where(values: dict[str, Any], expected: str) -> None:
    assert expected in message(values)


def test_says_all_that_is_wrong_at_once_and_where_it_stands() -> None:
    text = message({"inner": {"depth": 0, "rate": 2}}, at=("part",))
    assert len(text.splitlines()) == 3
    assert all(f"part.{key}" in text for key in ("name", "inner.depth", "inner.rate"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("depth", "3"),
        ("depth", True),
        ("depth", 3.0),
        ("depth", None),
        ("rate", "0.5"),
        ("rate", float("nan")),
        ("rate", float("inf")),
        ("rate", True),
    ],
)
def test_never_bends_a_value_until_it_fits(key: str, value: Any) -> None:
    assert f"inner.{key} = " in message({"name": "x", "inner": {key: value}})


def test_a_whole_number_is_a_number() -> None:
    class Wide(Settings):
        rate: float

    assert build(Wide, {"rate": 2}).rate == 2.0


def test_long_values_are_shortened_in_messages() -> None:
    assert len(message({"name": "x", "mode": "y" * 100_000})) < 300


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-4", 1e-4),
        ("true", True),
        ('"3"', "3"),
        ("plain words", "plain words"),
        ("a=b", "a=b"),
        ("[1, 2]", [1, 2]),
        ('{ type = "dora", rank = 4 }', {"type": "dora", "rank": 4}),
        ("", ""),
        ("1\ntwo = 2", "1\ntwo = 2"),
    ],
)
def test_set_reads_toml_and_takes_the_rest_as_text(text: str, value: Any) -> None:
    assert override({}, [f"a.b={text}"]) == {"a": {"b": value}}


def test_set_leaves_the_original_alone_and_later_ones_win() -> None:
    tree = {"a": {"b": 1, "c": 2}}
    assert override(tree, ["a.b=5", " a . b = 6 ", "d=7"]) == {"a": {"b": 6, "c": 2}, "d": 7}
    assert tree == {"a": {"b": 1, "c": 2}}


@pytest.mark.parametrize("assignment", ["a", "=1", ".a=1", "a..b=1", "a.=1", "", " =x"])
def test_set_without_key_or_value(assignment: str) -> None:
    with pytest.raises(RecipeError, match="expected key=value, such as"):
        override({}, [assignment])


def test_set_through_a_value() -> None:
    with pytest.raises(RecipeError, match="'b' is a value, not a table"):
        override({"a": {"b": 1}}, ["a.b.c=2"])


def test_did_you_mean() -> None:
    assert did_you_mean("lroa", ["lora", "full"]) == "; did you mean 'lora'?"
    assert did_you_mean("zzz", ["lora", "full"]) == "; known here: lora, full"
    assert did_you_mean("x", []) == ""


def test_read_toml_says_what_is_wrong_with_a_file(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such file; `luthier init"):
        read_toml(tmp_path / "absent.toml")
    with pytest.raises(RecipeError, match="not a readable TOML file"):
        read_toml(tmp_path)
    bad = tmp_path / "bad.toml"
    bad.write_text("")
    for unreadable in (bad / "x.toml", tmp_path / ("x" * 300)):
        with pytest.raises(RecipeError, match="not a readable TOML file"):
            read_toml(unreadable)
    bad.write_text("a = 1\nb = = 2\n")
    with pytest.raises(RecipeError, match=r"bad\.toml.*line 2"):
        read_toml(bad)
    bad.write_bytes(b"a = '\xff'")
    with pytest.raises(RecipeError, match="not a readable TOML file"):
        read_toml(bad)


def test_read_toml_takes_the_mark_that_windows_editors_write(tmp_path: Path) -> None:
    path = tmp_path / "marked.toml"
    path.write_bytes(b"\xef\xbb\xbfa = 1\n")
    assert read_toml(path) == {"a": 1}


keys = st.text(min_size=1, max_size=8)
texts = st.text(st.characters(codec="utf-8"), max_size=20)
numbers = st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False)
leaves = st.booleans() | numbers | texts
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3))
trees = st.dictionaries(texts, values, max_size=4)


@given(trees)
def test_toml_round_trip(tree: dict[str, Any]) -> None:
    assert tomllib.loads(write_toml(tree)) == tree


def test_toml_leaves_out_none_and_refuses_the_rest() -> None:
    assert write_toml({"a": None, "b": {"c": None, "d": 1}}) == "[b]\nd = 1\n"
    with pytest.raises(RecipeError, match="cannot be written as TOML"):
        write_toml({"a": object()})


@given(trees, st.randoms())
def test_hash_does_not_see_the_order_of_keys(tree: dict[str, Any], random: Any) -> None:
    items = list(tree.items())
    random.shuffle(items)
    assert canonical_hash(dict(items)) == canonical_hash(tree)


def test_hash_sees_every_value() -> None:
    seen = [{"a": 1}, {"a": 2}, {"a": "1"}, {"a": [1]}, {"b": 1}, {"a": {"a": 1}}, {"a": None}, {}]
    assert len({canonical_hash(tree) for tree in seen}) == len(seen)
