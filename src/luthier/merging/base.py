"""What a way to merge is: it combines the updates that several adapters make of one weight."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from luthier.config import Settings


class Merge(Settings, ABC):
    """One file each; the file name is what `luthier merge --method` takes."""

    is_sum: ClassVar[bool] = False
    """Whether it adds the updates: the sum of updates of low rank has their factors, end to end."""

    def default_weight(self, count: int) -> float:
        """The weight of each of so many adapters where none is given: they are averaged."""
        return 1 / count

    def default_rank(self, ranks: Sequence[int]) -> int:
        """The rank of a merged layer where none is given, from those of its updates: their sum."""
        return sum(ranks)

    @abstractmethod
    def combine(self, updates: Sequence[Tensor], generator: torch.Generator) -> Tensor:
        """One update out of several.

        Args:
            updates: (out, in) float32 each, already multiplied by its adapter's weight.
            generator: for ways that draw.
        """
