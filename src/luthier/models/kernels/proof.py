"""Every kernel beside its reference once in a process, before a model computes with them.

The gates before a training compute in float32, so they would not see a bfloat16 kernel that this machine's compiler got
wrong. Small inputs, values and gradients, a few milliseconds. The limits are wide: what is checked is that a kernel
computes the same thing, not how well it rounds, which the tests do.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from luthier.models.forest import Forest
from luthier.models.kernels import native
from luthier.models.kernels.attention import decode, pack_prefix, rotary_attention, rotate_plain
from luthier.models.kernels.head import head_scores, head_scores_plain
from luthier.models.kernels.norm import add_rms_norm, rms_norm_plain
from luthier.models.kernels.swiglu import swiglu, swiglu_plain
from luthier.models.quantize import gguf, int8, nf4
from luthier.models.quantize.base import QuantizedLinear

LIMIT = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Largest difference, as a share of the reference's largest number or of 1."""
_EPS, _SCALE = 1e-5, 0.125

Function: TypeAlias = Callable[..., Any]
Case: TypeAlias = tuple[str, Function, Function, list[Tensor]]
"""A name, the kernel, its reference, and the inputs of both."""


@cache
def require() -> None:
    """Switch the kernels off in this process, with the reason in `native.trouble`, if one is wrong."""
    if native.library() is not None and (name := wrong()):
        native.refuse(f"the compiled {name} computes something else than plain torch on this machine")


def wrong() -> str:
    """The first kernel that is off, with its number format; empty: none is."""
    for dtype, limit in LIMIT.items():
        for name, kernel, plain, inputs in _cases(dtype):
            found, wanted = _with_gradients(kernel, inputs), _with_gradients(plain, [x.double() for x in inputs])
            if not all(_near(a, b, limit) for a, b in zip(found, wanted, strict=True)):
                return f"{name} in {str(dtype).removeprefix('torch.')}"
    return ""


def _near(found: Tensor, wanted: Tensor, limit: float) -> bool:
    return float((found - wanted).abs().max()) <= limit * max(1.0, float(wanted.abs().max()))  # NaN is not


def _with_gradients(function: Function, inputs: Sequence[Tensor]) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    with torch.enable_grad():
        made = function(*leaves)
        outs: list[Tensor] = list(made) if isinstance(made, tuple) else [made]
        directions = [torch.linspace(-1, 1, o.numel()).view(o.shape).to(o.dtype) for o in outs]
        gradients = torch.autograd.grad(outs, leaves, directions) if outs[0].requires_grad else ()
    return [x.detach().double() for x in (*outs, *gradients)]


def _cases(dtype: torch.dtype) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    def norm_plain(x: Tensor, delta: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return x + delta, rms_norm_plain(x + delta, weight, _EPS)

    yield "norm", lambda x, d, w: add_rms_norm(x, d, w, _EPS), norm_plain, [draw(70, 96), draw(70, 96), draw(96)]
    yield "gated middle", swiglu, swiglu_plain, [draw(9, 70), draw(9, 70)]
    rows, targets = torch.tensor([0, 1, 1, 4]), torch.tensor([3, 0, 99, 42])
    yield (
        "log-probabilities",
        lambda h, w: head_scores(h, w, rows, targets)[0],
        lambda h, w: head_scores_plain(h, w, rows, targets)[0],
        [draw(5, 64), draw(100, 64)],
    )
    # a row of 70 tokens, one of 20 that goes on from it, and another tree
    starts, ends, parents = (0, 70, 90), (70, 90, 120), (-1, 0, -1)
    forest = Forest(torch.zeros(120, dtype=torch.int64), torch.arange(120), starts, ends, parents)
    angles = torch.linspace(0, 3, 120 * 32).view(120, 32).repeat(1, 2)
    rotary = (angles.cos().to(dtype), angles.sin().to(dtype))
    heads = [draw(120, 4, 64), draw(120, 2, 64), draw(120, 2, 64)]
    yield (
        "attention",
        lambda q, k, v: rotary_attention(q, k, v, rotary, forest, _SCALE),
        lambda q, k, v: _attention_plain(q, k, v, (rotary[0].double(), rotary[1].double()), forest),
        heads,
    )
    kept, lengths = [draw(3, 2, 80, 64) for _ in range(2)], torch.tensor([0, 65, 79])
    prefix = [draw(2, 80, 64) for _ in range(2)]
    yield (
        "attention of writing",
        lambda q, k, v: decode(
            (q.detach(), k.detach(), v.detach()), (kept[0], kept[1]), pack_prefix(*prefix), lengths, _SCALE
        ),
        lambda q, k, v: _decode_plain((q, k, v), kept, prefix, lengths).detach(),
        [draw(3, 4, 64), draw(3, 2, 64), draw(3, 2, 64)],
    )

    # float64 is packed and expanded by the plain version: the reference of a format is the format itself
    for kind in (nf4.NF4Linear, int8.Int8Linear):
        yield kind.__name__, partial(_through, kind), partial(_through, kind), [draw(9, 150)]
    for number, (_, size) in gguf.SIZES.items():
        blocks = torch.randint(0, 256, (2, 3, size), generator=generator, dtype=torch.uint8)
        blocks[..., [1, 3, size - 1]] &= 0x3F  # where a format may have a half-precision number, it is no large one
        expand = partial(_expanded, blocks.view(2, -1), number)
        yield f"GGUF format {number}", expand, expand, [draw(1)]


def _through(kind: type[QuantizedLinear], weight: Tensor) -> Tensor:
    shape = weight.shape[0], weight.shape[1]
    return kind(shape, kind.pack(weight.detach()), None, weight.dtype).dense(weight.dtype)


def _expanded(blocks: Tensor, kind: int, like: Tensor) -> Tensor:
    numbers, size = gguf.SIZES[kind]
    out = torch.empty(len(blocks), blocks.shape[1] // size * numbers, dtype=like.dtype)
    gguf.expand_blocks(blocks, kind, out)
    return out


def _softmax_attention(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """(Q, heads, size) from (Q, heads, size), (K, kv heads, size) twice, and (Q, K) what is seen."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = torch.einsum("qhs,khs->hqk", q, k) * _SCALE
    return torch.einsum("hqk,khs->qhs", scores.masked_fill(~seen, float("-inf")).softmax(-1), v)


def _attention_plain(q: Tensor, k: Tensor, v: Tensor, rotary: tuple[Tensor, Tensor], forest: Forest) -> Tensor:
    q, k = rotate_plain(q, *rotary), rotate_plain(k, *rotary)
    place = torch.arange(len(q))
    seen = torch.zeros(len(q), len(q), dtype=torch.bool)
    for node, (start, end) in enumerate(zip(forest.starts, forest.ends, strict=True)):
        for above in forest.path(node):
            seen[start:end, forest.starts[above] : forest.ends[above]] = True
    return _softmax_attention(q, k, v, seen & (place[:, None] >= place))


def _decode_plain(new: tuple[Tensor, ...], kept: list[Tensor], prefix: list[Tensor], lengths: Tensor) -> Tensor:
    q = new[0]
    outs = []
    for row, length in enumerate(lengths.tolist()):
        k, v = (
            torch.cat([p.double(), x[row, :, :length].double(), n[row][:, None]], dim=1).transpose(0, 1)
            for p, x, n in zip(prefix, kept, new[1:], strict=True)
        )
        outs.append(_softmax_attention(q[row][None], k, v, torch.ones(1, len(k), dtype=torch.bool)))
    return torch.cat(outs)
