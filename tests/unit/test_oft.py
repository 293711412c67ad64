"""OFT: what is trained turns inputs and stretches none, exactly or by a series."""

import pytest
import torch
from tests.engine_runs import tiny_llama
from torch import nn

from luthier.adapters.oft import OFT, OFTLinear
from luthier.errors import ModelError


def turned(series: bool, size: float) -> OFTLinear:
    base = nn.Linear(12, 5, bias=False)
    layer = OFTLinear(base, 4, series)
    layer.q.data = size * torch.randn(layer.q.shape, generator=torch.Generator().manual_seed(0))
    return layer


def test_inputs_are_turned_within_their_blocks_and_keep_their_lengths() -> None:
    layer = turned(series=False, size=1.0)
    rotation = layer.turn() + torch.eye(4)
    torch.testing.assert_close(rotation @ rotation.transpose(1, 2), torch.eye(4).expand(3, 4, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(3))
    x = torch.randn(7, 12, generator=torch.Generator().manual_seed(1))
    by_hand = x @ torch.block_diag(*rotation) @ layer.base.weight.t()  # type: ignore[operator]
    torch.testing.assert_close(layer(x), by_hand, atol=1e-5, rtol=0)


def test_the_series_turns_the_same_plane_the_other_way_while_it_is_small() -> None:
    """peft's two forms are inverse to one another up to the fourth power of Q, so a file must say which one it is."""
    exact, series = turned(series=False, size=0.01).turn(), turned(series=True, size=0.01).turn()
    identity = torch.eye(4).expand(3, 4, 4)
    torch.testing.assert_close((exact + identity) @ (series + identity), identity, atol=1e-6, rtol=0)
    assert not torch.allclose(exact, series, atol=1e-2)


def test_blocks_that_do_not_divide_the_input_are_refused_with_sizes_that_would() -> None:
    with pytest.raises(ModelError, match=r"block_size = 24 does not divide the 32 inputs of .*q_proj; 8, 16, 32 would"):
        OFT(block_size=24).inject(tiny_llama(), seed=0)
