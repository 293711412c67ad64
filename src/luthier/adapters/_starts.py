"""How A and B of a low-rank update begin.

Starts that take something out of the weight (PiSSA, OLoRA) or whose product is 0 only up to rounding (orthogonal) are
kept beside A and B, and the update is what A and B have moved: B A - B0 A0. The base stays as it was, and in the
arithmetic of numbers that are not rounded the training is that of the papers.

LoftQ alone starts as an update: over a quantized base it makes up for a part of what quantizing lost. Its authors then
quantize what A and B left over, and so on, a few times in turn. Here it is done once, as peft does by default: the base
keeps the codes that `model.quantize` gives it everywhere, and the adapter is a plain LoRA beside them; with other codes
it would fit no base but its own.
"""

import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn

from luthier.errors import ModelError
from luthier.models.quantize.base import QuantizedLinear

Pair = tuple[Tensor, Tensor]
"""A (rank, in) and B (out, rank), float32."""
Base: TypeAlias = nn.Linear | QuantizedLinear


def _dense(base: Base) -> Tensor:
    return base.dense(torch.float32) if isinstance(base, QuantizedLinear) else base.weight.detach().float()


def kaiming(base: Base, rank: int, scale: float, generator: torch.Generator) -> Pair:
    """A uniform with a = sqrt(5) as in the authors' loralib, B zero (Hu et al. 2021, arXiv:2106.09685)."""
    out, width = base.out_features, base.in_features
    bound = 1 / math.sqrt(width)
    return torch.empty(rank, width).uniform_(-bound, bound, generator=generator), torch.zeros(out, rank)


def gaussian(base: Base, rank: int, scale: float, generator: torch.Generator) -> Pair:
    """A normal with deviation 1 / rank, B zero."""
    out, width = base.out_features, base.in_features
    return torch.empty(rank, width).normal_(0, 1 / rank, generator=generator), torch.zeros(out, rank)


def orthogonal(base: Base, rank: int, scale: float, generator: torch.Generator) -> Pair:
    """A and B random and neither of them zero: A lives in one half of the rank's space and B in the other, so that
    B A = 0 up to rounding and both have a gradient from the first step (`orthogonal` of peft)."""
    out, width = base.out_features, base.in_features
    square, _ = torch.linalg.qr(torch.randn(rank, rank, generator=generator))
    one, other = square[:, 0::2], square[:, 1::2]
    a = one @ torch.randn(one.shape[1], width, generator=generator) / 10
    return a, torch.randn(out, other.shape[1], generator=generator) @ other.t() / 10


def pissa(base: Base, rank: int, scale: float, generator: torch.Generator) -> Pair:
    """scale B A is the best approximation of W of this rank (Meng et al. 2024, arXiv:2404.02948)."""
    return _largest(_dense(base), rank, scale)


def olora(base: Base, rank: int, scale: float, generator: torch.Generator) -> Pair:
    """B the first columns of Q and A the first rows of R, where W = Q R (Büyükakyüz 2024, arXiv:2406.01775)."""
    q, r = torch.linalg.qr(_dense(base))
    return r[:rank].cpu(), q[:, :rank].cpu()


def loftq(base: Base, rank: int, scale: float, generator: torch.Generator) -> Pair:
    """scale B A is the best approximation of this rank of W - Q(W) (Li et al. 2023, arXiv:2310.08659, T = 1).

    Raises:
        ModelError: the base is not quantized, or the matrix that its codes were made of is not to be had.
    """
    if not isinstance(base, QuantizedLinear):
        raise ModelError(
            "adapter.init = 'loftq' makes up for what quantizing the base lost, and the base is dense: set "
            "model.quantize to 'nf4' or 'int8', or take another init"
        )
    if base.origin is None:
        raise ModelError(
            "adapter.init = 'loftq' needs the matrix that a layer's codes were made of, and the model's files hold the "
            "codes alone (a GGUF file, or a folder that was written quantized): take the unquantized model with "
            "model.quantize = 'nf4' or 'int8', or another init"
        )
    lost = base.origin.read().to(base.device).float() - _dense(base)
    return _largest(lost, rank, scale)


def _largest(matrix: Tensor, rank: int, scale: float) -> Pair:
    """A and B whose product, scaled, is the best approximation of a matrix of this rank."""
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    root = (s[:rank] / scale).sqrt()
    return (root[:, None] * v[:rank]).cpu(), (u[:, :rank] * root).cpu()


STARTS: Mapping[str, Callable[[Base, int, float, torch.Generator], Pair]] = {
    "kaiming": kaiming,
    "gaussian": gaussian,
    "orthogonal": orthogonal,
    "pissa": pissa,
    "olora": olora,
    "loftq": loftq,
    "eva": kaiming,  # until rows were seen
}
KEPT = frozenset({"orthogonal", "pissa", "olora"})
"""Starts that are kept, because B A is not 0 and the model shall compute what it did."""
UPDATES = frozenset({"loftq"})
"""Starts that are an update by themselves."""
FROM_ROWS = frozenset({"eva"})
"""Starts whose A comes from the training rows (`_eva`)."""
