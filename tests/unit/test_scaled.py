"""Linear layers with trained scales against their plain reference, and small scales seen in bfloat16."""

import pytest
import torch
from torch import Tensor

from luthier.adapters.dora import DoRALinear
from luthier.adapters.ia3 import IA3Linear
from luthier.models.kernels.scaled import scaled_linear, scaled_linear_plain, scaled_weight


def drawn(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize(("rows", "cols", "low"), [(1, 0, 0), (0, 1, 0), (1, 1, 0), (1, 0, 1), (1, 1, 1), (0, 0, 1)])
def test_values_and_gradients_are_the_references(zeros: bool, rows: int, cols: int, low: int) -> None:
    x, weight = drawn(5, 7, 12, seed=0), drawn(9, 12, seed=1)
    r, c, a, b = drawn(9, seed=2), drawn(12, seed=3), drawn(3, 12, seed=4), drawn(9, 3, seed=5)
    if zeros:  # a gradient is not made by dividing by a scale of 0
        r[2] = c[3] = 0
    for tensor in (x, r, c, a, b):
        tensor.requires_grad_()
    given = (r if rows else None, c if cols else None, (a, b) if low else None)
    used = [x, *[t for t, used in ((r, rows), (c, cols), (a, low), (b, low)) if used]]
    found, wanted = (function(x, weight, *given) for function in (scaled_linear, scaled_linear_plain))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    into = drawn(5, 7, 9, seed=6)
    for mine, other in zip(
        torch.autograd.grad(found, used, into), torch.autograd.grad(wanted, used, into), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-10)


def test_a_scale_of_one_gives_the_base_s_own_weights_and_a_small_one_moves_some() -> None:
    weight = drawn(200, 300, seed=0, dtype=torch.bfloat16)
    weight[0, :5] = 0
    ones = torch.ones(200)
    assert torch.equal(scaled_weight(weight, ones, None, torch.bfloat16), weight)
    step = 2.0**-12  # an eighth of the least that a rounded product could show
    seen = scaled_weight(weight, ones + step, None, torch.bfloat16)
    moved = (seen.double() - weight.double()).abs().sum() / (weight.double().abs().sum() * step)
    assert moved == pytest.approx(1, abs=0.15)
    assert 0.02 < (seen != weight).double().mean() < 0.12
    assert torch.equal(scaled_weight(weight, ones, None, torch.float32), weight.float())


@pytest.mark.parametrize("kind", ["ia3", "ia3 of inputs", "dora"])
def test_trained_scales_of_a_bfloat16_layer_are_seen(kind: str) -> None:
    """The mean output moves by a scale that has moved by a twentieth of bfloat16's step."""
    base = torch.nn.Linear(256, 512, bias=False, dtype=torch.bfloat16)
    x = drawn(400, 256, seed=1, dtype=torch.bfloat16)
    layer: IA3Linear | DoRALinear
    if kind == "dora":
        layer = DoRALinear(base, 4, 1.0, 0.0, drawn(4, 256, seed=2, dtype=torch.float32) / 16, torch.zeros(512, 4))
    else:
        layer = IA3Linear(base, kind == "ia3 of inputs")
    with torch.no_grad():
        assert torch.equal(layer(x), base(x))
        (layer.m if isinstance(layer, DoRALinear) else layer.scale).mul_(1 + 2.0**-12)
        before, after = base(x).double(), layer(x).double()
    assert ((after - before) * before.sign()).sum() / (before.abs().sum() * 2.0**-12) == pytest.approx(1, abs=0.2)
