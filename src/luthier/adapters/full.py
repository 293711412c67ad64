"""Full fine-tuning: every parameter trains.

The weights become float32, since bfloat16 weights swallow small updates (100 steps at 1e-6 move 2 % of them); the
products are still computed in bfloat16 where that is faster, by autocast in the scorer's caller. Float32 alone does
not help there: see `spread`. There is no base left to switch back to, so `disabled` is refused and an objective that
needs a reference is given a frozen copy.
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
from luthier.errors import ModelError
from luthier.models.quantize.base import QuantizedLinear

WEIGHTS = "model.safetensors"


def spread(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Float32 numbers that round to the bfloat16 ones given, each at a random place between the two that round apart.

    A product in bfloat16 sees a float32 weight rounded. Widened weights all lie in the middle of what rounds to them,
    so that none of them is seen to move until it has moved by half a step of the grid (0.00025 at 0.1: 25 updates of
    1e-5), and those of a file on a coarser grid start at places that are no better. From places spread evenly, an
    update of a tenth of a step moves a tenth of the weights by a whole one, and what is computed follows float32 from
    the first update on (docs/log.md). It is the dither of signal processing (Roberts 1962), drawn once instead of at
    each rounding, so that rounding what was trained gives what the training saw. Zeros stay zeros.
    """
    # drawn on the CPU, so that a seed means the same start on every device
    places = torch.empty(weight.shape, dtype=torch.int16).random_(-(2**15) + 1, 2**15, generator=generator)
    wide = weight.float()  # its lower 16 bits are empty
    bits = wide.view(torch.int32)
    bits.add_(torch.where(weight == 0, 0, places.to(weight.device)))
    return wide


def widen(parameter: nn.Parameter, generator: torch.Generator) -> None:
    """Let a parameter train: as float32, a bfloat16 one by `spread`."""
    narrow = parameter.dtype == torch.bfloat16
    parameter.data = spread(parameter.data, generator) if narrow else parameter.data.float()
    parameter.requires_grad_(True)


def require_dense(model: nn.Module) -> None:
    """Check that the model's own weights can train.

    Raises:
        ModelError: some are held quantized.
    """
    if any(isinstance(module, QuantizedLinear) for module in model.modules()):
        raise ModelError("weights that are held quantized cannot train; load the model with model.quantize = 'none'")


class InjectedFull(Injected):
    """A model whose parameters train: all, or those of some names."""

    def __init__(self, model: nn.Module, names: frozenset[str] | None = None) -> None:
        self.model, self.names = model, names

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Every parameter of the model; tied ones once."""
        return dict(self.model.named_parameters())

    @property
    def trainable(self) -> Mapping[str, nn.Parameter]:
        """The parameters that train."""
        return {name: p for name, p in self.parameters.items() if self.names is None or name in self.names}

    def disabled(self) -> AbstractContextManager[None]:
        """Refused: the base weights are gone."""
        raise NotImplementedError("full fine-tuning overwrites the base; load the base again to compare with it")

    def merge(self) -> None:
        """Nothing to do: the weights are the model's own."""

    def save(self, folder: Path, base_name: str) -> None:
        """Write a folder that transformers loads: its settings and `model.safetensors`, in the type of training."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(by_name(self.parameters), folder / WEIGHTS, metadata={"format": "pt", "base": base_name})
        model: Any = self.model
        config = copy.deepcopy(model.config)
        widest = max((p.dtype for p in self.parameters.values()), key=lambda dtype: dtype.itemsize)
        config.dtype = widest  # transformers loads in the type named here, not in that of the file
        config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)

    def load(self, folder: Path) -> None:
        """Read the tensors of a folder that `save` wrote."""
        tensors: dict[str, Tensor] = load_file(folder / WEIGHTS)
        require_same_tensors(folder / WEIGHTS, tensors, self.parameters)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[name])


class Full(Adapter):
    """Train every parameter of the model."""

    learning_rate: ClassVar[float] = 4e-5

    overwrites_base: ClassVar[bool] = True

    def inject(self, model: nn.Module, seed: int) -> InjectedFull:
        """Turn the weights into float32, bfloat16 ones by `spread`, and let all of them train.

        Raises:
            ModelError: some are held quantized and would silently stay as they are.
        """
        require_dense(model)
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            widen(parameter, generator)
        model.float()  # buffers
        return InjectedFull(model)

    def restore(self, model: nn.Module, folder: Path) -> InjectedFull:
        """Load the weights of a folder that `save` wrote."""
        injected = self.inject(model, seed=0)
        injected.load(folder)
        return injected
