"""Log-probabilities of a few tokens at each place, and of all others together, as one operation over logits.

    out_ki = log p_h[ids_ki]  for i < B        out_kB = log (1 - sum over them)        h = hidden_k

p is the softmax of the logits at position h over the whole vocabulary. The last number is summed over the other tokens
themselves: a difference from 1 would leave nothing but rounding where the few have nearly all of the mass. Its
gradient needs no graph: with G = sum over i of dout_i,

    d / d logit_v = -G p_v + dout_i  (v is ids_i)        -G p_v + dout_B p_v / (mass of the others)  (v is none)

Shapes: logits (H, V), hidden (K,), ids (K, B) with -1 where there is no further token; out (K, B + 1) in float32 at
least, -inf where there is no token, and no other one. Logits and their gradient are held in the type that they came in;
what is wider lives for a few places at a time.
"""

from typing import Any

import torch
from torch import Tensor

from luthier.models.kernels.divergence import CELLS, chunks, wide

NOTHING = -1
"""In place of a token."""
INFINITE = float("inf")


def bucket_logprobs_plain(logits_HV: Tensor, hidden_K: Tensor, ids_KB: Tensor) -> Tensor:
    """The reference: (K, B + 1), through autograd."""
    logp_KV = wide(logits_HV[hidden_K]).log_softmax(-1)
    few_KB = logp_KV.gather(1, ids_KB.clamp(min=0)).masked_fill(ids_KB == NOTHING, -INFINITE)
    rest_K = _without(logp_KV, ids_KB).logsumexp(-1)
    return torch.cat([few_KB, rest_K[:, None]], 1)


def bucket_logprobs(logits_HV: Tensor, hidden_K: Tensor, ids_KB: Tensor, cells: int = CELLS) -> Tensor:
    """(K, B + 1); `cells` change nothing but memory. A number that is -inf must be given no gradient."""
    out: Tensor = _Buckets.apply(logits_HV, hidden_K, ids_KB, cells)
    return out


@torch.no_grad()
def likeliest(
    logits_HV: Tensor, hidden_K: Tensor, count: int, among_V: Tensor | None = None, cells: int = CELLS
) -> tuple[Tensor, Tensor]:
    """The ids (K, B) of the `count` likeliest tokens at each place, and their buckets (K, B + 1).

    `among_V` says which tokens may be named, None: all; others have their share in the last bucket. B is `count`, or
    how many may be named if those are fewer.
    """
    places, vocabulary = len(hidden_K), logits_HV.shape[1]
    most = vocabulary if among_V is None else int(among_V.sum())
    ids_KB = hidden_K.new_empty((places, min(count, most)))
    for part in chunks(places, vocabulary, cells):
        scores = logits_HV[hidden_K[part]]
        named = scores if among_V is None else scores.masked_fill(~among_V, -INFINITE)
        ids_KB[part] = named.topk(ids_KB.shape[1]).indices
    return ids_KB, bucket_logprobs(logits_HV, hidden_K, ids_KB, cells)


def _chosen(ids_KB: Tensor) -> tuple[Tensor, Tensor]:
    """Place and token of everything that is one."""
    places, columns = (ids_KB != NOTHING).nonzero(as_tuple=True)
    return places, ids_KB[places, columns]


def _without(scores_KV: Tensor, ids_KB: Tensor) -> Tensor:
    """The scores, with -inf for the tokens that have a number of their own."""
    return scores_KV.index_put(_chosen(ids_KB), scores_KV.new_tensor(-INFINITE))


class _Buckets(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_HV: Tensor, hidden_K: Tensor, ids_KB: Tensor, cells: int) -> Tensor:
        places, few = ids_KB.shape
        out = logits_HV.new_empty((places, few + 1), dtype=torch.promote_types(logits_HV.dtype, torch.float32))
        lse_K, rest_K = out.new_empty(places), out.new_empty(places)
        for part in chunks(places, logits_HV.shape[1], cells):
            scores, ids = wide(logits_HV[hidden_K[part]]), ids_KB[part]
            lse_K[part] = scores.logsumexp(-1)
            few_kB = scores.gather(1, ids.clamp(min=0)) - lse_K[part, None]
            out[part, :few] = few_kB.masked_fill(ids == NOTHING, -INFINITE)
            rest_K[part] = _without(scores, ids).logsumexp(-1)
        out[:, few] = rest_K - lse_K
        ctx.cells = cells
        ctx.save_for_backward(logits_HV, hidden_K, ids_KB, lse_K, rest_K)
        return out

    @staticmethod
    def backward(ctx: Any, dout_KB: Tensor) -> tuple[Tensor | None, ...]:
        logits_HV, hidden_K, ids_KB, lse_K, rest_K = ctx.saved_tensors
        gradient_HV = torch.zeros_like(logits_HV)
        few = ids_KB.shape[1]
        total_K, others_K = dout_KB.sum(-1), dout_KB[:, few]
        # where no other token is left, nothing is divided among them
        rest_K = torch.where(rest_K == -INFINITE, INFINITE, rest_K)
        for part in chunks(len(ids_KB), logits_HV.shape[1], ctx.cells):
            scores, ids = wide(logits_HV[hidden_K[part]]), ids_KB[part]
            gradient = (scores - lse_K[part, None]).exp_().mul_(-total_K[part, None])
            gradient += (_without(scores, ids) - rest_K[part, None]).exp_().mul_(others_K[part, None])
            gradient.index_put_(_chosen(ids), dout_KB[part, :few][ids != NOTHING], accumulate=True)
            gradient_HV.index_add_(0, hidden_K[part], gradient.to(gradient_HV.dtype))
        return gradient_HV, None, None, None
