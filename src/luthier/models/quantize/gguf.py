"""The blocks of GGUF files as they lie there: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K.

    w = d * q,   w = d * q + m,   w = (d * s) * q - (dmin * m)        a block holds 32 or 256 numbers of a row

d, m and dmin are half-precision numbers of the block, s and m six-bit (in Q6_K eight-bit) ones of its parts; see
`ggml-quants.c` of llama.cpp. Every product of a scale and a code is exact in float32, so what comes out is what the
`gguf` package computes, bit by bit. The blocks of a matrix are mapped from the file, not copied, wherever the order of
its rows is the model's. Embeddings and the output head are held so, too: an embedding expands the rows asked for.

Parts: blocks (out, bytes of a row), kind (1,), the number that GGUF gives the format.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.errors import ModelError
from luthier.models.kernels import native
from luthier.models.kernels.fused import fused
from luthier.models.quantize.base import QuantizedEmbedding, QuantizedLinear, in_chunks, require_finite, require_parts


class GGUFLinear(QuantizedLinear):
    """A linear layer whose matrix is held in blocks of a GGUF file."""

    from_file: ClassVar[bool] = True

    def __init__(self, shape: tuple[int, int], parts: Mapping[str, Tensor], bias: Tensor | None, dtype: torch.dtype):
        """As every quantized layer."""
        super().__init__(shape, parts, bias, dtype)
        self.kind_number = int(parts["kind"])  # read once: on a GPU each reading would wait for all that it does

    @classmethod
    def pack(cls, weight: Tensor) -> dict[str, Tensor]:
        """The parts of a matrix that no file holds: in Q8_0."""
        from gguf import GGMLQuantizationType, quantize

        require_finite(weight)
        rows, width = weight.shape
        numbers, size = SIZES[int(GGMLQuantizationType.Q8_0)]
        if width % numbers:
            raise ModelError(f"rows of {width} numbers cannot be held in GGUF blocks of {numbers}")
        blocks = torch.empty(rows, width // numbers * size, dtype=torch.uint8)
        for start, end in in_chunks(rows, width):
            packed = quantize(weight[start:end].float().cpu().numpy(), GGMLQuantizationType.Q8_0)
            blocks[start:end] = torch.from_numpy(packed)
        return parts_of(blocks.to(weight.device), int(GGMLQuantizationType.Q8_0))

    @classmethod
    def require(cls, shape: tuple[int, int], parts: Mapping[str, Tensor]) -> None:
        """Check the parts of a matrix of this shape."""
        kind = int(parts["kind"]) if "kind" in parts and parts["kind"].numel() == 1 else -1
        if kind not in SIZES:
            raise ModelError(f"GGUF blocks of a kind numbered {kind}; the kinds known are {sorted(SIZES)}")
        numbers, size = SIZES[kind]
        expected = {"blocks": ((shape[0], shape[1] // numbers * size), torch.uint8), "kind": ((1,), torch.uint8)}
        require_parts(f"a matrix of shape {shape} in GGUF blocks", parts, expected)

    def expand_native(self, start: int, end: int, out: Tensor) -> None:
        """Rows of the matrix, by the kernel in C."""
        expand_blocks(self.get_buffer("blocks")[start:end], self.kind_number, out)

    def expand_plain(self, start: int, end: int, dtype: torch.dtype) -> Tensor:
        """The reference."""
        run = fused(expand_plain, self.device, kind=self.kind_number, dtype=dtype)
        return run(self.get_buffer("blocks")[start:end])


class GGUFEmbedding(QuantizedEmbedding):
    """An embedding whose matrix is held in blocks of a GGUF file; a linear layer, the head, may hold the same ones."""

    def __init__(self, shape: tuple[int, int], parts: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        """An embedding of (tokens, width) numbers that come out as `dtype`; raises as `GGUFLinear`."""
        super().__init__()
        self.linear = GGUFLinear(shape, parts, None, dtype)
        self.num_embeddings, self.embedding_dim = shape

    def forward(self, ids: Tensor) -> Tensor:
        """(...) -> (..., width)"""
        asked, places = ids.unique(return_inverse=True)
        rows = torch.empty(len(asked), self.embedding_dim, dtype=self.linear.dtype, device=ids.device)
        expand_blocks(self.linear.get_buffer("blocks")[asked], self.linear.kind_number, rows)
        return F.embedding(places, rows)

    def to_dense(self) -> nn.Embedding:
        """The embedding of the same numbers."""
        dense = nn.Embedding(self.num_embeddings, self.embedding_dim, device="meta")
        dense.weight = nn.Parameter(self.linear.dense(self.linear.dtype), requires_grad=False)
        return dense


def parts_of(blocks: Tensor, kind: int) -> dict[str, Tensor]:
    """The parts of a matrix from its rows' bytes."""
    return {"blocks": blocks, "kind": torch.tensor([kind], dtype=torch.uint8)}


