"""The gated feed-forward's middle (Shazeer 2020, arXiv:2002.05202): silu(gate) * up, any equal shapes."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.models.kernels import native


def swiglu_plain(gate: Tensor, up: Tensor) -> Tensor:
    """The reference."""
    return F.silu(gate) * up


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up"""
    if not native.serves(gate):
        return swiglu_plain(gate, up)
    out: Tensor = _SwiGLU.apply(gate, up)
    return out


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        out = torch.empty_like(gate)
        native.call("swiglu", gate.dtype, gate, up, out, gate.numel())
        ctx.save_for_backward(gate, up)
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        dgate, dup = torch.empty_like(gate), torch.empty_like(up)
        native.call("swiglu_back", gate.dtype, dout.contiguous(), gate, up, dgate, dup, gate.numel())
        return dgate, dup
