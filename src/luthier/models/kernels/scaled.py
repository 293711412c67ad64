"""A frozen linear layer whose outputs or inputs are scaled by numbers that train, with or without a low-rank update.

    y = rows * (W (cols * x) + B A x)        rows: (out,) or None, cols: (in,) or None

Scaling what came out of a product in bfloat16 does nothing until a scale has moved by half a step of that grid (0.002
at 1): what is on the grid rounds back to itself. So the weight is scaled, from the places that `places` gives its
numbers between those that round apart: a tenth of a step then moves a tenth of the weights, and at scales of exactly 1
every weight is the base's own. The scaled weight is made again in the backward pass and never kept.

Shapes: x (..., in), W (out, in), A (rank, in), B (out, rank). No gradient of W is made. Plain torch, on any device.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.models.kernels.low_rank import Weight, again, kept

STEP = 7  # the places of a row are those of the row before, moved by so many


def scaled_linear_plain(
    x: Tensor, weight: Tensor, rows: Tensor | None, cols: Tensor | None, low: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """The reference."""
    y = F.linear(x if cols is None else x * cols, weight)
    if low is not None:
        y = y + F.linear(F.linear(x, low[0].to(x.dtype)), low[1].to(x.dtype))
    return y if rows is None else y * rows


def scaled_linear(
    x: Tensor, weight: Weight, rows: Tensor | None, cols: Tensor | None, low: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """y; `low` are A and B."""
    a, b = low if low is not None else (None, None)
    y: Tensor = _ScaledLinear.apply(x, weight, rows, cols, a, b)
    return y


def scaled_weight(weight: Weight, rows: Tensor | None, cols: Tensor | None, dtype: torch.dtype) -> Tensor:
    """rows * W * cols in `dtype`; in bfloat16 from the weights' places between the grid's numbers."""
    weight = weight if isinstance(weight, Tensor) else weight(dtype)
    wide = weight.to(_sums_in(weight))
    if weight.dtype == dtype == torch.bfloat16:
        bits = wide.view(torch.int32)
        bits.add_(torch.where(weight == 0, 0, places(weight.shape, weight.device)))
    if rows is not None:
        wide = wide * rows[:, None]
    if cols is not None:
        wide = wide * cols
    return wide.to(dtype)


def scaled_values(x: Tensor, scale: Tensor) -> Tensor:
    """x * scale in the type of x, for (rows, n) activations; without a gradient.

    In bfloat16 the numbers are scaled from places between those of the grid, as weights are: the same place for every
    row, so that a row's result does not depend on where it stands.
    """
    if x.dtype != torch.bfloat16:
        return x * scale.to(x.dtype)
    wide = x.float()
    wide.view(torch.int32).add_(torch.where(x == 0, 0, places(torch.Size((1, x.shape[-1])), x.device)))
    return (wide * scale).to(x.dtype)


def places(shape: torch.Size, device: torch.device) -> Tensor:
    """(out, in) int32 in (-2^15, 2^15): where in what rounds to it each weight stands, in steps of float32."""
    out, width = shape
    return _noise(width + STEP * out, device).as_strided((out, width), (STEP, 1))


@lru_cache(maxsize=64)
def _noise(count: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.empty(count, dtype=torch.int32).random_(-(2**15) + 1, 2**15, generator=generator)
    return drawn.to(device)


class _ScaledLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Weight,
        rows: Tensor | None,
        cols: Tensor | None,
        a: Tensor | None,
        b: Tensor | None,
    ) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        wide = scaled_weight(weight, rows, cols, x.dtype)
        if a is None or b is None:
            y, down, up, low = flat @ wide.t(), None, None, None
        else:
            down, up = a.to(x.dtype), (b if rows is None else rows[:, None] * b).to(x.dtype)
            low = flat @ down.t()
            y = (low @ up.t()).addmm_(flat, wide.t())
        ctx.save_for_backward(flat, kept(ctx, weight), rows, cols, b, down, up, low, y if rows is not None else None)
        ctx.types = None if a is None or b is None else (a.dtype, b.dtype)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        flat, held, rows, cols, b, down, up, low, y = ctx.saved_tensors
        weight = again(ctx, held)
        gradient = dy.reshape(-1, dy.shape[-1])
        wide = scaled_weight(weight, rows, cols, gradient.dtype)
        dx = drows = dcols = da = db = None
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[3]:
            dx = gradient @ wide
        if ctx.needs_input_grad[2]:
            drows = _sum_over_scale(gradient, y, rows, lambda: _outputs(flat, weight, cols, b, low))
        if ctx.needs_input_grad[3]:
            dcols = _sum_over_scale(flat, dx, cols, lambda: gradient @ scaled_weight(weight, rows, None, dy.dtype))
        if up is not None:
            dlow = gradient @ up
            dx = dx.addmm_(dlow, down) if dx is not None else None
            da = (dlow.t() @ flat).to(ctx.types[0])
            db = gradient.t() @ low
            db = (db if rows is None else db * rows[:, None]).to(ctx.types[1])
        return None if dx is None else dx.view(dy.shape[:-1] + flat.shape[-1:]), None, drows, dcols, da, db


def _sum_over_scale(one: Tensor, scaled: Any, scale: Tensor, unscaled: Callable[[], Tensor]) -> Tensor:
    """(n,) gradient of a scale: sum over tokens of `one` times what it multiplied, which is `scaled` / scale."""
    if bool((scale == 0).any()):
        return (one.to(_sums_in(one)) * unscaled()).sum(0).to(scale.dtype)
    total: Tensor = (one.to(_sums_in(one)) * scaled).sum(0) / scale
    return total.to(scale.dtype)


def _sums_in(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _outputs(flat: Tensor, weight: Weight, cols: Tensor | None, b: Tensor | None, low: Tensor | None) -> Tensor:
    y = flat @ scaled_weight(weight, None, cols, flat.dtype).t()
    return y if b is None or low is None else y + low @ b.to(low.dtype).t()
