"""Log-probabilities of chosen tokens, and how far a model has gone from another one, as one operation over logits.

    out_q = log p_h[target_q]        kl_h = KL(q_h || p_h) = sum over v of q_hv (log q_hv - log p_hv)

p and q are the softmax of the model's and of the reference's logits at position h, over the whole vocabulary. Both
have gradients that need no graph: d out / d logits = onehot - p, d kl / d logits = p - q. Shapes: logits (H, V) of
both, h = hidden_q, hidden and target (Q,), hidden ascending; out (Q,) and kl (H,) in float32 at least. Logits and their
gradient are held in the type that they came in; what is wider lives for a few positions at a time.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

CELLS = 4_000_000
"""Numbers that are held in float32 at once: 16 MB."""


def compared_plain(logits_HV: Tensor, reference_HV: Tensor, hidden_Q: Tensor, target_Q: Tensor) -> tuple[Tensor, ...]:
    """The reference: (Q,) and (H,), through autograd."""
    logp_HV, logq_HV = (wide(logits).log_softmax(-1) for logits in (logits_HV, reference_HV))
    return logp_HV[hidden_Q, target_Q], (logq_HV.exp() * (logq_HV - logp_HV)).sum(-1)


def compared(
    logits_HV: Tensor, reference_HV: Tensor, hidden_Q: Tensor, target_Q: Tensor, cells: int = CELLS
) -> tuple[Tensor, Tensor]:
    """out (Q,) and kl (H,); nothing flows back into the reference, and `cells` change nothing but memory."""
    out: tuple[Tensor, Tensor] = _Compared.apply(logits_HV, reference_HV, hidden_Q, target_Q, cells)
    return out


def wide(logits: Tensor) -> Tensor:
    """In float32 at least."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def chunks(positions: int, vocabulary: int, cells: int) -> Iterator[slice]:
    """The positions, as many at a time as have at most so many numbers, and one at least."""
    size = max(1, cells // max(vocabulary, 1))
    return (slice(start, min(start + size, positions)) for start in range(0, positions, size))


class _Compared(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits_HV: Tensor, reference_HV: Tensor, hidden_Q: Tensor, target_Q: Tensor, cells: int
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(logits_HV.dtype, torch.float32)
        lse_H, reference_lse_H, kl_H = (logits_HV.new_empty(len(logits_HV), dtype=dtype) for _ in range(3))
        for part in chunks(len(logits_HV), logits_HV.shape[1], cells):
            logits, reference = wide(logits_HV[part]), wide(reference_HV[part])
            lse_H[part], reference_lse_H[part] = logits.logsumexp(-1), reference.logsumexp(-1)
            logp, logq = logits - lse_H[part, None], reference - reference_lse_H[part, None]
            # equal logits give 0 and not almost 0: the difference is taken before anything is summed
            kl_H[part] = (logq.exp() * (logq - logp)).sum(-1)
        ctx.cells = cells
        ctx.save_for_backward(logits_HV, reference_HV, hidden_Q, target_Q, lse_H, reference_lse_H)
        return wide(logits_HV[hidden_Q, target_Q]) - lse_H[hidden_Q], kl_H

    @staticmethod
    def backward(ctx: Any, dout_Q: Tensor, dkl_H: Tensor) -> tuple[Tensor | None, ...]:
        logits_HV, reference_HV, hidden_Q, target_Q, lse_H, reference_lse_H = ctx.saved_tensors
        chosen_H = torch.zeros_like(lse_H).index_add(0, hidden_Q, dout_Q)
        gradient_HV = torch.empty_like(logits_HV)
        for part in chunks(len(logits_HV), logits_HV.shape[1], ctx.cells):
            p = (wide(logits_HV[part]) - lse_H[part, None]).exp_()
            q = (wide(reference_HV[part]) - reference_lse_H[part, None]).exp_()
            gradient = p.mul_((dkl_H - chosen_H)[part, None]).sub_(q.mul_(dkl_H[part, None]))
            first, last = torch.searchsorted(hidden_Q, torch.tensor([part.start, part.stop], device=hidden_Q.device))
            here = slice(int(first), int(last))
            gradient.index_put_((hidden_Q[here] - part.start, target_Q[here]), dout_Q[here], accumulate=True)
            gradient_HV[part] = gradient
        return gradient_HV, None, None, None, None
