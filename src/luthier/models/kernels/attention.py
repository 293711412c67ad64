"""Rotary positions (Su et al. 2021, arXiv:2104.09864) and the attention over a forest, as one operation.

    out = softmax(scale * rotate(q) rotate(k)^T, over the nodes above and, causally, the own) v

Shapes: q and out (N, heads, size), k and v (N, kv heads, size), cos and sin (N, size). Kept for the backward pass: the
rotated q and k, v, out, and one float a head and token.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from luthier.models.forest import Forest
from luthier.models.kernels import native

BLOCK = 64
"""Keys that are taken at once (KEYS in attention.c); the size of a head must be a multiple."""


class _Shape(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_long) for name in ("tokens", "heads", "kv_heads", "size", "nodes", "blocks", "trees")),
        *((name, ctypes.c_void_p) for name in ("starts", "ends", "parents", "first_block", "tree_starts")),
        *((name, ctypes.c_long) for name in ("first_node", "first_token")),
        ("scale", ctypes.c_float),
    ]


Spans: TypeAlias = tuple[Sequence[int], Sequence[int], Sequence[int]]
"""Starts, ends and parents of nodes, as in a `Forest`."""


def _shape(spans: Spans, q: Tensor, k: Tensor, scale: float, first_node: int = 0) -> tuple[_Shape, Any]:
    """What the kernel needs to know, and the arrays that it points to, which must live as long."""
    starts, ends, parents = (np.asarray(x, dtype=np.int64) for x in spans)
    heads, kv_heads, size = q.shape[1], k.shape[1], q.shape[2]
    blocks = -(-(ends - starts) // BLOCK)
    first_block = np.cumsum(blocks) - blocks
    roots = np.append(np.flatnonzero(parents < 0), len(parents))
    arrays = (starts, ends, parents, first_block, roots)
    counts = (int(ends[-1]), heads, kv_heads, size, len(starts), int(blocks.sum()), len(roots) - 1)
    first = (first_node, int(starts[first_node]))
    return _Shape(*counts, *(array.ctypes.data for array in arrays), *first, scale), arrays


def rotate_plain(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The reference, as transformers' Llama computes it."""
    first, second = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat([-second, first], dim=-1) * sin[:, None]


def rotary_attention(
    q: Tensor, k: Tensor, v: Tensor, rotary: tuple[Tensor, Tensor], forest: Forest, scale: float
) -> Tensor:
    """(N, heads, size); only for tensors that `native.serves`, of a size that `BLOCK` divides."""
    out: Tensor = _RotaryAttention.apply(q, k, v, rotary, (forest.starts, forest.ends, forest.parents), scale)
    return out


def attend(q: Tensor, k: Tensor, v: Tensor, spans: Spans, scale: float, first_node: int = 0) -> Tensor:
    """(N', heads, size) attention of rotated q and k, without a graph; only as `rotary_attention`.

    Args:
        q: the N' queries of the nodes from `first_node` on.
        k: of all nodes, rotated.
        v: of all nodes.
        spans: of the forest.
        scale: what products of q and k are multiplied by.
        first_node: nodes before it are seen but do not look: their keys were computed earlier.
    """
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    shape, _arrays = _shape(spans, q, k, scale, first_node)
    out, lse = torch.empty_like(q), torch.empty(q.shape[1], k.shape[0])
    native.call("forest_attention", q.dtype, ctypes.byref(shape), q, k, v, out, lse)
    return out


@dataclass(frozen=True)
class Prefix:
    """Keys and values that all rows begin with, in the order in which the kernel reads them."""

    tokens: int
    keys: Tensor
    values: Tensor


def pack_prefix(keys: Tensor, values: Tensor) -> Prefix:
    """Of (kv heads, P, size) contiguous keys and values; P may be 0."""
    heads, tokens, size = keys.shape
    # a packed number takes four bytes where the processor has no products of bfloat16
    packed = [torch.empty(heads * -(-tokens // BLOCK) * BLOCK * size, dtype=torch.float32) for _ in range(2)]
    native.call("pack_prefix", keys.dtype, keys, values, *packed, heads, tokens, size)
    return Prefix(tokens, *packed)


def decode(
    new: tuple[Tensor, Tensor, Tensor], held: tuple[Tensor, Tensor], prefix: Prefix, lengths_B: Tensor, scale: float
) -> Tensor:
    """(B, heads, size) attention of one new token a row; its key and value are put behind the row's own.

    Args:
        new: (B, heads, size) query, (B, kv heads, size) key and value, rotated.
        held: (rows, kv heads, room, size) keys and values, contiguous; row b of the batch has the first `lengths_B[b]`.
        prefix: what all rows begin with. Their queries look at it together, as one product.
        lengths_B: int64, each below the room.
        scale: what products of queries and keys are multiplied by.
    """
    q, k, v = (x.contiguous() for x in new)
    out = torch.empty_like(q)
    rows, kv_heads, size = k.shape
    counts = (rows, kv_heads, q.shape[1] // kv_heads, size, held[0].shape[2], prefix.tokens)
    native.call("decode_attention", q.dtype, q, k, v, *held, lengths_B, prefix.keys, prefix.values, out, *counts, scale)
    return out


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(N, heads, size) turned by the angles of (N, size) cos and sin, without a graph; as `rotary_attention`."""
    return _rotate(x.contiguous(), cos.to(x.dtype).contiguous(), sin.to(x.dtype).contiguous())


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, back: bool = False) -> Tensor:
    rows, heads, size = x.shape
    out = torch.empty(x.shape, dtype=x.dtype)
    native.call("rotate", x.dtype, x, heads * size, cos, sin, out, rows, heads, size, int(back))
    return out


class _RotaryAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, rotary: tuple[Tensor, Tensor], spans: Spans, scale: float
    ) -> Tensor:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        cos, sin = (x.to(q.dtype).contiguous() for x in rotary)
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        shape, arrays = _shape(spans, q, k, scale)
        out, lse = torch.empty_like(q), torch.empty(q.shape[1], q.shape[0])
        native.call("forest_attention", q.dtype, ctypes.byref(shape), q, k, v, out, lse)
        ctx.save_for_backward(q, k, v, out, lse, cos, sin)
        ctx.shape, ctx.arrays = shape, arrays
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, cos, sin = ctx.saved_tensors
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        shape = ctypes.byref(ctx.shape)
        native.call("forest_attention_back", q.dtype, shape, q, k, v, out, dout.contiguous(), lse, dq, dk, dv)
        return _rotate(dq, cos, sin, back=True), _rotate(dk, cos, sin, back=True), dv, None, None, None
