"""What survives of an update when merged weights are quantized: little on the grid, nearly all of it off the grid."""

import copy
from typing import Any

import pytest
import torch
from tests.quantized import quantize
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from luthier.errors import ExportError
from luthier.export.survival import Survival, measure, rounded

WIDTH = 256


def base() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 1, "vocab_size": 11}
        return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=4))


def low_rank(shape: torch.Size, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    update = torch.randn(shape[0], 8, generator=generator) @ torch.randn(8, shape[1], generator=generator)
    return update / update.square().mean().sqrt()


def learned(model: Any, size: float) -> Any:
    """A dense copy whose linear layers have moved by this share of the size of their weights."""
    made = copy.deepcopy(model)
    for i, (name, module) in enumerate(list(model.named_modules())):
        if name == "lm_head" or not hasattr(module, "in_features"):
            continue
        dense = module if isinstance(module, nn.Linear) else module.to_dense()
        rms = dense.weight.square().mean().sqrt()
        linear = nn.Linear(dense.in_features, dense.out_features, bias=False)
        linear.weight = nn.Parameter(dense.weight + size * rms * low_rank(dense.weight.shape, i), requires_grad=False)
        made.set_submodule(name, linear)
    return made


def survived(size: float, held: str | None, format: str) -> Survival:
    model = quantize(base(), held) if held else base()
    with torch.no_grad():
        return measure(model, learned(model, size), format, lambda _, weight: rounded(weight, format))


@pytest.mark.parametrize(
    ("size", "low", "high"), [(0.01, 0.0, 0.05), (0.05, 0.1, 0.5), (0.1, 0.6, 0.9), (0.4, 0.97, 1.03)]
)
def test_on_the_grid_of_nf4_a_small_update_rounds_back_and_a_large_one_does_not(
    size: float, low: float, high: float
) -> None:
    found = survived(size, "nf4", "nf4")
    assert len(found.layers) == 7 and all(low <= layer.kept <= high for layer in found.layers), found.layers
    assert all(layer.size == pytest.approx(size, rel=0.05) for layer in found.layers)


@pytest.mark.parametrize(("held", "format"), [(None, "nf4"), (None, "int8"), ("nf4", "int8")])
def test_off_the_grid_a_small_update_survives_on_average(held: str | None, format: str) -> None:
    """Beside it there is noise many times its size, in the place of as much that the base had."""
    found = survived(0.02, held, format)
    assert found.mean == pytest.approx(1, abs=0.06)
    assert all(layer.kept > 0.85 for layer in found.layers)
    if format == "nf4":
        assert all(layer.beside > 1 for layer in found.layers)
        with torch.no_grad():
            model = base()
            before, after = (
                float((rounded(w, "nf4") - w).norm())
                for w in (m.model.layers[0].mlp.up_proj.weight for m in (model, learned(model, 0.02)))
            )
        assert after == pytest.approx(before, rel=0.02), "no more error than the base has by itself"


def test_the_error_names_the_worst_layer_its_share_and_what_to_do() -> None:
    found = survived(0.01, "nf4", "nf4")
    worst = min(found.layers, key=lambda layer: layer.kept)
    with pytest.raises(ExportError) as caught:
        found.require(0.9)
    for word in (worst.name, f"{worst.kept:.1%}", "luthier serve", "--format safetensors", "--least-kept 0"):
        assert word in str(caught.value)
    found.require(0.0)
    assert str(found.layers[0]) in "\n".join(found.told()) and found.layers[0] == worst


def test_layers_that_did_not_move_have_no_share() -> None:
    found = survived(0.0, None, "nf4")
    assert found.layers == () and found.dump() == {"mean_kept": None, "layers": {}}
    found.require(1.0)
