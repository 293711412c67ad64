"""(IA)^3 (Liu et al. 2022, arXiv:2205.05638): keys, values and the middle of the feed-forward are scaled.

    y = l * (W x + bias)        or, for the feed-forward's last layer        y = W (l * x) + bias

l starts at 1, so that an injected model computes exactly what its base computed. Files are peft's.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from luthier.adapters._layers import InjectedLayers, Linear, Wrapped, choose, device_of, matches, read_settings, replace
from luthier.adapters.base import Adapter
from luthier.errors import ModelError
from luthier.models.kernels.scaled import scaled_linear
from luthier.models.mixed import Form


class IA3Linear(Wrapped):
    """A frozen linear layer with scaled outputs, or inputs."""

    def __init__(self, base: Linear, of_inputs: bool) -> None:
        super().__init__()
        self.base, self.of_inputs = base, of_inputs
        count = base.in_features if of_inputs else base.out_features
        shape = (1, count) if of_inputs else (count, 1)
        self.scale = nn.Parameter(torch.ones(shape, device=device_of(base)))

    def tensors(self) -> Mapping[str, nn.Parameter]:
        """The scales."""
        return {"ia3_l": self.scale}

    def form(self) -> Form:
        """The scales; the bias of scaled outputs is scaled, too."""
        scale, bias = self.scale.view(-1), self.base.bias
        if self.of_inputs:
            return Form(cols=scale)
        return Form(rows=scale, bias=None if bias is None else scale * bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)"""
        if not self.enabled:
            y: Tensor = self.base(x)
            return y
        scale = self.scale.view(-1)
        rows, cols = (None, scale) if self.of_inputs else (scale, None)
        y = scaled_linear(x, self.weight, rows, cols)
        if self.base.bias is None:
            return y
        return y + (self.base.bias if self.of_inputs else scale * self.base.bias).to(y.dtype)

    @torch.no_grad()
    def merge(self) -> nn.Linear:
        """The scaled weight and bias, multiplied in float32 and stored in their own type."""
        base = self.dense_base()
        for parameter in (base.weight, None if self.of_inputs else base.bias):
            if parameter is not None:
                scale = self.scale if parameter.ndim == 2 else self.scale[:, 0]
                parameter.copy_((parameter.float() * scale).to(parameter.dtype))
        return base


class IA3(Adapter):
    """Train one scale for each key, value and inner unit of the feed-forward: the smallest adapter there is."""

    learning_rate: ClassVar[float] = 6e-3

    targets: tuple[str, ...] = ("k_proj", "v_proj")
    """Endings of the names of layers whose outputs are scaled."""
    input_targets: tuple[str, ...] = ("down_proj",)
    """Endings of the names of layers whose inputs are scaled: the last of the feed-forward."""
    layers: tuple[int, ...] | None = Field(None)
    """Numbers of the decoder layers that are scaled, from 0; absent: all."""

    @property
    def named_targets(self) -> tuple[str, ...]:
        """All targets."""
        return self.targets + self.input_targets

    def inject(self, model: nn.Module, seed: int) -> InjectedLayers:
        """Wrap each target; everything else is frozen.

        Raises:
            ModelError: a target matches no linear layer, or one stands in both lists.
        """
        chosen = choose(model, self.named_targets, self.layers)
        twice = [n for n in chosen if all(any(matches(n, t) for t in ts) for ts in (self.targets, self.input_targets))]
        if twice:
            raise ModelError(f"adapter: {twice[0]} is in targets and in input_targets; scale it once")
        model.requires_grad_(False)
        wrapped = {
            name: IA3Linear(linear, any(matches(name, target) for target in self.input_targets))
            for name, linear in chosen.items()
        }
        for name, layer in wrapped.items():
            replace(model, name, layer)
        of_inputs = sorted(name for name, layer in wrapped.items() if layer.of_inputs)
        config: dict[str, Any] = {
            "peft_type": "IA3",
            "feedforward_modules": of_inputs,
            "fan_in_fan_out": False,
            "init_ia3_weights": True,
        }
        return InjectedLayers(model, wrapped, config)

    def restore(self, model: nn.Module, folder: Path) -> InjectedLayers:
        """Inject with the targets of the folder's settings, then load its tensors.

        Raises:
            ModelError: the folder is no IA3, or its tensors do not fit the model.
        """
        plain = {"feedforward_modules": (), "init_ia3_weights": ()}
        config = read_settings(folder, "IA3", ("target_modules", "feedforward_modules"), plain)
        inner = tuple(config["feedforward_modules"])
        outer = tuple(t for t in config["target_modules"] if t not in inner)
        injected = IA3(targets=outer, input_targets=inner).inject(model, seed=0)
        injected.load(folder)
        return injected
