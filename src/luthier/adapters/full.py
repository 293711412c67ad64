"""Full fine-tuning: every parameter trains.

The weights become float32, since bfloat16 weights swallow small updates (100 steps at 1e-6 move 2 % of them); the
products are still computed in bfloat16 where that is faster, by autocast in the scorer's caller. There is no base
left to switch back to, so `disabled` is refused and an objective that needs a reference is given a frozen copy.
"""

import copy
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from luthier.adapters.base import Adapter, Injected, by_name, require_same_tensors

WEIGHTS = "model.safetensors"


class InjectedFull(Injected):
    """A model whose every parameter trains."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @property
    def trainable(self) -> Mapping[str, nn.Parameter]:
        """All parameters; tied ones once."""
        return dict(self.model.named_parameters())

    def disabled(self) -> AbstractContextManager[None]:
        """Refused: the base weights are gone."""
        raise NotImplementedError("full fine-tuning overwrites the base; load the base again to compare with it")

    def merge(self) -> None:
        """Nothing to do: the weights are the model's own."""

    def save(self, folder: Path, base_name: str) -> None:
        """Write a folder that transformers loads: its settings and `model.safetensors`, in the type of training."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(by_name(self.trainable), folder / WEIGHTS, metadata={"format": "pt", "base": base_name})
        model: Any = self.model
        config = copy.deepcopy(model.config)
        config.dtype = model.dtype  # transformers loads in the type named here, not in that of the file
        config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)

    def load(self, folder: Path) -> None:
        """Read the tensors of a folder that `save` wrote."""
        tensors: dict[str, Tensor] = load_file(folder / WEIGHTS)
        require_same_tensors(folder / WEIGHTS, tensors, self.trainable)
        with torch.no_grad():
            for name, parameter in self.trainable.items():
                parameter.copy_(tensors[name])


class Full(Adapter):
    """Train every parameter of the model."""

    overwrites_base: ClassVar[bool] = True

    def inject(self, model: nn.Module, seed: int) -> InjectedFull:
        """Turn the weights into float32 and let all of them train; nothing is random, so `seed` has no effect."""
        model.float()
        model.requires_grad_(True)
        return InjectedFull(model)

    def restore(self, model: nn.Module, folder: Path) -> InjectedFull:
        """Load the weights of a folder that `save` wrote."""
        injected = self.inject(model, seed=0)
        injected.load(folder)
        return injected
