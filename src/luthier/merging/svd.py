"""The weighted sum of updates, cut to its best approximation of low rank (Eckart and Young 1936).

The sum of two updates of rank 16 has rank 32, and a third makes it 48. Here the result is as large as the largest of
those that are merged, so that merging again and again costs no more to serve; what is lost is told for each layer.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from luthier.merging.base import Merge


class Svd(Merge):
    """Add the weighted updates, and keep the largest singular values of the sum."""

    is_sum: ClassVar[bool] = True

    def default_rank(self, ranks: Sequence[int]) -> int:
        """The largest of them."""
        return max(ranks)

    def combine(self, updates: Sequence[Tensor], generator: torch.Generator) -> Tensor:
        """sum"""
        return torch.stack(list(updates)).sum(0)
