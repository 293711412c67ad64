"""How far a student's probabilities are from a teacher's, over the same few buckets.

    forward_kl       KL(t || s)                                      the student covers all that the teacher may say
    reverse_kl       KL(s || t)                                      it says only what the teacher may say
    js               beta KL(t || m) + (1 - beta) KL(s || m), m = beta t + (1 - beta) s
                     (generalized Jensen-Shannon, Agarwal et al. 2024, arXiv:2306.13649, equation 1)
    skew_kl          KL(t || a t + (1 - a) s)                        (Ko et al. 2024, arXiv:2402.03898, equation 3)
    skew_reverse_kl  KL(s || (1 - a) t + a s)                        (there, below it)

t and s are the probabilities of teacher and student; KL(p || q) = sum of p (log p - log q). Everything goes through
log p - log (share p + (1 - share) q) = -log1p((1 - share) expm1(log q - log p)), which is 0, not almost 0, where p = q.
"""

from typing import Literal, TypeAlias

import torch
from torch import Tensor

Divergence: TypeAlias = Literal["forward_kl", "reverse_kl", "js", "skew_kl", "skew_reverse_kl"]
FARTHEST = 80.0
"""Nats between two log-probabilities beyond which exp overflows float32; what weighs such a term is below exp(-80)."""


def divergence(kind: Divergence, teacher_KB: Tensor, student_KB: Tensor, beta: float, skew: float) -> Tensor:
    """(K,) from log-probabilities (K, B); nothing flows back into the teacher.

    Args:
        kind: which one.
        teacher_KB: log-probabilities; -inf where a bucket is empty.
        student_KB: the same.
        beta: weight of the teacher in `js`, between 0 and 1.
        skew: `a` above, from 0 to below 1.
    """
    teacher_KB = teacher_KB.to(student_KB.dtype)
    # a bucket that holds nothing adds nothing, and has no gradient
    empty_KB = (teacher_KB == -torch.inf) | (student_KB == -torch.inf)
    t, s = (values.masked_fill(empty_KB, 0.0) for values in (teacher_KB, student_KB))
    if kind == "forward_kl":
        terms = t.exp() * (t - s)
    elif kind == "reverse_kl":
        terms = s.exp() * (s - t)
    elif kind == "js":
        terms = beta * t.exp() * _above(t, s, beta) + (1 - beta) * s.exp() * _above(s, t, 1 - beta)
    elif kind == "skew_kl":
        terms = t.exp() * _above(t, s, skew)
    else:
        terms = s.exp() * _above(s, t, skew)
    return terms.sum(-1)


def _above(p: Tensor, q: Tensor, share: float) -> Tensor:
    """log p - log (share p + (1 - share) q) of log-probabilities."""
    return -torch.log1p((1 - share) * torch.expm1((q - p).clamp(max=FARTHEST)))