def expand_blocks(blocks: Tensor, kind: int, out: Tensor) -> None:
    """Write the numbers of (rows, bytes) to `out` (rows, width)."""
    if not native.serves(out):
        out.copy_(expand_plain(blocks, kind=kind, dtype=out.dtype))
        return
    numbers, size = SIZES[kind]
    count = blocks.shape[1] // size
    native.call("expand_gguf", out.dtype, blocks.contiguous(), out, len(blocks), count, size, numbers, kind)


def expand_plain(blocks: Tensor, *, kind: int, dtype: torch.dtype) -> Tensor:
    """(rows, width) from (rows, bytes): the reference, on any device."""
    made = _EXPAND[kind](blocks.reshape(-1, SIZES[kind][1]))
    return made.view(len(blocks), -1).to(dtype)


def _half(two_bytes: Tensor) -> Tensor:
    """(blocks, 1) float32 from two bytes of each block."""
    return two_bytes.contiguous().view(torch.float16).float()


def _halves(codes: Tensor) -> Tensor:
    """The low halves of all bytes, then the high ones."""
    return torch.cat([codes & 15, codes >> 4], -1)


def _fifth_bits(four_bytes: Tensor) -> Tensor:
    """(blocks, 32) of 16 or 0."""
    places = torch.arange(8, device=four_bytes.device)
    return ((four_bytes[..., None].int() >> places) & 1).flatten(1) << 4


def _small(b: Tensor, *, five: bool, least: bool) -> Tensor:
    """Q4_0, Q4_1, Q5_0, Q5_1: a scale, a smallest number or none, fifth bits or none, and halves of bytes."""
    start = 4 if least else 2
    codes = _halves(b[:, start + 4 * five :]).int()
    if five:
        codes = codes | _fifth_bits(b[:, start : start + 4])
    if least:
        return _half(b[:, :2]) * codes + _half(b[:, 2:4])
    return _half(b[:, :2]) * (codes - (16 if five else 8))


def _q8_0(b: Tensor) -> Tensor:
    return _half(b[:, :2]) * b[:, 2:].view(torch.int8)


def _k_scales(s: Tensor) -> tuple[Tensor, Tensor]:
    """(blocks, 8) scales and least numbers of a block's parts: six bits each in twelve bytes."""
    a, b, c = s.int().split(4, dim=-1)
    scales = torch.cat([a & 63, (c & 15) | ((a >> 2) & 48)], -1)
    return scales, torch.cat([b & 63, (c >> 4) | ((b >> 2) & 48)], -1)


def _q45_k(b: Tensor, *, five: bool) -> Tensor:
    scales, least = _k_scales(b[:, 4:16])
    scales, least = (_half(b[:, :2]) * scales)[..., None], (_half(b[:, 2:4]) * least)[..., None]
    low = b[:, 48 if five else 16 :].view(-1, 4, 1, 32)
    codes = torch.cat([low & 15, low >> 4], 2).view(-1, 8, 32).int()
    if five:
        places = torch.arange(8, device=b.device)[:, None]
        codes = codes | (((b[:, None, 16:48].int() >> places) & 1) << 4)
    return (scales * codes - least).flatten(1)


def _q6_k(b: Tensor) -> Tensor:
    low, high = b[:, :128].view(-1, 2, 1, 64), b[:, 128:192].view(-1, 2, 1, 32).int()
    codes = torch.cat([low & 15, low >> 4], 2).view(-1, 2, 4, 32).int()
    up = (high >> torch.tensor([0, 2, 4, 6], device=b.device)[:, None]) & 3
    scales = _half(b[:, 208:]) * b[:, 192:208].view(torch.int8)
    return (scales[..., None] * ((codes | (up << 4)) - 32).view(-1, 16, 16)).flatten(1)


SIZES: Mapping[int, tuple[int, int]] = MappingProxyType(
    {
        **{2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34)},
        **{12: (256, 144), 13: (256, 176), 14: (256, 210)},
    }
)
"""Numbers and bytes of a block, by the number that GGUF gives its format."""

_EXPAND: Mapping[int, Callable[[Tensor], Tensor]] = {
    2: partial(_small, five=False, least=False),
    3: partial(_small, five=False, least=True),
    6: partial(_small, five=True, least=False),
    7: partial(_small, five=True, least=True),
    8: _q8_0,
    12: partial(_q45_k, five=False),
    13: partial(_q45_k, five=True),
    14: _q6_k,
}
