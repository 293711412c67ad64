"""Orthogonal fine-tuning (Qiu et al. 2023, arXiv:2306.07280), on the side of a layer's input.

    y = W (R^T x),    R = blockdiag(R_1, ..., R_n),    R_i = (I - Q_i) (I + Q_i)^-1,    Q_i = -Q_i^T

Inputs are turned, block by block, before the frozen W sees them: lengths and angles between the directions of a block
stay as they are, so the knowledge that lies in them is kept while the layer learns. Q_i (block, block) has its upper
half as trained numbers and starts at 0, so that an injected model computes exactly what its base computed. What is
added to the input is x (R - I), with R - I = -2 Q (I + Q)^-1: small numbers stay exact when they are cast to bfloat16.
Multiplying the input instead of W is Qiu et al. 2025 (arXiv:2506.19847); over a quantized base nothing is made dense
for it. Files are peft's. Left out: blocks that share one rotation, bounds on it (COFT), dropout of blocks.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from luthier.adapters._layers import (
    InjectedLayers,
    Linear,
    Targeted,
    Wrapped,
    choose,
    device_of,
    numbers_of,
    read_settings,
    replace,
    targets_of,
)
from luthier.errors import ModelError

TERMS = 5
"""Of the series that stands in for the inverse, as peft counts them."""


class OFTLinear(Wrapped):
    """A frozen linear layer whose input is turned."""

    def __init__(self, base: Linear, block: int, series: bool) -> None:
        super().__init__()
        self.base, self.block, self.series = base, block, series
        upper = block * (block - 1) // 2
        self.q = nn.Parameter(torch.zeros(base.in_features // block, upper, device=device_of(base)))

    def tensors(self) -> Mapping[str, nn.Parameter]:
        """The upper halves of Q, row by row."""
        return {"oft_R.weight": self.q}

    def turn(self) -> Tensor:
        """(blocks, block, block) R - I, in the type of Q."""
        rows, columns = torch.triu_indices(self.block, self.block, 1, device=self.q.device)
        upper = self.q.new_zeros(len(self.q), self.block, self.block)
        upper[:, rows, columns] = self.q
        skew = upper - upper.transpose(1, 2)
        if self.series:  # I + 2 Q + 2 Q^2 + 2 Q^3 + Q^4: what peft takes for (I + Q) (I - Q)^-1
            square = skew @ skew
            return 2 * (skew + square + square @ skew) + square @ square
        identity = torch.eye(self.block, device=skew.device, dtype=skew.dtype)
        solved: Tensor = torch.linalg.solve(identity + skew, -2 * skew, left=False)
        return solved

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)"""
        if self.enabled:
            blocks = x.unflatten(-1, (-1, self.block))
            x = x + torch.einsum("...nk,nkc->...nc", blocks, self.turn().to(x.dtype)).flatten(-2)
        y: Tensor = self.base(x)
        return y

    @torch.no_grad()
    def merge(self) -> nn.Linear:
        """W R^T, multiplied in float32 and stored in the type of W; a quantized W becomes dense."""
        base = self.dense_base()
        wide = base.weight.float()
        turned = torch.einsum("onc,nkc->onk", wide.unflatten(1, (-1, self.block)), self.turn()).flatten(1)
        base.weight.copy_((wide + turned).to(base.weight.dtype))
        return base


class OFT(Targeted):
    """Turn the input of each chosen linear layer, block by block."""

    block_size: int = Field(32, ge=2)
    """Numbers of the input that are turned together; larger blocks hold and cost more."""
    series: bool = False
    """Take five terms of a series for the inverse, as peft does by default: R is orthogonal only while it is small."""

    def inject(self, model: nn.Module, seed: int) -> InjectedLayers:
        """Wrap each target; everything else is frozen.

        Raises:
            ModelError: a target matches no linear layer, or blocks do not divide its input.
        """
        chosen = choose(model, self.targets, self.layers)
        for name, linear in chosen.items():
            if linear.in_features % self.block_size:
                fits = [size for size in range(2, linear.in_features + 1) if linear.in_features % size == 0]
                near = sorted(fits, key=lambda size: abs(size - self.block_size))[:3]
                raise ModelError(
                    f"adapter.block_size = {self.block_size} does not divide the {linear.in_features} inputs of "
                    f"{name}; {', '.join(map(str, sorted(near)))} would"
                )
        model.requires_grad_(False)
        layers = {name: OFTLinear(linear, self.block_size, self.series) for name, linear in chosen.items()}
        for name, layer in layers.items():
            replace(model, name, layer)
        return InjectedLayers(model, layers, self._settings())

    def restore(self, model: nn.Module, folder: Path) -> InjectedLayers:
        """Inject with the blocks and targets of the folder's settings, then load its tensors.

        Raises:
            ModelError: the folder is no OFT, or one that computes something else.
        """
        free = ("oft_block_size", "use_cayley_neumann", "eps", "init_weights", "layers_to_transform")
        plain: dict[str, tuple[Any, ...]] = {field: () for field in free}
        plain |= {"r": (0,), "bias": ("none",), "num_cayley_neumann_terms": (TERMS,)}
        config = read_settings(folder, "OFT", ("oft_block_size", "use_cayley_neumann", "target_modules"), plain)
        injected = OFT(
            block_size=config["oft_block_size"],
            series=config["use_cayley_neumann"],
            targets=targets_of(config),
            layers=numbers_of(config),
        ).inject(model, seed=0)
        injected.load(folder)
        return injected

    def _settings(self) -> dict[str, Any]:
        return {
            "peft_type": "OFT",
            "r": 0,
            "oft_block_size": self.block_size,
            "use_cayley_neumann": self.series,
            "num_cayley_neumann_terms": TERMS,
            "module_dropout": 0.0,
            "coft": False,
            "block_share": False,
            "fan_in_fan_out": False,
            "bias": "none",
            "init_weights": True,
        }
