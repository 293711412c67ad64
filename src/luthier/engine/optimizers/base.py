"""What an optimizer is to the engine: settings that build a `torch.optim.Optimizer`."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from pydantic import Field
from torch import nn

from luthier.config import Settings


class OptimizerSettings(Settings, ABC):
    """One file each; the file name is `optimizer.type`."""

    learning_rate: float = Field(2e-4, gt=0)
    """Highest learning rate of the schedule. About 2e-4 for LoRA; a tenth of that or less for full fine-tuning."""

    @abstractmethod
    def build(
        self, trainable: Mapping[str, nn.Parameter], rate_factors: Mapping[str, float] | None = None
    ) -> torch.optim.Optimizer:
        """An optimizer over the tensors.

        Args:
            trainable: by name.
            rate_factors: what the learning rate of some is multiplied by, by name. A group of the optimizer keeps its
                own as `rate_factor`, by which the engine multiplies the rate of each step.
        """
