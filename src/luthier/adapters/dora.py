"""Weight-decomposed low-rank adaptation (Liu et al. 2024, arXiv:2402.09353).

    y = m * (W + scale B A) x / |W + scale B A|        m: (out,), norms over each row

Direction and length of each output's weights learn apart. m starts at |W|, so that an injected model computes exactly
what its base computed. As in section 4.3 of the paper no gradient flows through the norm. The norm comes from
|W|^2 + 2 scale (W A^T) B + scale^2 |B A|^2, and the sum W + scale B A is never made. Files are peft's.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from luthier.adapters._layers import Linear
from luthier.adapters._low_rank import LoRALinear, LowRank
from luthier.models.kernels.low_rank import matrix
from luthier.models.kernels.scaled import scaled_linear
from luthier.models.mixed import Form
from luthier.models.quantize.base import QuantizedLinear


class DoRALinear(LoRALinear):
    """A frozen linear layer, its low-rank update, and the lengths of its rows."""

    def __init__(self, base: Linear, rank: int, scale: float, dropout: float, a: Tensor, b: Tensor) -> None:
        super().__init__(base, rank, scale, dropout, a, b)
        self._squares = self._wide().square().sum(1)
        self.m = nn.Parameter(self._squares.sqrt().to(a.dtype))

    def tensors(self) -> Mapping[str, nn.Parameter]:
        """A, B and the lengths."""
        return {**super().tensors(), "lora_magnitude_vector": self.m}

    def ratio(self) -> Tensor:
        """(out,) what each output is multiplied by: m / |W + scale B A|."""
        with torch.no_grad():
            a, b = self.a, self.b * self.scale
            weight = (
                matrix(self.weight, self.base.dtype) if isinstance(self.base, QuantizedLinear) else self.base.weight
            )
            cross = ((weight @ a.to(weight.dtype).t()).to(b.dtype) * b).sum(1)
            update = ((b @ (a @ a.t())) * b).sum(1)
            norm = (self._squares + 2 * cross + update).clamp_min(1e-12).sqrt()
        return self.m / norm

    def form(self) -> Form:
        """A and B, and what each output is multiplied by."""
        return Form(low=(self.a, self.scale * self.b), rows=self.ratio())

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)"""
        if not self.enabled:
            y: Tensor = self.base(x)
            return y
        y = scaled_linear(x, self.weight, self.ratio(), None, (self.a, self.scale * self.b))
        return y if self.base.bias is None else y + self.base.bias.to(y.dtype)

    @torch.no_grad()
    def merge(self) -> nn.Linear:
        """m (W + scale B A) / |W + scale B A|, in float32, stored in the type of W; a quantized W becomes dense."""
        base = self.dense_base()
        total = base.weight.float() + self.scale * (self.b @ self.a)
        base.weight.copy_((total * (self.m / total.norm(dim=1))[:, None]).to(base.weight.dtype))
        return base

    def _wide(self) -> Tensor:
        base = self.base
        weight = base.dense(base.dtype) if isinstance(base, QuantizedLinear) else base.weight.detach()
        return weight.to(torch.promote_types(weight.dtype, torch.float32))


class DoRA(LowRank):
    """Add a low-rank update to the direction of each row of a weight, and train the row's length apart."""

    use_dora: ClassVar[bool] = True

    init: Literal["kaiming", "gaussian"] = "kaiming"
    """How A and B begin: A random, B zero."""

    @property
    def start(self) -> str:
        """How A and B begin."""
        return self.init

    def _layer(self) -> type[LoRALinear]:
        return DoRALinear
