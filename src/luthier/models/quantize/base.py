"""A frozen linear layer that holds its matrix in fewer bits, and makes the numbers again for each product.

    y = x W^T + bias,  W = dequantized parts        dx = dy W, with W made again

Shapes: x (..., in), W (out, in). Nothing dense outlives a product: the graph keeps the layer, not its matrix, and on
the CPU all layers of a thread lend the same scratch memory. What a layer computes depends on its parts and its input
alone, so an evaluation between two steps changes nothing.

QLoRA (Dettmers et al. 2023, arXiv:2305.14314) is LoRA around such a layer; `kernels/low_rank.py` joins the two. Left
out: products computed from the packed numbers themselves (they pay where few rows are multiplied), and layers whose
experts lie in one tensor.
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from luthier.errors import ModelError
from luthier.models.kernels import native


@dataclass(frozen=True)
class Origin:
    """Where the dense matrix lies that the codes of a layer were made of."""

    path: Path
    name: str

    def read(self) -> Tensor:
        """(out, in), in the type of its file.

        Raises:
            ModelError: the file is gone, or no longer holds it.
        """
        try:
            with safe_open(self.path, framework="pt") as file:
                found: Tensor = file.get_tensor(self.name)
                return found.clone()
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{self.path}: {self.name} cannot be read: {error}; restore the file") from None


class QuantizedLinear(nn.Module, ABC):
    """A linear layer whose matrix is held as `parts`, tensors that are written to and read from disk as they are."""

    from_file: ClassVar[bool] = False
    """Whether the matrices of a model are taken in this format from the file that the model came in, and embeddings
    and head with them; otherwise they are made of the model's own numbers, and embeddings and head stay as they are."""

    origin: Origin | None = None
    """The matrix that the codes were made of; None: there is none, since a file holds the codes themselves."""

    def __init__(self, shape: tuple[int, int], parts: Mapping[str, Tensor], bias: Tensor | None, dtype: torch.dtype):
        """A layer of parts that are there already.

        Args:
            shape: (out, in) of the matrix.
            parts: what `pack` made.
            bias: (out,) or None; frozen, too.
            dtype: that products are computed in, and that the layer becomes dense in.

        Raises:
            ModelError: the parts are not those of a matrix of this shape.
        """
        super().__init__()
        self.out_features, self.in_features = shape
        self.dtype = dtype
        self.require(shape, parts)
        for name, part in parts.items():
            self.register_buffer(name, part)
        self._names = tuple(parts)
        self.bias = None if bias is None else nn.Parameter(bias.to(dtype), requires_grad=False)

    @classmethod
    @abstractmethod
    def pack(cls, weight: Tensor) -> dict[str, Tensor]:
        """The parts of a dense (out, in) matrix.

        Raises:
            ModelError: the format cannot hold a matrix of this shape, or the matrix is not finite.
        """

    @classmethod
    @abstractmethod
    def require(cls, shape: tuple[int, int], parts: Mapping[str, Tensor]) -> None:
        """Check that parts, from a file perhaps, are those of an (out, in) matrix.

        Raises:
            ModelError: one is missing, left over, or of another shape or type.
        """

    @abstractmethod
    def expand_native(self, start: int, end: int, out: Tensor) -> None:
        """Write rows start:end of the matrix to `out` (end - start, in) by a kernel in C, in float32, rounded once."""

    @abstractmethod
    def expand_plain(self, start: int, end: int, dtype: torch.dtype) -> Tensor:
        """(end - start, in) rows start:end: the reference, in float32, rounded once; on a GPU one fused pass."""

    def expand(self, start: int, end: int, out: Tensor) -> None:
        """Write rows start:end of the matrix to `out` (end - start, in)."""
        if native.serves(out):
            self.expand_native(start, end, out)
        else:
            out.copy_(self.expand_plain(start, end, out.dtype))

    @property
    def parts(self) -> dict[str, Tensor]:
        """The tensors that hold the matrix, by name."""
        return {name: self.get_buffer(name) for name in self._names}

    @property
    def held_bytes(self) -> int:
        """Bytes of the parts."""
        return sum(part.numel() * part.element_size() for part in self.parts.values())

    @property
    def device(self) -> torch.device:
        """Where the parts are."""
        return self.get_buffer(self._names[0]).device

    def dense(self, dtype: torch.dtype) -> Tensor:
        """(out, in), made anew at each call."""
        if self.device.type != "cpu":
            return self.expand_plain(0, self.out_features, dtype)
        made = torch.empty(self.out_features, self.in_features, dtype=dtype)
        self.expand(0, self.out_features, made)
        return made

    def to_dense(self) -> nn.Linear:
        """A dense layer that computes the same, in the type that products are computed in."""
        with torch.device("meta"):
            linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None)
        linear.weight = nn.Parameter(self.dense(self.dtype), requires_grad=False)
        if self.bias is not None:
            linear.bias = self.bias
        return linear

    def lent(self, dtype: torch.dtype, start: int = 0, end: int | None = None) -> Tensor:
        """Rows start:end for one product: the next loan to this thread, by any layer, may overwrite them."""
        end = self.out_features if end is None else end
        if self.device.type != "cpu":  # a GPU's allocator keeps what it frees
            return self.expand_plain(start, end, dtype)
        made = _scratch((end - start, self.in_features), dtype)
        self.expand(start, end, made)
        return made

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)"""
        y: Tensor = _Product.apply(x, self.lent, None if self.bias is None else self.bias.to(x.dtype))
        return y

    def extra_repr(self) -> str:
        """What torch prints of a layer."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "QuantizedLinear":
        """Parts move with the model to another device and never to another type: a rounded scale would be another."""
        held = self.parts
        super()._apply(fn, recurse)
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        for name, part in held.items():
            moved = self.get_buffer(name)
            if moved.dtype != part.dtype:
                self.register_buffer(name, part.to(moved.device))
        return self


