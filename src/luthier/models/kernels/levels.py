"""Attention over a forest, one level of its trees at a time: flash attention for spans of different lengths.

A token sees its own node up to itself, and the nodes above it whole. The nodes of one depth lie apart, and the
descendants of each are one stretch of the forest, so the forest is: one causal call in which each node sees itself, and
for each depth that has children one call in which descendants see their ancestor of that depth. Softmax over the union
follows from the parts' log-sum-exp, lse:

    lse = log sum_p exp lse_p        out = sum_p exp(lse_p - lse) out_p

Backward, each part's kernel is given out and lse of the union: its probabilities exp(s - lse) are then those of the
union, and gradients of the parts add up (the tiling of Dao et al. 2022, arXiv:2205.14135, with other tiles).

Rows that share nothing are one call. On GPUs that have them the kernels are those that torch ships; elsewhere plain
torch computes, which is the reference and too slow for use.

Shapes: queries (N, heads, size); keys and values (N, heads or fewer, size); lse (heads, N) in float32 at least.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

LARGEST_HEAD = 256
"""The flash kernels' own limit, and the numbers that they take."""
TYPES = (torch.bfloat16, torch.float16)


class Levels(NamedTuple):
    """The spans of each call, as tensors, so that a compiled layer serves any forest of as many depths."""

    tensors: tuple[Tensor, ...]
    """Ends of nodes; then for each depth with children: positions of descendants, positions of the nodes themselves,
    ends of the spans of descendants, ends of the nodes (int64, int64, int32, int32)."""
    sizes: Tensor
    """On the CPU: the longest node; then for each depth the longest span of descendants and the longest node."""


def levels_of(starts: Sequence[int], ends: Sequence[int], parents: Sequence[int], device: torch.device) -> Levels:
    """The calls for a forest of nodes in depth-first order (see `Forest`)."""
    last = last_descendants(parents)
    depth: list[int] = []
    for parent in parents:
        depth.append(depth[parent] + 1 if parent >= 0 else 0)
    tensors = [_ends([e - s for s, e in zip(starts, ends, strict=True)])]
    sizes = [max(e - s for s, e in zip(starts, ends, strict=True))]
    for level in range(max(depth)):
        nodes = [n for n in range(len(starts)) if depth[n] == level and last[n] > n]
        below = [(ends[n], ends[last[n]]) for n in nodes]
        own = [(starts[n], ends[n]) for n in nodes]
        tensors += [torch.cat([torch.arange(*span) for span in spans]) for spans in (below, own)]
        tensors += [_ends([end - start for start, end in spans]) for spans in (below, own)]
        sizes += [max(end - start for start, end in spans) for spans in (below, own)]
    return Levels(tuple(t.to(device) for t in tensors), torch.tensor(sizes))


def last_descendants(parents: Sequence[int]) -> list[int]:
    """For each node of a depth-first order the last node below it, or itself: what is below follows at once."""
    last = list(range(len(parents)))
    for node in range(len(parents) - 1, -1, -1):
        if parents[node] >= 0:
            last[parents[node]] = max(last[parents[node]], last[node])
    return last


def serves(device: torch.device, dtype: torch.dtype, head_size: int) -> bool:
    """Whether torch has flash kernels for such tensors on this device."""
    return (
        device.type == "cuda"
        and dtype in TYPES
        and head_size <= LARGEST_HEAD
        and head_size % 8 == 0
        and torch.cuda.get_device_capability(device)[0] >= 8
    )


def level_attention(q: Tensor, k: Tensor, v: Tensor, levels: Levels, scale: float) -> Tensor:
    """(N, heads, size)"""
    out: Tensor = _attention(q.contiguous(), k.contiguous(), v.contiguous(), list(levels.tensors), levels.sizes, scale)[
        0
    ]
    return out


