"""Learning from a teacher: buckets against autograd, divergences at and away from step 0, and the whole vocabulary."""

from collections.abc import Callable
from functools import partial
from typing import get_args

import pytest
import torch
from torch import Tensor

from luthier.models.kernels.buckets import NOTHING, bucket_logprobs, bucket_logprobs_plain, likeliest
from luthier.objectives._divergences import Divergence, divergence

KINDS = get_args(Divergence)
VOCABULARY = 31


def case(positions: int = 7, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of a student and a teacher, and places, two of which are the same position."""
    generator = torch.Generator().manual_seed(5)
    student, teacher = (
        (2 * torch.randn(positions, VOCABULARY, generator=generator, dtype=torch.float64)).to(dtype) for _ in range(2)
    )
    return student, teacher, torch.tensor([0, 1, 2, 2, 4, 6])


def measure(kind: Divergence, logits: Tensor, teacher: Tensor, hidden: Tensor, count: int) -> Tensor:
    ids, told = likeliest(teacher, hidden, count)
    return divergence(kind, told, bucket_logprobs(logits, hidden, ids), 0.3, 0.2)


def whole(kind: Divergence, logits: Tensor, teacher: Tensor, hidden: Tensor) -> Tensor:
    """As the papers write it, over the whole vocabulary, from probabilities."""
    t, s = teacher[hidden].softmax(-1), logits[hidden].softmax(-1)

    def kl(p: Tensor, q: Tensor) -> Tensor:
        terms: Tensor = p * (p.log() - q.log())
        return terms.sum(-1)

    mixed: Tensor = 0.3 * t + 0.7 * s
    named: dict[str, Tensor] = {
        "forward_kl": kl(t, s),
        "reverse_kl": kl(s, t),
        "js": 0.3 * kl(t, mixed) + 0.7 * kl(s, mixed),
        "skew_kl": kl(t, 0.2 * t + 0.8 * s),
        "skew_reverse_kl": kl(s, 0.8 * t + 0.2 * s),
    }
    return named[kind]


def test_buckets_and_their_gradient_are_those_of_autograd() -> None:
    student, teacher, hidden = case()
    ids, _ = likeliest(teacher, hidden, 4)
    ids[1, 2:] = NOTHING  # a place with two tokens, and one with none at all
    ids[4] = NOTHING
    weights = torch.linspace(-1, 2, 30, dtype=torch.float64).reshape(6, 5)
    found = []
    in_chunks: list[Callable[..., Tensor]] = [partial(bucket_logprobs, cells=cells) for cells in (1000, 62, 1)]
    for function in (bucket_logprobs_plain, *in_chunks):
        leaf = student.clone().requires_grad_()
        out = function(leaf, hidden, ids)
        there = out > -torch.inf
        (weights * out.masked_fill(~there, 0.0)).sum().backward()
        assert leaf.grad is not None
        found.append((there, out.detach().masked_fill(~there, 0.0), leaf.grad))
    assert found[0][0].sum() == 6 * 5 - 2 - 4
    assert found[0][1][4, 4] == 0  # all of the mass is that of the others
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert (one.double() - two.double()).abs().max() < 1e-12


def test_buckets_are_probabilities_of_one_whole() -> None:
    student, teacher, hidden = case()
    for count in (1, 7, VOCABULARY - 1, VOCABULARY, 1000):
        ids, told = likeliest(teacher, hidden, count)
        assert ids.shape == (6, min(count, VOCABULARY))
        for buckets in (told, bucket_logprobs(student, hidden, ids)):
            assert (buckets.exp().sum(-1) - 1).abs().max() < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_over_the_whole_vocabulary_it_is_the_papers(kind: Divergence) -> None:
    student, teacher, hidden = case()
    expected = whole(kind, student, teacher, hidden)
    assert (measure(kind, student, teacher, hidden, VOCABULARY) - expected).abs().max() < 1e-12
    assert expected.min() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_more_tokens_come_nearer_from_below(kind: Divergence) -> None:
    student, teacher, hidden = case()
    expected = whole(kind, student, teacher, hidden)
    gaps = torch.stack([expected - measure(kind, student, teacher, hidden, k) for k in (1, 2, 4, 8, 16, 24, 30)])
    assert (gaps > -1e-12).all()
    assert (gaps[1:] - gaps[:-1] < 1e-12).all()
    assert gaps[0].min() > 1e-3 and gaps[-1].max() < 1e-12  # with one token left over, nothing is merged


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("count", [1, 5, VOCABULARY])
@pytest.mark.parametrize("kind", KINDS)
def test_a_student_that_is_its_teacher_has_nothing_to_learn(kind: Divergence, count: int, dtype: torch.dtype) -> None:
    _, teacher, hidden = case(dtype=dtype)
    leaf = teacher.clone().requires_grad_()
    found = measure(kind, leaf, teacher, hidden, count)
    found.sum().backward()
    assert torch.equal(found, torch.zeros_like(found)) and leaf.grad is not None
    # p - q of equal numbers; what is left is the rounding of their sum
    assert leaf.grad.abs().max() < {torch.float64: 1e-15, torch.float32: 1e-6, torch.bfloat16: 1e-6}[dtype]


@pytest.mark.parametrize("count", [1, 5, VOCABULARY])
def test_the_gradient_of_forward_kl_is_the_closed_form(count: int) -> None:
    """d / d logit_v = p_v - q_v for a token of its own; of the others, q's mass is shared as p shares it."""
    student, teacher, hidden = case()
    hidden = hidden[[0, 1, 2, 4, 5]]  # a position once, so that rows of the gradient are places
    leaf = student.clone().requires_grad_()
    measure("forward_kl", leaf, teacher, hidden, count).sum().backward()
    p, q = student[hidden].softmax(-1), teacher[hidden].softmax(-1)
    own = torch.zeros_like(p, dtype=torch.bool).scatter(1, q.topk(count).indices, True)
    p_left, q_left = (values.masked_fill(own, 0.0).sum(-1, keepdim=True) for values in (p, q))
    expected = p - torch.where(own, q, p * q_left / p_left.clamp(min=1e-300))
    assert leaf.grad is not None and (leaf.grad[hidden] - expected).abs().max() < 1e-14
    assert leaf.grad[[3, 5]].abs().max() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_models_that_are_worlds_apart_have_finite_losses_and_gradients(kind: Divergence) -> None:
    student, teacher, hidden = case(dtype=torch.float32)
    leaf = (100 * student).requires_grad_()
    found = measure(kind, leaf, 100 * teacher, hidden, 5)
    found.sum().backward()
    assert torch.isfinite(found).all() and leaf.grad is not None and torch.isfinite(leaf.grad).all()
    assert (found > 0).any()
