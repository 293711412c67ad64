"""What an optimizer is to the engine: settings that build a `torch.optim.Optimizer`."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from pydantic import Field
from torch import nn

from luthier.config import Settings


class OptimizerSettings(Settings, ABC):
    """One file each; the file name is `optimizer.type`."""

    learning_rate: float | None = Field(None, gt=0)
    """Highest learning rate of the schedule; absent: that of the adapter (2e-4 for LoRA), a tenth of it for preference
    pairs. Models below a billion weights like a few times as much."""

    @property
    def state_numbers(self) -> int:
        """How many float32 numbers the optimizer keeps for each one that trains."""
        return 2

    @abstractmethod
    def build(
        self,
        trainable: Mapping[str, nn.Parameter],
        learning_rate: float,
        rate_factors: Mapping[str, float] | None = None,
    ) -> torch.optim.Optimizer:
        """An optimizer over the tensors.

        Args:
            trainable: by name.
            learning_rate: to begin with; the engine sets that of each step.
            rate_factors: what the learning rate of some is multiplied by, by name. A group of the optimizer keeps its
                own as `rate_factor`, by which the engine multiplies the rate of each step.
        """