@torch.library.custom_op("luthier::level_attention", mutates_args=())
def _attention(
    q: Tensor, k: Tensor, v: Tensor, tensors: Sequence[Tensor], sizes: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """out and lse"""
    cut, longest = tensors[0], sizes.tolist()
    out, lse = _spans(q, k, v, (cut, cut), (longest[0], longest[0]), True, scale)
    if len(longest) == 1:
        return out, lse
    wide = out.to(lse.dtype)
    for below, own, cuts, most in _parts(tensors, longest):
        part, part_lse = _spans(q[below], k[own], v[own], cuts, most, False, scale)
        before, joined = lse[:, below], torch.logaddexp(lse[:, below], part_lse)
        kept, added = ((x - joined).exp().t()[..., None] for x in (before, part_lse))
        wide[below] = wide[below] * kept + part * added
        lse[:, below] = joined
    return wide.to(q.dtype), lse


@_attention.register_fake
def _attention_shape(
    q: Tensor, k: Tensor, v: Tensor, tensors: Sequence[Tensor], sizes: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), q.new_empty((q.shape[1], q.shape[0]), dtype=_sums_in(q))


@torch.library.custom_op("luthier::level_attention_back", mutates_args=())
def _attention_back(
    dout: Tensor, kept: Sequence[Tensor], tensors: Sequence[Tensor], sizes: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv; `kept` are q, k, v, out and lse"""
    q, k, v, out, lse = kept
    cut, longest = tensors[0], sizes.tolist()
    parts = _spans_back((dout, q, k, v, out, lse), (cut, cut), (longest[0], longest[0]), True, scale)
    if len(longest) == 1:
        return parts
    dq, dk, dv = (x.to(lse.dtype) for x in parts)
    for below, own, cuts, most in _parts(tensors, longest):
        given = (dout[below], q[below], k[own], v[own], out[below], lse[:, below].contiguous())
        parts = _spans_back(given, cuts, most, False, scale)
        for total, places, part in zip((dq, dk, dv), (below, own, own), parts, strict=True):
            total[places] += part  # no place twice: nodes of one depth lie apart
    return dq.to(q.dtype), dk.to(q.dtype), dv.to(q.dtype)


@_attention_back.register_fake
def _attention_back_shape(dout: Tensor, kept: Sequence[Tensor], *_rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v, *_ = kept
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, tensors, sizes, scale = inputs
    ctx.save_for_backward(q, k, v, *output, sizes, *tensors)
    ctx.scale = scale


def _backward(ctx: Any, dout: Tensor, _dlse: Tensor | None) -> tuple[Any, ...]:
    q, k, v, out, lse, sizes, *tensors = ctx.saved_tensors  # read once: under checkpointing a second time is refused
    back = _attention_back(dout.contiguous(), [q, k, v, out, lse], tensors, sizes, ctx.scale)
    return (*back, [None] * len(tensors), None, None)


_attention.register_autograd(_backward, setup_context=_keep)


def _parts(
    tensors: Sequence[Tensor], longest: Sequence[int]
) -> list[tuple[Tensor, Tensor, tuple[Tensor, Tensor], tuple[int, int]]]:
    """For each depth: positions of descendants and of nodes, where spans end in both, the longest of both."""
    return [
        (
            tensors[4 * i + 1],
            tensors[4 * i + 2],
            (tensors[4 * i + 3], tensors[4 * i + 4]),
            (longest[2 * i + 1], longest[2 * i + 2]),
        )
        for i in range(len(longest) // 2)
    ]


def _ends(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *lengths], dtype=torch.int64).cumsum(0).to(torch.int32)


def _sums_in(q: Tensor) -> torch.dtype:
    return torch.promote_types(q.dtype, torch.float32)


Pair = tuple[Tensor, Tensor]


def _spans(
    q: Tensor, k: Tensor, v: Tensor, cuts: Pair, longest: tuple[int, int], causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """out and lse of span i of the queries over span i of the keys."""
    if q.device.type == "cuda":
        found = torch.ops.aten._flash_attention_forward(q, k, v, *cuts, *longest, 0.0, causal, False, scale=scale)
        return found[0], found[1]
    out, lse = torch.empty_like(q), q.new_empty((q.shape[1], q.shape[0]), dtype=_sums_in(q))
    for rows, keys in _each(cuts):
        scores = _scores(q[rows], k[keys], causal, scale)
        lse[:, rows] = scores.logsumexp(-1)
        probabilities = (scores - lse[:, rows, None]).exp()
        out[rows] = torch.einsum("hqk,khs->qhs", probabilities, _spread(v[keys], q)).to(q.dtype)
    return out, lse


def _spans_back(
    given: tuple[Tensor, ...], cuts: Pair, longest: tuple[int, int], causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv from (dout, q, k, v, out, lse)."""
    dout, q, k, v, out, lse = given
    if q.device.type == "cuda":
        unused = torch.empty(0, device=q.device)
        state = torch.zeros(2, dtype=torch.uint64, device=q.device)  # of dropout, which there is none of
        with _SameBitsEachTime():
            dq, dk, dv = torch.ops.aten._flash_attention_backward(
                dout, q, k, v, out, lse, *cuts, *longest, 0.0, causal, state, unused, scale=scale
            )
        return dq, dk, dv
    dq, dk, dv = (torch.zeros_like(x, dtype=lse.dtype) for x in (q, k, v))
    groups = q.shape[1] // k.shape[1]
    for rows, keys in _each(cuts):
        wide_k, wide_v = _spread(k[keys], q), _spread(v[keys], q)
        g, o = dout[rows].to(lse.dtype), out[rows].to(lse.dtype)
        probabilities = (_scores(q[rows], k[keys], causal, scale) - lse[:, rows, None]).exp()
        of_keys = torch.einsum("hqk,qhs->khs", probabilities, g)
        dscores = probabilities * (torch.einsum("qhs,khs->hqk", g, wide_v) - (g * o).sum(-1).t()[..., None]) * scale
        dq[rows] = torch.einsum("hqk,khs->qhs", dscores, wide_k)
        dk[keys] = _gathered(torch.einsum("hqk,qhs->khs", dscores, q[rows].to(lse.dtype)), groups)
        dv[keys] = _gathered(of_keys, groups)
    return dq.to(q.dtype), dk.to(q.dtype), dv.to(q.dtype)


class _SameBitsEachTime:
    """Flash's backward adds up in any order unless torch is told otherwise, and a resumed run shall not differ."""

    def __enter__(self) -> None:
        self.before = torch.are_deterministic_algorithms_enabled()
        self.warned = torch.is_deterministic_algorithms_warn_only_enabled()
        torch.use_deterministic_algorithms(True)

    def __exit__(self, *_: object) -> None:
        torch.use_deterministic_algorithms(self.before, warn_only=self.warned)


def _each(cuts: Pair) -> list[tuple[slice, slice]]:
    a, b = (cut.tolist() for cut in cuts)
    return [(slice(a[i], a[i + 1]), slice(b[i], b[i + 1])) for i in range(len(a) - 1)]


def _spread(x: Tensor, q: Tensor) -> Tensor:
    """One head of keys for each head of queries."""
    return x.to(_sums_in(q)).repeat_interleave(q.shape[1] // x.shape[1], dim=1)


def _gathered(x: Tensor, groups: int) -> Tensor:
    return x.view(len(x), -1, groups, x.shape[-1]).sum(2)


def _scores(q: Tensor, k: Tensor, causal: bool, scale: float) -> Tensor:
    """(heads, queries, keys)"""
    scores = torch.einsum("qhs,khs->hqk", q.to(_sums_in(q)), _spread(k, q)) * scale
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[1:], dtype=torch.bool, device=q.device).triu(1), -torch.inf)
    return scores
