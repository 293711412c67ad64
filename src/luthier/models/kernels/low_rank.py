"""A frozen linear layer and its low-rank update, forward and backward in as few passes as there can be.

    y = x W^T + bias + (x A^T) (scale B)^T

Shapes: x (..., in), W (out, in), A (rank, in), B (out, rank). The backward pass makes no gradient of W. Plain torch, on
any device.

The sum is rounded once. Rounded to bfloat16 before the update is added, the frozen product lies on a grid on which an
update of less than half a step changes nothing, and the first updates of a training are that small. So the update is
computed first and the wide product is added to it: a product that adds to what is there sums in float32.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def low_rank_linear_plain(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """The reference."""
    return F.linear(x, weight, bias) + F.linear(F.linear(x, a.to(x.dtype)), (scale * b).to(x.dtype))


def low_rank_added(x: Tensor, weight: Tensor, bias: Tensor | None, low: Tensor, up: Tensor) -> Tensor:
    """x W^T + bias + low up^T as one product, rounded once; low (..., rank) may come from another input than x."""
    wide = torch.cat([weight.to(x.dtype), up], 1)
    return F.linear(torch.cat([x, low], -1), wide, None if bias is None else bias.to(x.dtype))


def low_rank_linear(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """y; the weight and the bias are frozen."""
    y: Tensor = _LowRankLinear.apply(x, weight, bias, a, b, scale)
    return y


class _LowRankLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        down, up = a.to(x.dtype), (scale * b).to(x.dtype)
        low = rows @ down.t()
        if bias is None:
            y = (low @ up.t()).addmm_(rows, weight.to(x.dtype).t())
        else:
            y = low_rank_added(rows, weight, bias, low, up)
        ctx.save_for_backward(rows, weight, down, up, low)
        ctx.scale, ctx.types = scale, (a.dtype, b.dtype)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, down, up, low = ctx.saved_tensors
        gradient = dy.reshape(-1, dy.shape[-1])
        dlow = gradient @ up
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (dlow @ down).addmm_(gradient, weight.to(gradient.dtype)).view(*dy.shape[:-1], -1)
        da = (dlow.t() @ rows).to(ctx.types[0])
        db = (gradient.t() @ low).to(ctx.types[1]).mul_(ctx.scale)
        return dx, None, None, da, db, None
