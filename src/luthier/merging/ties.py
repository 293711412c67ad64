"""TIES (Yadav et al. 2023, arXiv:2306.01708): trim, elect signs, and average those that agree.

Updates come weighted, so that a heavier adapter has the larger say in the election.
"""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from luthier.merging.base import Merge


class Ties(Merge):
    """Keep the largest numbers of each update, and average those whose sign is that of their sum."""

    density: float = Field(0.2, gt=0, le=1)
    """Share of each update's numbers that is kept, the largest; the paper keeps 0.2."""

    def default_weight(self, count: int) -> float:
        """1: it averages by itself."""
        return 1.0

    def combine(self, updates: Sequence[Tensor], generator: torch.Generator) -> Tensor:
        """mean over those that agree with the elected sign"""
        trimmed = torch.stack([trim(update, self.density) for update in updates])
        agree = trimmed.sign() == trimmed.sum(0).sign()
        agree &= trimmed != 0
        return (trimmed * agree).sum(0) / agree.sum(0).clamp_min(1)


def trim(update: Tensor, density: float) -> Tensor:
    """The update with all but the largest share of its numbers at 0."""
    kept = max(round(density * update.numel()), 1)
    places = update.abs().flatten().topk(kept).indices
    return torch.zeros_like(update).flatten().index_copy(0, places, update.flatten()[places]).view_as(update)
