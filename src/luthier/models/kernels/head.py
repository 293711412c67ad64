"""Log-probabilities of chosen tokens from hidden states: the vocabulary projection and its softmax as one operation.

    logits = hidden W^T        out_q = logits[row_q, target_q] - log sum exp logits[row_q]
    right_q = target_q is the first largest of logits[row_q]

Shapes: hidden (H, width), W (vocabulary, width), row and target (Q,), rows ascending and no pair twice, out (Q,) in
float32, right (Q,) bool. Logits are held once, in the type of `hidden`; their gradient takes their place. A W that is
held quantized is made in panels of `PANEL` rows, again in the backward pass, and is never whole.
"""

from collections.abc import Iterator
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from luthier.models.kernels import native

PANEL = 4096


class Panels(Protocol):
    """A matrix that is made in parts."""

    out_features: int

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The whole matrix."""
        ...

    def lent(self, dtype: torch.dtype, start: int, end: int) -> Tensor:
        """Rows start:end, until the next ones are asked for."""
        ...


Weight: TypeAlias = Tensor | Panels


Moved: TypeAlias = tuple[Tensor, Tensor]
"""ids (n,) and what is added to these rows of W, (n, width)."""


def add_moved(logits: Tensor, hidden: Tensor, moved: Moved | None) -> Tensor:
    """Logits (..., vocabulary) with those of some tokens changed in place; `hidden` (..., width) made them."""
    if moved is not None:
        ids, rows = moved
        logits.index_add_(-1, ids, (hidden @ rows.to(hidden.dtype).t()).to(logits.dtype))
    return logits


def head_scores_plain(
    hidden: Tensor, weight: Weight, row_Q: Tensor, target_Q: Tensor, moved: Moved | None = None
) -> tuple[Tensor, Tensor]:
    """The reference."""
    logits = _plain_logits(hidden, weight, moved)
    return _plain_logprobs(logits, row_Q, target_Q), logits.detach().argmax(-1)[row_Q] == target_Q


def _plain_logits(hidden: Tensor, weight: Weight, moved: Moved | None) -> Tensor:
    dense = weight.to(hidden.dtype) if isinstance(weight, Tensor) else weight.dense(hidden.dtype)
    return add_moved(hidden @ dense.t(), hidden, moved)


def _plain_logprobs(logits: Tensor, row_Q: Tensor, target_Q: Tensor) -> Tensor:
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))[row_Q]
    return logits.log_softmax(-1).gather(1, target_Q[:, None])[:, 0]


def head_logprobs(
    hidden: Tensor, weight: Weight, row_Q: Tensor, target_Q: Tensor, moved: Moved | None = None
) -> Tensor:
    """out alone: only the kernel has right for nothing, the plain path passes over all logits once more for it."""
    if not native.serves(hidden):
        return _plain_logprobs(_plain_logits(hidden, weight, moved), row_Q, target_Q)
    return head_scores(hidden, weight, row_Q, target_Q, moved)[0]


def head_scores(
    hidden: Tensor, weight: Weight, row_Q: Tensor, target_Q: Tensor, moved: Moved | None = None
) -> tuple[Tensor, Tensor]:
    """out and right; `moved` is added to some rows of W, which itself has none that train then."""
    if not native.serves(hidden):
        return head_scores_plain(hidden, weight, row_Q, target_Q, moved)
    ids, rows = (None, None) if moved is None else (moved[0], moved[1].to(hidden.dtype))
    scores: tuple[Tensor, Tensor] = _HeadScores.apply(hidden, weight, row_Q, target_Q, ids, rows)
    return scores


class _HeadScores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Weight,
        row_Q: Tensor,
        target_Q: Tensor,
        ids: Tensor | None,
        moved: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        cast = weight.to(hidden.dtype) if isinstance(weight, Tensor) else None
        logits_HV = _logits(hidden, weight if cast is None else cast, ids, moved)
        lse_H, first_H = torch.empty(len(hidden)), torch.empty(len(hidden), dtype=torch.int64)
        native.call("log_sum_exp", logits_HV.dtype, logits_HV, lse_H, first_H, *logits_HV.shape)
        right_Q = first_H[row_Q] == target_Q
        ctx.mark_non_differentiable(right_Q)
        chosen_Q = logits_HV[row_Q, target_Q].float() - lse_H[row_Q]
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(hidden, cast, row_Q, target_Q, lse_H, ids, moved)
            ctx.logits, ctx.panels = logits_HV, weight if cast is None else None
            ctx.weight_type = weight.dtype if isinstance(weight, Tensor) else None
        return chosen_Q, right_Q

    @staticmethod
    def backward(ctx: Any, dout: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden, cast, row_Q, target_Q, lse_H, ids, moved = ctx.saved_tensors
        weight: Weight = ctx.panels if cast is None else cast
        logits_HV, ctx.logits = ctx.logits, None
        if logits_HV is None:  # a second backward pass over a kept graph
            logits_HV = _logits(hidden, weight, ids, moved)
        starts = torch.zeros(len(hidden) + 1, dtype=torch.int64)
        starts[1:] = torch.bincount(row_Q, minlength=len(hidden)).cumsum(0)
        g = dout.float().contiguous()
        native.call("log_softmax_back", logits_HV.dtype, logits_HV, lse_H, starts, target_Q, g, *logits_HV.shape)
        dhidden = _back(logits_HV, weight) if ctx.needs_input_grad[0] else None
        dweight = (logits_HV.t() @ hidden).to(ctx.weight_type) if ctx.needs_input_grad[1] else None
        dmoved = None
        if ids is not None:
            dlogits_Hn = logits_HV[:, ids]
            dhidden = None if dhidden is None else dhidden + dlogits_Hn @ moved
            dmoved = dlogits_Hn.t() @ hidden if ctx.needs_input_grad[5] else None
        return dhidden, dweight, None, None, None, dmoved


def _panels(weight: Panels) -> Iterator[tuple[int, int]]:
    return ((start, min(start + PANEL, weight.out_features)) for start in range(0, weight.out_features, PANEL))


def _logits(hidden: Tensor, weight: Weight, ids: Tensor | None, moved: Tensor | None) -> Tensor:
    """hidden W^T, and what was moved of some rows"""
    logits_HV = _frozen_logits(hidden, weight)
    return logits_HV if ids is None or moved is None else add_moved(logits_HV, hidden, (ids, moved))


def _frozen_logits(hidden: Tensor, weight: Weight) -> Tensor:
    if isinstance(weight, Tensor):
        return hidden @ weight.t()
    logits_HV = hidden.new_empty(len(hidden), weight.out_features)
    for start, end in _panels(weight):
        logits_HV[:, start:end] = hidden @ weight.lent(hidden.dtype, start, end).t()
    return logits_HV


def _back(dlogits_HV: Tensor, weight: Weight) -> Tensor:
    """dlogits W; panels are added up in float32, rounded once more at the end."""
    if isinstance(weight, Tensor):
        return dlogits_HV @ weight
    total: Tensor | float = 0.0
    for start, end in _panels(weight):
        part = dlogits_HV[:, start:end] @ weight.lent(dlogits_HV.dtype, start, end)
        total = part.float() + total
    assert isinstance(total, Tensor)
    return total.to(dlogits_HV.dtype)
