"""The divergence from the base: closed form against autograd, chunks, and what it does to a real short training."""

from functools import partial
from pathlib import Path

import pytest
import torch
from tests.engine_runs import make_run
from torch import Tensor

from luthier.engine.loop import train
from luthier.engine.run import Run
from luthier.models.forest import build_batch
from luthier.models.kernels.divergence import compared, compared_plain


def case(positions: int = 7, vocabulary: int = 31, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Logits of both models and predictions, two of which share a position."""
    generator = torch.Generator().manual_seed(5)
    logits, reference = (
        (3 * torch.randn(positions, vocabulary, generator=generator, dtype=torch.float64)).to(dtype) for _ in range(2)
    )
    hidden = torch.tensor([0, 1, 2, 2, 4, 6])
    return logits, reference, hidden, torch.tensor([3, 0, 30, 4, 4, 9])


def test_values_and_gradients_are_those_of_autograd() -> None:
    logits, reference, hidden, target = case()
    weights = torch.linspace(-1, 2, 6, dtype=torch.float64), torch.linspace(0.5, 3, 7, dtype=torch.float64)
    found = []
    for function in (compared_plain, compared, partial(compared, cells=2 * 31), partial(compared, cells=1)):
        leaf = logits.clone().requires_grad_()
        out, kl = function(leaf, reference, hidden, target)
        ((weights[0] * out).sum() + (weights[1] * kl).sum()).backward()
        assert leaf.grad is not None
        found.append((out.detach(), kl.detach(), leaf.grad))
    assert (found[0][1] > 0).all()
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert (one - two).abs().max() < 1e-12


def test_the_gradient_of_the_divergence_alone_is_p_minus_q() -> None:
    logits, reference, hidden, target = case()
    leaf = logits.clone().requires_grad_()
    compared(leaf, reference, hidden, target)[1].sum().backward()
    assert leaf.grad is not None
    assert (leaf.grad - (logits.softmax(-1) - reference.softmax(-1))).abs().max() < 1e-14


def test_logits_in_bfloat16_are_read_wide_and_left_as_they_were() -> None:
    logits, reference, hidden, target = case(dtype=torch.bfloat16)
    before = logits.clone(), reference.clone()
    leaf = logits.clone().requires_grad_()
    out, kl = compared(leaf, reference, hidden, target)
    (out.sum() + kl.sum()).backward()
    expected = compared_plain(logits.double(), reference.double(), hidden, target)
    assert out.dtype == kl.dtype == torch.float32 and leaf.grad is not None and leaf.grad.dtype == torch.bfloat16
    assert (out - expected[0]).abs().max() < 1e-5 and (kl - expected[1]).abs().max() < 1e-5
    assert torch.equal(leaf.detach(), before[0]) and torch.equal(reference, before[1])


def test_equal_logits_diverge_by_exactly_nothing() -> None:
    logits, _, hidden, target = case(dtype=torch.float32)
    leaf = logits.clone().requires_grad_()
    kl = compared(leaf, logits, hidden, target)[1]
    kl.sum().backward()
    assert torch.equal(kl, torch.zeros(7)) and leaf.grad is not None and leaf.grad.abs().max() == 0


def step_0(run: Run) -> dict[str, float]:
    batch = build_batch([row for unit in run.source.step(1) for row in unit])
    return {name: mean.value() for name, mean in run.objective.loss(run.models, batch).metrics.items()}


def test_an_untrained_model_pays_nothing_and_has_the_loss_of_sft(tmp_path: Path) -> None:
    plain = step_0(make_run(tmp_path))
    found = step_0(make_run(tmp_path, objective={"type": "sft_kl", "kl_weight": 5.0}))
    assert found["kl"] == 0
    assert found["loss"] == found["cross_entropy"] == pytest.approx(plain["loss"], rel=1e-6)


def test_a_training_that_pays_for_it_stays_nearer_to_the_base(tmp_path: Path) -> None:
    measured = []
    for number, weight in enumerate((1e-9, 1.0, 10.0)):
        run = make_run(
            tmp_path / str(number),
            objective={"type": "sft_kl", "kl_weight": weight},
            adapter={"type": "full"},
            training={"steps": 25, "rows_per_step": 10, "patience": False},
        )
        list(train(run))
        run.model.eval()
        measured.append(step_0(run))
    kls, losses = [m["kl"] for m in measured], [m["cross_entropy"] for m in measured]
    assert kls[0] > 1.2 * kls[1] > 1.2 * 1.2 * kls[2] > 0
    assert losses[0] < losses[1] < losses[2] < step_0(make_run(tmp_path))["loss"], "and still learns"
