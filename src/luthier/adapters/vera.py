"""Vector-based random matrix adaptation (Kopiczko et al. 2023, arXiv:2310.11454).

    y = W x + b * B (d * A x)        A: (rank, in), B: (out, rank) random, frozen, shared by all layers

Only the vectors d (rank,) and b (out,) of each layer train; b starts at 0, so that an injected model computes exactly
what its base computed. A and B are as wide as the widest layer, and each layer takes their first rows and columns.
Files are peft's, with A and B in them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from luthier.adapters._layers import (
    WEIGHTS,
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
from luthier.errors import ModelError
from luthier.models.kernels.low_rank import low_rank_linear


class VeRALinear(Wrapped):
    """A frozen linear layer, the shared matrices, and the layer's own vectors."""

    def __init__(self, base: Linear, a: Tensor, b: Tensor, d_initial: float) -> None:
        super().__init__()
        self.base, self._shared = base, (a, b)
        device = device_of(base)
        self.d = nn.Parameter(torch.full((len(a),), d_initial, device=device))
        self.b = nn.Parameter(torch.zeros(base.out_features, device=device))

    def tensors(self) -> Mapping[str, nn.Parameter]:
        """d and b."""
        return {"vera_lambda_d": self.d, "vera_lambda_b": self.b}

    def update(self) -> tuple[Tensor, Tensor]:
        """d * A and b * B."""
        a, b = self._shared
        return self.d[:, None] * a[:, : self.base.in_features], self.b[:, None] * b[: self.base.out_features]

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)"""
        if not self.enabled:
            y: Tensor = self.base(x)
            return y
        return low_rank_linear(x, self.weight, self.base.bias, *self.update(), 1.0)

    @torch.no_grad()
    def merge(self) -> nn.Linear:
        """W + (b * B) (d * A), added in float32 and stored in the type of W; a quantized W becomes dense."""
        (a, b), base = self.update(), self.dense_base()
        base.weight.copy_((base.weight.float() + b @ a).to(base.weight.dtype))
        return base


class InjectedVeRA(InjectedLayers):
    """VeRA layers inside one model."""

    def __init__(self, model: nn.Module, layers: Mapping[str, VeRALinear], shared: tuple[Tensor, Tensor], rank: int):
        config = {"peft_type": "VERA", "r": rank, "projection_prng_key": 0, "save_projection": True, "bias": "none"}
        super().__init__(model, layers, config)
        self._shared = shared

    def file_tensors(self) -> dict[str, Tensor]:
        """The vectors, and the shared matrices."""
        a, b = self._shared
        return {**super().file_tensors(), "base_model.vera_A": a, "base_model.vera_B": b}

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the vectors and the shared matrices."""
        super().take(tensors)
        for held, name in zip(self._shared, ("base_model.vera_A", "base_model.vera_B"), strict=True):
            held.copy_(tensors[name])


class VeRA(Targeted):
    """Train two vectors for each chosen linear layer, between random matrices that all layers share."""

    learning_rate: ClassVar[float] = 6e-3

    rank: int = Field(256, ge=1)
    """Rows of the shared A; more cost time, hardly any memory of the adapter."""
    d_initial: float = Field(0.1, gt=0)
    """What the numbers of d start at."""

    def inject(self, model: nn.Module, seed: int) -> InjectedVeRA:
        """Wrap each target; everything else is frozen.

        Raises:
            ModelError: a target matches no linear layer.
        """
        chosen = choose(model, self.targets, self.layers)
        model.requires_grad_(False)
        generator = torch.Generator().manual_seed(seed)
        device = device_of(next(iter(chosen.values())))
        widest = max(layer.in_features for layer in chosen.values()), max(x.out_features for x in chosen.values())
        a, b = torch.empty(self.rank, widest[0]), torch.empty(widest[1], self.rank)
        for matrix in (a, b):
            nn.init.kaiming_uniform_(matrix, generator=generator)
        shared = a.to(device), b.to(device)
        layers = {name: VeRALinear(linear, *shared, self.d_initial) for name, linear in chosen.items()}
        for name, layer in layers.items():
            replace(model, name, layer)
        return InjectedVeRA(model, layers, shared, self.rank)

    def restore(self, model: nn.Module, folder: Path) -> InjectedVeRA:
        """Inject with the rank and targets of the folder's settings, then load its tensors.

        Raises:
            ModelError: the folder is no VeRA, or its shared matrices are not in it.
        """
        free = ("r", "projection_prng_key", "save_projection", "d_initial", "init_weights")
        plain: dict[str, tuple[Any, ...]] = {**{field: () for field in free}, "bias": ("none",)}
        config = read_settings(folder, "VERA", ("r", "target_modules"), plain)
        if not config.get("save_projection"):
            raise ModelError(f"{folder / WEIGHTS}: saved without its random matrices; save it with save_projection")
        injected = VeRA(rank=config["r"], targets=targets_of(config)).inject(model, seed=0)
        injected.load(folder)
        return injected
