"""8-bit integers with one scale for 128 numbers of a row: 8.25 bits a number.

    w = scale * q        q: -127 to 127, scale: largest absolute value / 127

An outlier coarsens its block alone, so nothing is held apart as in LLM.int8 (Dettmers et al. 2022, arXiv:2208.07339),
which multiplies in 8 bits; here products are computed in the type of their input. Parts: codes (out, in), scales
(out, blocks); the last block of a row may be shorter.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from luthier.models.kernels import native
from luthier.models.kernels.fused import fused
from luthier.models.quantize.base import (
    QuantizedLinear,
    block_tops,
    in_blocks,
    in_chunks,
    require_parts,
)

BLOCK = 128


class Int8Linear(QuantizedLinear):
    """A linear layer whose matrix is held in 8-bit integers."""

    @classmethod
    def pack(cls, weight: Tensor) -> dict[str, Tensor]:
        """The parts of a matrix; works on its device, some rows at a time."""
        scales = block_tops(weight, BLOCK) / 127
        codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
        if native.serves(weight):
            native.call("pack_int8", weight.dtype, weight.contiguous(), scales, codes, *weight.shape)
        else:
            _codes_plain(weight, scales, codes)
        return {"codes": codes, "scales": scales}

    @classmethod
    def require(cls, shape: tuple[int, int], parts: Mapping[str, Tensor]) -> None:
        """Check the parts of a matrix of this shape."""
        expected = {"codes": (shape, torch.int8), "scales": ((shape[0], -(-shape[1] // BLOCK)), torch.float32)}
        require_parts(f"a matrix of shape {shape} in int8", parts, expected)

    def expand_native(self, start: int, end: int, out: Tensor) -> None:
        """Rows of the matrix, by the kernel in C."""
        parts = self.parts
        given = parts["codes"][start:end], parts["scales"][start:end]
        native.call("expand_int8", out.dtype, *given, out, end - start, self.in_features)

    def expand_plain(self, start: int, end: int, dtype: torch.dtype) -> Tensor:
        """The reference."""
        parts = self.parts
        return fused(_expand, self.device, dtype=dtype)(parts["codes"][start:end], parts["scales"][start:end])


def _expand(codes: Tensor, scales: Tensor, *, dtype: torch.dtype) -> Tensor:
    """(rows, width)"""
    return (scales.repeat_interleave(BLOCK, dim=1)[:, : codes.shape[1]] * codes).to(dtype)


def _codes_plain(weight: Tensor, scales: Tensor, codes: Tensor) -> None:
    """The reference."""
    for start, end in in_chunks(*weight.shape):
        scale = scales[start:end, :, None]
        levels = torch.where(scale > 0, in_blocks(weight[start:end], BLOCK) / scale, 0.0).round_()
        codes[start:end] = levels.flatten(1)[:, : weight.shape[1]].to(torch.int8)
