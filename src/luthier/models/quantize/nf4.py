"""4-bit NormalFloat with double quantization (Dettmers et al. 2023, arXiv:2305.14314): 4.13 bits a number.

    w = code[q] * top,   top = offset + scale * level        q: 4 bits, top: one for 64 numbers of a row

The sixteen codes are quantiles of a normal distribution that was scaled to [-1, 1], and hold 0 exactly. Each block's
largest absolute value is itself quantized: the mean of all is subtracted, and what is left becomes an 8-bit integer
with one scale for 256 blocks. The paper takes 8-bit floats there; the differences to the mean have no tail that floats
would serve better. Codes are chosen for the value of `top` that will be multiplied with, not for the one before.
Blocks never reach over the end of a row; a row that is no multiple of 64 ends with a shorter one.

Parts: codes (out, 32 x blocks) bytes, of a block's 64 numbers the first 32 in the low halves; levels (out x blocks,);
scales, one for 256 blocks, with eight significant bits so that `scale * level` is exact; offset (1,).
"""

from collections.abc import Mapping
from functools import cache

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

BLOCK, GROUP = 64, 256
CODE = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""The published code book (QLoRA, appendix E)."""


class NF4Linear(QuantizedLinear):
    """A linear layer whose matrix is held in NF4."""

    @classmethod
    def pack(cls, weight: Tensor) -> dict[str, Tensor]:
        """The parts of a matrix; works on its device, some rows at a time."""
        tops = block_tops(weight, BLOCK)
        parts = _pack_tops(tops.view(-1))
        tops = _tops(parts["levels"], parts["scales"], parts["offset"]).view(tops.shape)
        codes = torch.empty(len(weight), tops.shape[1] * BLOCK // 2, dtype=torch.uint8, device=weight.device)
        if native.serves(weight):
            native.call("pack_nf4", weight.dtype, weight.contiguous(), tops, codes, *weight.shape)
        else:
            _codes_plain(weight, tops, codes)
        return {"codes": codes, **parts}

    @classmethod
    def require(cls, shape: tuple[int, int], parts: Mapping[str, Tensor]) -> None:
        """Check the parts of a matrix of this shape."""
        blocks = -(-shape[1] // BLOCK)
        expected = {
            "codes": ((shape[0], blocks * BLOCK // 2), torch.uint8),
            "levels": ((shape[0] * blocks,), torch.int8),
            "scales": ((-(-shape[0] * blocks // GROUP),), torch.float32),
            "offset": ((1,), torch.float32),
        }
        require_parts(f"a matrix of shape {shape} in NF4", parts, expected)

    def expand_native(self, start: int, end: int, out: Tensor) -> None:
        """Rows of the matrix, by the kernel in C."""
        parts = self.parts
        given = parts["codes"][start:end], parts["levels"], parts["scales"], parts["offset"]
        first = start * -(-self.in_features // BLOCK)
        native.call("expand_nf4", out.dtype, *given, out, end - start, self.in_features, first)

    def expand_plain(self, start: int, end: int, dtype: torch.dtype) -> Tensor:
        """The reference."""
        parts = self.parts
        run = fused(_expand, self.device, start=start, dtype=dtype)
        given = parts["codes"][start:end], parts["levels"], parts["scales"], parts["offset"]
        return run(*given, _book(self.device))[:, : self.in_features]


@cache
def _book(device: torch.device) -> Tensor:
    """The code book on a device; kept, since a copy to a GPU waits for all that it does."""
    with torch.inference_mode(False):
        return torch.tensor(CODE, device=device)


def _expand(
    codes: Tensor, levels: Tensor, scales: Tensor, offset: Tensor, book: Tensor, *, start: int, dtype: torch.dtype
) -> Tensor:
    """(rows, 64 x blocks) from the codes of the rows from `start`, and the other parts of all."""
    codes = codes.view(len(codes), -1, BLOCK // 2)
    here = torch.arange(len(codes) * codes.shape[1], device=codes.device) + start * codes.shape[1]
    tops = (offset + scales[here // GROUP] * levels[here]).view(len(codes), -1, 1)
    values = book[torch.cat([codes & 15, codes >> 4], -1).int()] * tops
    return values.flatten(1).to(dtype)


def _codes_plain(weight: Tensor, tops: Tensor, codes: Tensor) -> None:
    """The reference."""
    values = _book(weight.device)
    between = (values[1:] + values[:-1]) / 2
    for start, end in in_chunks(*weight.shape):
        top = tops[start:end, :, None]
        scaled = torch.where(top > 0, in_blocks(weight[start:end], BLOCK) / top, 0.0)
        nearest = torch.bucketize(scaled, between, out_int32=True).to(torch.uint8)
        low, high = nearest.split(BLOCK // 2, dim=-1)
        codes[start:end] = (low | (high << 4)).flatten(1)


def _pack_tops(tops: Tensor) -> dict[str, Tensor]:
    """The second quantization, of all blocks' largest absolute values, one after another."""
    offset = tops.mean()[None]
    groups = torch.nn.functional.pad(tops - offset, (0, -len(tops) % GROUP)).view(-1, GROUP)
    scales = (groups.abs().amax(-1) / 127).bfloat16().float()
    levels = torch.where(scales[:, None] > 0, groups / scales[:, None], 0.0).round_().clamp_(-127, 127)
    return {"levels": levels.to(torch.int8).view(-1)[: len(tops)].clone(), "scales": scales, "offset": offset}


def _tops(levels: Tensor, scales: Tensor, offset: Tensor) -> Tensor:
    return offset + scales.repeat_interleave(GROUP)[: len(levels)] * levels
