"""Log-probabilities of chosen tokens from hidden states: the vocabulary projection and its softmax as one operation.

    logits = hidden W^T        out_q = logits[row_q, target_q] - log sum exp logits[row_q]

Shapes: hidden (H, width), W (vocabulary, width), row and target (Q,), rows ascending and no pair twice, out (Q,) in
float32. Logits are held once, in the type of `hidden`; their gradient takes their place.
"""

from typing import Any

import torch
from torch import Tensor

from luthier.models.kernels import native


def head_logprobs_plain(hidden: Tensor, weight: Tensor, row_Q: Tensor, target_Q: Tensor) -> Tensor:
    """The reference."""
    logits = hidden @ weight.to(hidden.dtype).t()
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))[row_Q]
    return logits.log_softmax(-1).gather(1, target_Q[:, None])[:, 0]


def head_logprobs(hidden: Tensor, weight: Tensor, row_Q: Tensor, target_Q: Tensor) -> Tensor:
    """out"""
    if not native.serves(hidden):
        return head_logprobs_plain(hidden, weight, row_Q, target_Q)
    out: Tensor = _HeadLogprobs.apply(hidden, weight, row_Q, target_Q)
    return out


class _HeadLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, row_Q: Tensor, target_Q: Tensor) -> Tensor:
        cast = weight.to(hidden.dtype)
        logits_HV = hidden @ cast.t()
        lse_H = torch.empty(len(hidden))
        native.call("log_sum_exp", logits_HV.dtype, logits_HV, lse_H, *logits_HV.shape)
        chosen_Q = logits_HV[row_Q, target_Q].float() - lse_H[row_Q]
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(hidden, cast, row_Q, target_Q, lse_H)
            ctx.logits, ctx.weight_type = logits_HV, weight.dtype
        return chosen_Q

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, row_Q, target_Q, lse_H = ctx.saved_tensors
        logits_HV, ctx.logits = ctx.logits, None
        if logits_HV is None:  # a second backward pass over a kept graph
            logits_HV = hidden @ weight.t()
        starts = torch.zeros(len(hidden) + 1, dtype=torch.int64)
        starts[1:] = torch.bincount(row_Q, minlength=len(hidden)).cumsum(0)
        g = dout.float().contiguous()
        native.call("log_softmax_back", logits_HV.dtype, logits_HV, lse_H, starts, target_Q, g, *logits_HV.shape)
        dhidden = logits_HV @ weight if ctx.needs_input_grad[0] else None
        dweight = (logits_HV.t() @ hidden).to(ctx.weight_type) if ctx.needs_input_grad[1] else None
        return dhidden, dweight, None, None
