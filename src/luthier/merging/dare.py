"""DARE (Yu et al. 2023, arXiv:2311.03099): drop numbers of each update at random, rescale the rest, and add."""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from luthier.merging.base import Merge
from luthier.merging.ties import Ties


class Dare(Merge):
    """Keep a random share of each update, scaled up by what was dropped, and add; with `elect`, as TIES does."""

    density: float = Field(0.5, gt=0, le=1)
    """Share of each update's numbers that is kept."""
    elect: bool = False
    """Whether those that remain are averaged where their signs agree, instead of added."""

    def default_weight(self, count: int) -> float:
        """1 / count, or 1 where agreeing ones are averaged."""
        return 1.0 if self.elect else 1 / count

    def combine(self, updates: Sequence[Tensor], generator: torch.Generator) -> Tensor:
        """sum of what remains"""
        kept = [u * (torch.rand(u.shape, generator=generator) < self.density) / self.density for u in updates]
        if self.elect:
            return Ties(density=1.0).combine(kept, generator)
        return torch.stack(kept).sum(0)
