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
from luthier.models.quantize.base import QuantizedLinear, in_chunks, require_finite, require_parts

BLOCK = 128


class Int8Linear(QuantizedLinear):
    """A linear layer whose matrix is held in 8-bit integers."""

    @classmethod
    def pack(cls, weight: Tensor) -> dict[str, Tensor]:
        """The parts of a matrix; works on its device, some rows at a time."""
        require_finite(weight)
        rows, width = weight.shape
        codes = torch.empty(rows, width, dtype=torch.int8, device=weight.device)
        scales = torch.empty(rows, -(-width // BLOCK), device=weight.device)
        for start, end in in_chunks(rows, width):
            wide = torch.nn.functional.pad(weight[start:end].float(), (0, -width % BLOCK)).view(end - start, -1, BLOCK)
            scale = wide.abs().amax(-1) / 127
            scales[start:end] = scale
            levels = torch.where(scale[..., None] > 0, wide / scale[..., None], 0.0).round_().clamp_(-127, 127)
            codes[start:end] = levels.flatten(1)[:, :width].to(torch.int8)
        return {"codes": codes, "scales": scales}

    @classmethod
    def require(cls, shape: tuple[int, int], parts: Mapping[str, Tensor]) -> None:
        """Check the parts of a matrix of this shape."""
        expected = {"codes": (shape, torch.int8), "scales": ((shape[0], -(-shape[1] // BLOCK)), torch.float32)}
        require_parts(f"a matrix of shape {shape} in int8", parts, expected)

    def expand(self, start: int, end: int, out: Tensor) -> None:
        """Rows of the matrix; compiled where the kernels serve `out`."""
        if not native.serves(out):
            self.expand_plain(start, end, out)
            return
        parts = self.parts
        given = parts["codes"][start:end], parts["scales"][start:end]
        native.call("expand_int8", out.dtype, *given, out, end - start, self.in_features)

    def expand_plain(self, start: int, end: int, out: Tensor) -> None:
        """The reference."""
        parts = self.parts
        scales = parts["scales"][start:end].repeat_interleave(BLOCK, dim=1)[:, : self.in_features]
        out.copy_(scales * parts["codes"][start:end])
