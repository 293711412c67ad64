"""What a search may try: how it is written, what is refused, and what one trial's recipe becomes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from luthier.config import Tree, build
from luthier.errors import RecipeError
from luthier.recipe import Recipe
from luthier.search.space import Dimension, Options, Range, ordered, parse_try, put, read_space, require_space, settle

TREE: Tree = {"data": {"train": "rows.jsonl"}, "adapter": {"rank": 8}, "optimizer": {"learning_rate": 1e-3}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("optimizer.learning_rate=1e-4..1e-2:log", Range("optimizer.learning_rate", 1e-4, 1e-2, log=True)),
        ("adapter.rank=4..32", Range("adapter.rank", 4, 32)),
        ("training.epochs = 1.0..4", Range("training.epochs", 1.0, 4)),
        ("adapter.rank=4,8,16", Options("adapter.rank", (4, 8, 16))),
        ("adapter.type=lora,ia3", Options("adapter.type", ("lora", "ia3"))),
        (
            "adapter.targets=['q_proj'],['q_proj', 'v_proj']",
            Options("adapter.targets", (["q_proj"], ["q_proj", "v_proj"])),
        ),
        ("training.patience=3,false", Options("training.patience", (3, False))),
    ],
)
def test_a_dimension_is_read_as_it_is_written(text: str, expected: Dimension) -> None:
    assert parse_try(text) == expected


def test_whole_ends_mean_whole_numbers() -> None:
    ranges = [parse_try(f"training.epochs={ends}") for ends in ("1..4", "1.0..4", "1..4.5")]
    assert [isinstance(one, Range) and one.is_whole for one in ranges] == [True, False, False]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("adapter.rank", "expected KEY="),
        ("=4,8", "expected KEY="),
        ("adapter.rank=", "expected KEY="),
        ("adapter.rank=8", "at least two options"),
        ("adapter.rank=8,8", "all different"),
        ("adapter.rank=8..4", "no range"),
        ("optimizer.learning_rate=0..1:log", "above 0"),
        ("optimizer.learning_rate=1e-4..1e-2:lin", "no scale"),
        ("optimizer.learning_rate=low..1e-2", "no number"),
        ("optimizer.learning_rate=1e-4..inf", "no number"),
    ],
)
def test_a_dimension_that_means_nothing_is_refused(text: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        parse_try(text)


def test_a_file_says_the_same(tmp_path: Path) -> None:
    path = tmp_path / "space.toml"
    path.write_text(
        'optimizer.learning_rate = { low = 1e-4, high = 1e-2, log = true }\n"adapter.rank" = [4, 8]\n'
        "[training]\nepochs = { low = 1, high = 4 }\n"
    )
    texts = ["optimizer.learning_rate=1e-4..1e-2:log", "adapter.rank=4,8", "training.epochs=1..4"]
    assert read_space(path) == [parse_try(text) for text in texts]
    for wrong in ("adapter.rank = 8", "adapter.rank = { low = 4 }", "adapter.rank = { low = 4, high = 8, step = 2 }"):
        path.write_text(wrong)
        with pytest.raises(RecipeError, match="expected a list of options"):
            read_space(path)


def space(*texts: str) -> list[Dimension]:
    return ordered([parse_try(text) for text in texts])


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (["optimizer.learning_rat=1e-4..1e-2"], "did you mean 'learning_rate'"),
        (["optimzer.learning_rate=1e-4..1e-2"], "did you mean .optimizer"),
        (["adapter.type=lora,loar"], "did you mean 'lora'"),
        (["adapter.rank=0..8"], "adapter.rank"),
        (["adapter.rank=4.5,8.5"], "adapter.rank"),
        (["data.test_share=0.1,0.2"], "share the rows"),
        (["model.name=a,b"], "luthier rebase"),
        (["seed=1,2"], "--seeds"),
        (["decision.smallest_gain=0.01,0.1"], "not what is learned"),
        (["retrieval.top_k=1,5"], "without passages"),
        (["training.max_tokens=64,128"], "share the rows"),
        (["training.keep=1,2"], "changes no result"),
        (["objective.type=sft,dpo"], "other rows"),
        (["adapter.type=lora,bitfit", "adapter.bottleneck=4,8"], "bottleneck"),
    ],
)
def test_a_key_that_cannot_be_tried_is_refused_before_anything_is_read(texts: Sequence[str], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        require_space(TREE, space(*texts), by_loss=True)


def test_what_the_loss_is_may_be_tried_by_the_metric_alone() -> None:
    tree = {**TREE, "objective": {"type": "dpo"}}
    require_space(tree, space("objective.beta=0.05,0.1"), by_loss=False)
    with pytest.raises(RecipeError, match="--by metric"):
        require_space(tree, space("objective.beta=0.05,0.1"), by_loss=True)


def test_an_empty_space_and_a_key_named_twice_are_refused() -> None:
    with pytest.raises(RecipeError, match="nothing to try"):
        ordered([])
    with pytest.raises(RecipeError, match="in two ways"):
        space("adapter.rank=4,8", "adapter.rank=4..8")


def drawn(tree: Tree, dimensions: Sequence[Dimension], values: dict[str, Any]) -> tuple[Tree, dict[str, Any]]:
    return settle(tree, dimensions, lambda dimension: values[dimension.key])


def test_another_type_begins_from_its_own_defaults_and_takes_only_keys_that_it_knows() -> None:
    dimensions = space("adapter.rank=4,16", "adapter.type=lora,bitfit", "optimizer.learning_rate=1e-4..1e-2:log")
    require_space(TREE, dimensions, by_loss=True)
    values = {"adapter.rank": 16, "optimizer.learning_rate": 0.002}
    tree, taken = drawn(TREE, dimensions, {**values, "adapter.type": "lora"})
    assert tree["adapter"] == {"rank": 16, "type": "lora"} and taken.keys() == {*values, "adapter.type"}
    tree, taken = drawn(TREE, dimensions, {**values, "adapter.type": "bitfit"})
    assert tree["adapter"] == {"type": "bitfit"} and "adapter.rank" not in taken
    assert build(Recipe, tree).dump()["optimizer"]["learning_rate"] == 0.002
    assert TREE["adapter"] == {"rank": 8}, "the recipe as given is left alone"


def test_the_same_type_keeps_the_settings_of_the_recipe() -> None:
    assert put(TREE, "adapter.type", "lora")["adapter"] == {"rank": 8, "type": "lora"}
