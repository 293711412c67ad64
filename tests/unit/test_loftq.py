"""LoftQ: an adapter over a quantized base begins with what quantizing lost, and is a plain LoRA beside that base."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine_runs import tiny_llama
from tests.quantized import quantize

from luthier.adapters.lora import LoRA
from luthier.config import build
from luthier.errors import ModelError
from luthier.models.catalog import resolve
from luthier.models.load import load
from luthier.models.packed import write_packed
from luthier.recipe import Recipe

IDS = torch.arange(5, 45)[None]


def opened(folder: Path, quantize: str) -> Any:
    return load(resolve(str(folder)), "float32", "cpu", quantize=quantize).model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found


@pytest.mark.parametrize("format", ["nf4", "int8"])
def test_the_model_starts_nearer_to_the_unquantized_one_than_its_base_and_the_rank_says_how_near(
    format: str, tiny_model_folder: Path
) -> None:
    wanted = logits(opened(tiny_model_folder, "none"))
    errors = [float((logits(opened(tiny_model_folder, format)) - wanted).norm())]
    for rank in (8, 32, 64):  # a matrix of the tiny model has no rank above 64: nothing is lost then
        model = opened(tiny_model_folder, format)
        injected = LoRA(init="loftq", rank=rank).inject(model, seed=0)
        assert not injected.starts_as_base
        errors.append(float((logits(model) - wanted).norm()))
        with injected.disabled():
            assert torch.equal(logits(model), logits(opened(tiny_model_folder, format)))
    assert errors[1] < 0.95 * errors[0] and errors[2] < 0.75 * errors[0] and errors[3] < 1e-4 * errors[0], errors


def test_what_is_saved_is_a_plain_lora_of_the_same_rank_over_the_same_codes(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    model, again = (opened(tiny_model_folder, "nf4") for _ in range(2))
    injected = LoRA(init="loftq", rank=8, alpha=4, scaling="sqrt_rank").inject(model, seed=0)
    injected.save(tmp_path, "tiny")
    restored = LoRA().restore(again, tmp_path)
    assert torch.equal(logits(model), logits(again))
    assert all(len(layer.a) == 8 for layer in restored.layers.values())
    wanted = logits(model)
    restored.merge()
    torch.testing.assert_close(logits(again), wanted, atol=1e-4, rtol=0)


def test_a_base_without_the_matrices_that_its_codes_were_made_of_is_refused(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="the base is dense: set"):
        LoRA(init="loftq").inject(opened(tiny_model_folder, "none"), seed=0)
    with pytest.raises(ModelError, match="hold the codes alone"):
        LoRA(init="loftq").inject(quantize(tiny_llama(), "gguf"), seed=0)
    plain = opened(tiny_model_folder, "none")
    write_packed(tmp_path, plain.config, plain.named_parameters(), "nf4")
    for path in tiny_model_folder.glob("tokenizer*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ModelError, match="hold the codes alone"):
        LoRA(init="loftq").inject(opened(tmp_path, "nf4"), seed=0)


def test_a_recipe_names_it() -> None:
    recipe = build(Recipe, {"adapter": {"type": "lora", "init": "loftq"}, "data": {"train": "rows.jsonl"}})
    assert isinstance(recipe.adapter, LoRA) and recipe.adapter.init == "loftq"
