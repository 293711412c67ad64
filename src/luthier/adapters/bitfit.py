"""BitFit (Ben Zaken et al. 2021, arXiv:2106.10199): only biases train.

    y = W x + bias + d        d: (out,), starts at 0

A layer without a bias is given one. Such a layer cannot be merged, since its model has no place for it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from luthier.adapters._layers import (
    InjectedLayers,
    Linear,
    Targeted,
    Wrapped,
    choose,
    device_of,
    read_settings,
    replace,
    targets_of,
)
from luthier.adapters.full import spread
from luthier.models.kernels.low_rank import biased
from luthier.models.mixed import Form


class BitFitLinear(Wrapped):
    """A frozen linear layer and what is added to its bias."""

    def __init__(self, base: Linear, generator: torch.Generator) -> None:
        super().__init__()
        self.base = base
        self.d = nn.Parameter(torch.zeros(base.out_features, device=device_of(base)))
        self.place(generator)

    def place(self, generator: torch.Generator) -> None:
        """Set what d is added to."""
        bias = self.base.bias
        # a bias in bfloat16 would not be seen to move: see `spread`
        self._start = spread(bias.detach(), generator) if bias is not None and bias.dtype == torch.bfloat16 else bias

    def tensors(self) -> Mapping[str, nn.Parameter]:
        """d"""
        return {"bias_d": self.d}

    def whole_bias(self) -> Tensor:
        """(out,) bias + d"""
        return self.d if self._start is None else self._start + self.d

    def form(self) -> Form:
        """The bias."""
        return Form(bias=self.whole_bias())

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)"""
        if not self.enabled:
            y: Tensor = self.base(x)
            return y
        return biased(x, self.weight, self.whole_bias().to(x.dtype))

    def require_mergeable(self) -> None:
        """Refused for a layer without a bias."""
        if self.base.bias is None:
            raise NotImplementedError("layers without a bias have no place for one: keep the adapter beside its base")

    @torch.no_grad()
    def merge(self) -> nn.Linear:
        """bias + d"""
        base = self.dense_base()
        base.bias.copy_(self.whole_bias().to(base.bias.dtype))
        return base


class InjectedBitFit(InjectedLayers):
    """Biases inside one model."""

    layers: dict[str, BitFitLinear]  # type: ignore[assignment]

    def start_at(self, folder: Path) -> None:
        """Places in bfloat16 biases are those of the earlier training, whose seed may have been another."""
        seed = _settings(folder)["seed"]
        generator = torch.Generator().manual_seed(seed)
        for layer in self.layers.values():
            layer.place(generator)
        self.config["seed"] = seed
        super().start_at(folder)


class BitFit(Targeted):
    """Train a bias for each chosen linear layer."""

    learning_rate: ClassVar[float] = 6e-4

    def inject(self, model: nn.Module, seed: int) -> InjectedBitFit:
        """Wrap each target; everything else is frozen.

        Raises:
            ModelError: a target matches no linear layer.
        """
        generator = torch.Generator().manual_seed(seed)
        chosen = choose(model, self.targets, self.layers)
        model.requires_grad_(False)
        wrapped = {name: BitFitLinear(linear, generator) for name, linear in chosen.items()}
        for name, layer in wrapped.items():
            replace(model, name, layer)
        return InjectedBitFit(model, wrapped, {"peft_type": "BITFIT", "seed": seed})

    def restore(self, model: nn.Module, folder: Path) -> InjectedBitFit:
        """Inject with the targets and the seed of the folder's settings, then load its tensors."""
        config = _settings(folder)
        injected = BitFit(targets=targets_of(config)).inject(model, seed=config["seed"])
        injected.load(folder)
        return injected


def _settings(folder: Path) -> dict[str, Any]:
    return read_settings(folder, "BITFIT", ("target_modules", "seed"), {"seed": ()})
