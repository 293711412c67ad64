"""How A and B of a low-rank update begin.

Starts that take something out of the weight (PiSSA, OLoRA) or whose product is 0 only up to rounding (orthogonal) are
kept beside A and B, and the update is what A and B have moved: B A - B0 A0. The base stays as it was, and in the
arithmetic of numbers that are not rounded the training is that of the papers.
"""

import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn

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
    u, s, v = torch.linalg.svd(_dense(base), full_matrices=False)
    root = (s[:rank] / scale).sqrt()
    return (root[:, None] * v[:rank]).cpu(), (u[:, :rank] * root).cpu()


def olora(base: Base, rank: int, scale: float, generator: torch.Generator) -> Pair:
    """B the first columns of Q and A the first rows of R, where W = Q R (Büyükakyüz 2024, arXiv:2406.01775)."""
    q, r = torch.linalg.qr(_dense(base))
    return r[:rank].cpu(), q[:, :rank].cpu()


STARTS: Mapping[str, Callable[[Base, int, float, torch.Generator], Pair]] = {
    "kaiming": kaiming,
    "gaussian": gaussian,
    "orthogonal": orthogonal,
    "pissa": pissa,
    "olora": olora,
}
KEPT = frozenset({"orthogonal", "pissa", "olora"})
"""Starts that are kept, because B A is not 0."""
