"""A frozen linear layer and its low-rank update, forward and backward in as few passes as there can be.

    y = x W^T + bias + (x A^T) (scale B)^T

Shapes: x (..., in), W (out, in), A (rank, in), B (out, rank). The backward pass makes no gradient of W. Plain torch, on
any device. W may also be a function that makes it in a given type: that of a quantized base, whose dense form the graph
does not keep but asks for again.

The sum is rounded once. Rounded to bfloat16 before the update is added, the frozen product lies on a grid on which an
update of less than half a step changes nothing, and the first updates of a training are that small. So the update is
computed first and the wide product is added to it: a product that adds to what is there sums in float32.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.models.kernels import native

Weight: TypeAlias = "Tensor | Callable[[torch.dtype], Tensor]"
"""A frozen matrix, or what makes it in a type; what is made is used before anything else is made."""


def matrix(weight: Weight, dtype: torch.dtype) -> Tensor:
    """The frozen matrix in `dtype`."""
    return weight.to(dtype) if isinstance(weight, Tensor) else weight(dtype)


def low_rank_linear_plain(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """The reference."""
    return F.linear(x, weight, bias) + F.linear(F.linear(x, a.to(x.dtype)), (scale * b).to(x.dtype))


def low_rank_added(x: Tensor, weight: Weight, bias: Tensor | None, low: Tensor, up: Tensor) -> Tensor:
    """x W^T + bias + low up^T as one product, rounded once; low (..., rank) may come from another input than x.

    The weight and the bias are frozen.
    """
    y: Tensor = _LowRankAdded.apply(x, weight, bias, low, up)
    return y


def _added(x: Tensor, weight: Weight, bias: Tensor | None, low: Tensor, up: Tensor) -> Tensor:
    wide = torch.cat([matrix(weight, x.dtype), up], 1)
    return F.linear(torch.cat([x, low], -1), wide, None if bias is None else bias.to(x.dtype))


def low_rank_linear(x: Tensor, weight: Weight, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """y; the weight and the bias are frozen."""
    y: Tensor = _LowRankLinear.apply(x, weight, bias, a, b, scale)
    return y


def low_rank_rows_plain(x: Tensor, a: Tensor, b: Tensor, which: Tensor) -> Tensor:
    """The reference, and what a GPU computes."""
    update = torch.bmm(torch.bmm(x[:, None], a[which].transpose(1, 2)), b[which])[:, 0]
    return update.masked_fill_((which == 0)[:, None], 0)


def low_rank_rows(x: Tensor, a: Tensor, b: Tensor, which: Tensor) -> Tensor:
    """Each row's update by an adapter of its own, without a gradient: (x[i] a[w]^T) b[w], w = which[i].

    Args:
        x: (rows, in)
        a: (n, rank, in)
        b: (n, rank, out), B turned and scaled
        which: (rows,) int64; 0: no update, zeros

    The kernel reads the matrices where they lie and copies none of them.
    """
    if not native.serves(x):
        return low_rank_rows_plain(x, a, b, which)
    out = x.new_zeros(len(x), b.shape[2])
    native.call("low_rank_rows", x.dtype, x.contiguous(), a, b, which, out, *x.shape, b.shape[2], b.shape[1])
    return out


def kept(ctx: Any, weight: Weight) -> Tensor | None:
    """What the graph keeps of the weight among its tensors."""
    ctx.make = None if isinstance(weight, Tensor) else weight
    return weight if isinstance(weight, Tensor) else None


def again(ctx: Any, held: Tensor | None) -> Weight:
    """The weight in the backward pass, from what `kept` returned."""
    made: Weight = ctx.make if held is None else held
    return made


def biased(x: Tensor, weight: Weight, bias: Tensor) -> Tensor:
    """x W^T + bias, where the bias trains and the weight is frozen."""
    y: Tensor = _Biased.apply(x, weight, bias)
    return y


class _Biased(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Weight, bias: Tensor) -> Tensor:
        ctx.save_for_backward(kept(ctx, weight))
        return F.linear(x, matrix(weight, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (held,) = ctx.saved_tensors
        dx = dy @ matrix(again(ctx, held), dy.dtype) if ctx.needs_input_grad[0] else None
        return dx, None, dy.reshape(-1, dy.shape[-1]).sum(0)


class _LowRankAdded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Weight, bias: Tensor | None, low: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(kept(ctx, weight), low, up)
        return _added(x, weight, bias, low, up)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        held, low, up = ctx.saved_tensors
        dx = dy @ matrix(again(ctx, held), dy.dtype) if ctx.needs_input_grad[0] else None
        dup = dy.reshape(-1, dy.shape[-1]).t() @ low.reshape(-1, low.shape[-1])
        return dx, None, None, dy @ up, dup


class _LowRankLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Weight, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        down, up = a.to(x.dtype), (scale * b).to(x.dtype)
        low = rows @ down.t()
        if bias is None:
            y = (low @ up.t()).addmm_(rows, matrix(weight, x.dtype).t())
        else:
            y = _added(rows, weight, bias, low, up)
        ctx.save_for_backward(rows, kept(ctx, weight), down, up, low)
        ctx.scale, ctx.types = scale, (a.dtype, b.dtype)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        rows, held, down, up, low = ctx.saved_tensors
        weight = again(ctx, held)
        gradient = dy.reshape(-1, dy.shape[-1])
        dlow = gradient @ up
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (dlow @ down).addmm_(gradient, matrix(weight, gradient.dtype)).view(*dy.shape[:-1], -1)
        da = (dlow.t() @ rows).to(ctx.types[0])
        db = (gradient.t() @ low).to(ctx.types[1]).mul_(ctx.scale)
        return dx, None, None, da, db, None