class QuantizedEmbedding(nn.Module, ABC):
    """An embedding whose matrix is held as parts."""

    @abstractmethod
    def to_dense(self) -> nn.Embedding:
        """The embedding of the same numbers."""


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Callable[[torch.dtype], Tensor], bias: Tensor | None) -> Tensor:
        ctx.matrix = matrix
        return F.linear(x, matrix(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return dy @ ctx.matrix(dy.dtype), None, None


_lent = threading.local()


def _scratch(shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Memory of this thread for a matrix."""
    size = shape[0] * shape[1]
    held: Tensor | None = vars(_lent).get(str(dtype))
    if held is None or held.numel() < size:
        with torch.inference_mode(False):  # one that was made in inference mode could serve no training
            held = torch.empty(size, dtype=dtype)
        setattr(_lent, str(dtype), held)
    return held[:size].view(shape)


def in_chunks(rows: int, width: int, numbers: int = 1 << 20) -> list[tuple[int, int]]:
    """(start, end) of groups of rows of at most so many numbers, so that packing a matrix needs little beside it."""
    step = max(1, numbers // max(width, 1))
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]


def require_parts(
    what: str, found: Mapping[str, Tensor], expected: Mapping[str, tuple[tuple[int, ...], torch.dtype]]
) -> None:
    """Check names, shapes and types of parts.

    Raises:
        ModelError: they are others.
    """
    have = {name: (tuple(part.shape), part.dtype) for name, part in found.items()}
    if have != dict(expected):
        wrong = sorted(name for name in {*have, *expected} if have.get(name) != expected.get(name))
        raise ModelError(
            f"{what}: expected { ({name: expected.get(name) for name in wrong}) }, found "
            f"{ ({name: have.get(name) for name in wrong}) }; the file is damaged or was written for another shape"
        )


def in_blocks(weight: Tensor, size: int) -> Tensor:
    """(rows, blocks, size) in float32; what a short last block lacks is 0."""
    return F.pad(weight.float(), (0, -weight.shape[1] % size)).view(len(weight), -1, size)


def block_tops(weight: Tensor, size: int) -> Tensor:
    """(rows, blocks) largest absolute value of each block of each row, in float32.

    Raises:
        ModelError: a number is not finite; it would spoil its whole block.
    """
    tops = torch.empty(len(weight), -(-weight.shape[1] // size), device=weight.device)
    if native.serves(weight):
        native.call("block_tops", weight.dtype, weight.contiguous(), tops, *weight.shape, size)
    else:
        for start, end in in_chunks(*weight.shape):
            tops[start:end] = in_blocks(weight[start:end], size).abs().amax(-1)
    require_finite(weight)
    return tops


def require_finite(weight: Tensor) -> None:
    """Check a matrix before it is packed.

    Raises:
        ModelError: it holds a NaN or an infinity.
    """
    for start, end in in_chunks(weight.shape[0], weight.shape[1], numbers=1 << 18):
        low, high = weight[start:end].aminmax()  # a NaN is both
        if not (torch.isfinite(low) and torch.isfinite(high)):
            raise ModelError(
                f"rows {start} to {end - 1} of a matrix hold numbers that are not finite; the model's file is damaged"
            )
