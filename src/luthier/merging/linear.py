"""The weighted sum of updates (task arithmetic: Ilharco et al. 2022, arXiv:2212.04089)."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from luthier.merging.base import Merge


class Linear(Merge):
    """Add the weighted updates."""

    is_sum: ClassVar[bool] = True

    def combine(self, updates: Sequence[Tensor], generator: torch.Generator) -> Tensor:
        """sum"""
        return torch.stack(list(updates)).sum(0)
