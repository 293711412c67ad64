"""Root mean square normalization (Zhang & Sennrich 2019, arXiv:1910.07467), with the residual sum before it.

    out = x + delta        normed = weight * out / sqrt(mean(out^2) + eps)

Shapes: (tokens, width).
"""

from typing import Any

import torch
from torch import Tensor

from luthier.models.kernels import native

GROUP = 64  # as in elementwise.c


def rms_norm_plain(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The reference, as transformers' Llama computes it."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight.to(x.dtype) * normed.to(x.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`normed` of x."""
    if not native.serves(x):
        return rms_norm_plain(x, weight, eps)
    normed: Tensor = _Norm.apply(x, weight, eps)
    return normed


def add_rms_norm(x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`out` and `normed`."""
    if not native.serves(x):
        out = x + delta
        return out, rms_norm_plain(out, weight, eps)
    pair: tuple[Tensor, Tensor] = _AddNorm.apply(x, delta, weight, eps)
    return pair


def _forward(x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    rows, width = x.shape
    normed, rstd = torch.empty_like(x), torch.empty(rows)
    out = x if delta is None else torch.empty_like(x)
    native.call("rms_norm", x.dtype, x, delta, weight, out, normed, rstd, rows, width, eps)
    return out, normed, rstd


def _backward(ctx: Any, dnormed: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor | None]:
    x, weight, rstd = ctx.saved_tensors
    rows, width = x.shape
    dx = torch.empty_like(x)
    partial = torch.zeros(-(-rows // GROUP), width) if ctx.weight_type is not None else None
    gradient = dnormed.contiguous()
    native.call("rms_norm_back", x.dtype, gradient, x, weight, rstd, residual, dx, partial, rows, width)
    return dx, None if partial is None else partial.sum(0).to(ctx.weight_type)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x, scale = x.contiguous(), weight.to(x.dtype)
        _, normed, rstd = _forward(x, None, scale, eps)
        ctx.save_for_backward(x, scale, rstd)
        ctx.weight_type = weight.dtype if ctx.needs_input_grad[1] else None
        return normed

    @staticmethod
    def backward(ctx: Any, dnormed: Tensor) -> tuple[Tensor | None, ...]:
        dx, dweight = _backward(ctx, dnormed, None)
        return dx, dweight, None


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        scale = weight.to(x.dtype)
        out, normed, rstd = _forward(x.contiguous(), delta.to(x.dtype).contiguous(), scale, eps)
        ctx.save_for_backward(out, scale, rstd)
        ctx.weight_type = weight.dtype if ctx.needs_input_grad[2] else None
        return out, normed

    @staticmethod
    def backward(ctx: Any, dout: Tensor, dnormed: Tensor) -> tuple[Tensor | None, ...]:
        dx, dweight = _backward(ctx, dnormed, dout.contiguous())
        return dx, dx, dweight, None
