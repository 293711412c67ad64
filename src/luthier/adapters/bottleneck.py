"""Bottleneck adapters (Houlsby et al. 2019, arXiv:1902.00751; Pfeiffer et al. 2020, arXiv:2005.00247).

    y = h + U f(D h + d) + u        h: what a sublayer gives to the residual sum    D: (size, out)    U: (out, size)

U and u start at 0, so that an injected model computes exactly what its base computed. After attention and feed-forward
(Houlsby), or after the feed-forward alone (Pfeiffer). What stands between is not linear, so it cannot be merged.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from luthier.adapters._layers import (
    InjectedLayers,
    Linear,
    Wrapped,
    choose,
    device_of,
    read_settings,
    replace,
    targets_of,
)
from luthier.adapters.base import Adapter

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}


class BottleneckLinear(Wrapped):
    """The last linear layer of a sublayer, and the adapter behind it."""

    def __init__(self, base: Linear, size: int, activation: str, generator: torch.Generator) -> None:
        super().__init__()
        self.base, self.activation = base, activation
        device, width = device_of(base), base.out_features
        bound = 1 / math.sqrt(width)
        down = torch.empty(size, width).uniform_(-bound, bound, generator=generator)
        self.down, self.down_bias = nn.Parameter(down.to(device)), nn.Parameter(torch.zeros(size, device=device))
        self.up = nn.Parameter(torch.zeros(width, size, device=device))
        self.up_bias = nn.Parameter(torch.zeros(width, device=device))

    def tensors(self) -> Mapping[str, nn.Parameter]:
        """Both matrices and biases."""
        return {"down": self.down, "down_bias": self.down_bias, "up": self.up, "up_bias": self.up_bias}

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)"""
        h: Tensor = self.base(x)
        if not self.enabled:
            return h
        inner = ACTIVATIONS[self.activation](F.linear(h, self.down.to(h.dtype), self.down_bias.to(h.dtype)))
        return h + F.linear(inner, self.up.to(h.dtype), self.up_bias.to(h.dtype))

    def require_mergeable(self) -> None:
        """Refused."""
        self.merge()

    def merge(self) -> nn.Linear:
        """Refused."""
        raise NotImplementedError("a bottleneck is not linear and cannot be merged: keep it beside its base")


class Bottleneck(Adapter):
    """Put a small feed-forward network behind each sublayer."""

    learning_rate: ClassVar[float] = 2e-4

    size: int = Field(64, ge=1)
    """Width of the bottleneck."""
    placement: Literal["houlsby", "pfeiffer"] = "pfeiffer"
    """Behind attention and feed-forward, or behind the feed-forward alone."""
    activation: Literal["relu", "gelu", "silu"] = "relu"
    """What stands between the two matrices."""
    attention_output: str = "o_proj"
    """Ending of the name of attention's last linear layer."""
    feedforward_output: str = "down_proj"
    """Ending of the name of the feed-forward's last linear layer."""
    layers: tuple[int, ...] | None = None
    """Numbers of the decoder layers that get one, from 0; absent: all."""

    @property
    def named_targets(self) -> tuple[str, ...]:
        """The layers behind which one is put."""
        both = (self.attention_output, self.feedforward_output)
        return both if self.placement == "houlsby" else both[1:]

    def inject(self, model: nn.Module, seed: int) -> InjectedLayers:
        """Wrap each target; everything else is frozen.

        Raises:
            ModelError: a target matches no linear layer.
        """
        return self._inject(model, self.named_targets, seed)

    def restore(self, model: nn.Module, folder: Path) -> InjectedLayers:
        """Inject with the size and places of the folder's settings, then load its tensors."""
        fields = ("target_modules", "size", "activation")
        config = read_settings(folder, "BOTTLENECK", fields, {field: () for field in fields})
        found = Bottleneck(size=config["size"], activation=config["activation"])
        injected = found._inject(model, targets_of(config), seed=0)
        injected.load(folder)
        return injected

    def _inject(self, model: nn.Module, targets: tuple[str, ...], seed: int) -> InjectedLayers:
        generator = torch.Generator().manual_seed(seed)
        chosen = choose(model, targets, self.layers)
        model.requires_grad_(False)
        wrapped = {n: BottleneckLinear(x, self.size, self.activation, generator) for n, x in chosen.items()}
        for name, layer in wrapped.items():
            replace(model, name, layer)
        config = {"peft_type": "BOTTLENECK", "size": self.size, "activation": self.activation}
        return InjectedLayers(model, wrapped, config)
