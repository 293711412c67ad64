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
    def build(self, trainable: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        """An optimizer over the tensors, in the order given."""
