"""Merging LoRAs: sums are exact, approximations the best there are, each way as its paper says."""

import torch
from torch import Tensor

from luthier.merge import Source, factored, merged_layers, shorten
from luthier.merging.dare import Dare
from luthier.merging.linear import Linear
from luthier.merging.svd import Svd
from luthier.merging.ties import Ties, trim


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def source(seed: int, rank: int, weight: float, names: str = "xy") -> Source:
    from pathlib import Path

    layers = {name: (drawn(rank, 9, seed=seed + i), drawn(7, rank, seed=seed + 50 + i)) for i, name in enumerate(names)}
    return Source(Path(), {}, layers, weight)


def update(pair: tuple[Tensor, Tensor]) -> Tensor:
    a, b = pair
    return b @ a


def test_a_sum_of_updates_is_exact_and_of_the_sum_of_ranks() -> None:
    one, other = source(0, 2, 0.7), source(10, 3, -0.4, names="x")
    found = merged_layers([one, other], Linear(), None, 0)
    wanted = 0.7 * update(one.layers["x"]) - 0.4 * update(other.layers["x"])
    torch.testing.assert_close(update(found["x"][0]), wanted)
    torch.testing.assert_close(update(found["y"][0]), 0.7 * update(one.layers["y"]))
    assert len(found["x"][0][0]) == 5 and found["x"][1] == 1.0


def test_a_shortened_sum_is_the_best_of_its_rank() -> None:
    a, b = drawn(5, 9, seed=1), drawn(7, 5, seed=2)
    (short_a, short_b), kept = shorten(a, b, 3)
    u, s, v = torch.linalg.svd(b @ a)
    torch.testing.assert_close(short_b @ short_a, (u[:, :3] * s[:3]) @ v[:3])
    assert abs(kept - float(s[:3].square().sum() / s.square().sum())) < 1e-12
    (again_a, again_b), same = factored(b @ a, 3)
    torch.testing.assert_close(again_b @ again_a, short_b @ short_a)
    assert abs(kept - same) < 1e-12


def test_svd_is_the_best_approximation_of_the_sum_with_the_largest_rank_of_its_sources() -> None:
    one, other = source(0, 2, 0.7), source(10, 3, -0.4, names="x")
    found = merged_layers([one, other], Svd(), None, 0)
    u, s, v = torch.linalg.svd(0.7 * update(one.layers["x"]) - 0.4 * update(other.layers["x"]))
    torch.testing.assert_close(update(found["x"][0]), (u[:, :3] * s[:3]) @ v[:3])
    assert len(found["x"][0][0]) == 3 and found["x"][1] < 1
    assert len(found["y"][0][0]) == 2 and found["y"][1] == 1.0, "a layer that one source alone has stays as it is"
    assert len(merged_layers([one, other], Svd(), 4, 0)["x"][0][0]) == 4


def test_ties_trims_elects_and_averages_what_agrees() -> None:
    """The worked example of figure 1: signs are elected by their sum, and a lone number stays whole."""
    one = torch.tensor([[3.0, -1.0, 0.1, 2.0]])
    other = torch.tensor([[1.0, 4.0, -0.2, -1.0]])
    found = Ties(density=0.75).combine([one, other], torch.Generator())
    torch.testing.assert_close(found, torch.tensor([[2.0, 4.0, 0.0, 2.0]]))
    assert trim(one, 0.5).tolist() == [[3.0, 0.0, 0.0, 2.0]]


def test_dare_keeps_a_share_and_the_mean() -> None:
    ones = torch.ones(200, 300)
    found = Dare(density=0.25).combine([ones, ones], torch.Generator().manual_seed(0))
    assert set(found.unique().tolist()) == {0.0, 4.0, 8.0}
    assert abs(float(found.mean()) - 2) < 0.05
    again = Dare(density=0.25).combine([ones, ones], torch.Generator().manual_seed(0))
    assert torch.equal(found, again)
    elected = Dare(density=0.25, elect=True).combine([ones, -3 * ones], torch.Generator().manual_seed(0))
    assert set(elected.unique().tolist()) == {-12.0, 0.0, 4.0}
