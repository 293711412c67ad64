"""Our losses of sampled replies against those of `trl`, on the same log-probabilities: value and gradient."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from luthier.examples import Row
from luthier.models.forest import Batch, build_batch
from luthier.objectives.base import Models, Reply
from luthier.objectives.grpo import GRPO
from luthier.objectives.rloo import RLOO

pytestmark = pytest.mark.numerics

ROWS, TOKENS, LIMIT, CAP = 6, 7, 9, 2.0


@dataclass
class Given:
    """A policy whose log-probabilities are a table: (rows, tokens), of which a row's first ones count."""

    table: Tensor
    mask: Tensor

    def token_logprobs(self, batch: Batch) -> Tensor:
        return self.table[self.mask.bool()]


@dataclass
class Case:
    """Sampled replies of different lengths, and what is known of their tokens."""

    now: Tensor
    old: Tensor
    reference: Tensor
    sampled: Tensor
    mask: Tensor
    advantages: Tensor

    def batch(self) -> Batch:
        rows = []
        for i in range(ROWS):
            length = int(self.mask[i].sum())

            def padded(values: Tensor, n: int = length, row: int = i) -> tuple[float, ...]:
                return (0.0, *values[row, :n].tolist())

            rows.append(
                Row(
                    tuple(range(i, i + length + 1)),
                    (0.0, *(1.0,) * length),
                    str(i),
                    {"advantage": float(self.advantages[i]), "limit": float(LIMIT)},
                    {
                        "old_logprob": padded(self.old),
                        "reference_logprob": padded(self.reference),
                        "sampled_logprob": padded(self.sampled),
                    },
                )
            )
        return build_batch(rows)


def made() -> Case:
    torch.manual_seed(5)
    old = -3 * torch.rand(ROWS, TOKENS)
    mask = (torch.arange(TOKENS)[None] < torch.tensor([7, 3, 1, 5, 7, 2])[:, None]).float()
    now = (old + 0.4 * torch.randn(ROWS, TOKENS)).requires_grad_()
    sampled = old + 0.5 * torch.randn(ROWS, TOKENS)
    return Case(now, old, old + 0.3 * torch.randn(ROWS, TOKENS), sampled, mask, torch.randn(ROWS))


def trainer(case: Case, **settings: Any) -> Any:
    """What TRL's loss reads of its trainer."""
    args = {"delta": None, "use_bias_correction_kl": False, "steps_per_generation": 1, **settings}
    same = SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x)
    return SimpleNamespace(
        args=SimpleNamespace(**args),
        accelerator=same,
        model=SimpleNamespace(training=True),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _get_per_token_logps_and_entropies=lambda *_, **__: (case.now, torch.zeros_like(case.now), None),
        max_completion_length=LIMIT,
        vllm_importance_sampling_correction=True,
        **{"importance_sampling_level": "token", "use_vllm": False, "beta": 0.0, **settings},
    )


def inputs(case: Case) -> Mapping[str, Any]:
    nothing = torch.zeros(ROWS, 1, dtype=torch.long)
    return {
        "prompt_ids": nothing,
        "prompt_mask": nothing,
        "completion_ids": torch.zeros(ROWS, TOKENS, dtype=torch.long),
        "completion_mask": case.mask,
        "advantages": case.advantages,
        "old_per_token_logps": case.old,
        "ref_per_token_logps": case.reference,
        "num_items_in_batch": case.mask.sum(),
        "importance_sampling_ratio": (case.old - case.sampled).exp().clamp(max=CAP),
        "old_logps": (case.old * case.mask).sum(1),
    }


def ours(objective: GRPO | RLOO, case: Case) -> Tensor:
    batch = case.batch()
    given: Any = Given(case.now, case.mask)
    return objective.loss(Models(given), batch).total / objective.weight(batch)


def require_equal(ours: Tensor, theirs: Tensor, case: Case, gradients: bool = True) -> None:
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), abs=1e-6)
    if gradients:
        (mine,) = torch.autograd.grad(ours, case.now)
        (other,) = torch.autograd.grad(theirs, case.now)
        assert other.abs().max() > 1e-3
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-5)


# TRL's CISPO takes the bound of the ratio itself
LOSSES: Mapping[str, tuple[Mapping[str, Any], float]] = {
    "grpo": ({}, 0.28),
    "dr_grpo": ({}, 0.28),
    "dapo": ({}, 0.28),
    "bnpo": ({}, 0.28),
    "cispo": ({"epsilon_high": 1.5}, 0.5),
    "gspo": ({"loss_type": "grpo", "importance_sampling_level": "sequence"}, 0.28),
}


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_every_kind_of_grpo(name: str, corrected: bool) -> None:
    from trl import GRPOTrainer

    case, (special, high) = made(), LOSSES[name]
    settings = {"loss_type": name, "epsilon_low": 0.2, "epsilon_high": 0.28, "use_vllm": corrected, **special}
    theirs = GRPOTrainer._compute_loss(trainer(case, **settings), None, inputs(case))
    values: dict[str, Any] = {
        "loss_type": name,
        "epsilon": None if name == "cispo" else 0.2,
        "epsilon_high": high,
        "sampler_cap": CAP if corrected else 0.0,
    }
    require_equal(ours(GRPO(**values), case), theirs, case)


@pytest.mark.parametrize("name", ["grpo", "dapo", "dr_grpo"])
def test_the_divergence_has_the_value_of_trl_s_and_the_gradient_of_its_corrected_one(name: str) -> None:
    """TRL's own gradient of k3 leads along another divergence, unless `use_bias_correction_kl` weighs it with the
    ratio."""
    from trl import GRPOTrainer

    case = made()
    settings = {"loss_type": name, "epsilon_low": 0.2, "epsilon_high": 0.28, "beta": 0.3}
    values: dict[str, Any] = {"loss_type": name, "epsilon": 0.2, "epsilon_high": 0.28, "beta": 0.3, "sampler_cap": 0.0}
    theirs = GRPOTrainer._compute_loss(trainer(case, **settings, use_bias_correction_kl=True), None, inputs(case))
    require_equal(ours(GRPO(**values), case), theirs, case)


def test_rloo() -> None:
    from trl import RLOOTrainer

    case = made()
    theirs = RLOOTrainer._compute_loss(trainer(case, epsilon_low=0.2, epsilon_high=0.2), None, inputs(case))
    require_equal(ours(RLOO(epsilon=0.2, sampler_cap=0.0), case), theirs, case)


def test_advantages_of_a_group_are_those_of_trl() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.5, 0.25], [2.0, 2.0, 2.0, 2.0]])
    replies = [
        Reply(group, Row((1,), (0.0,)), float(reward), False) for group, row in enumerate(rewards) for reward in row
    ]
    rows = GRPO().credit(replies, {})
    # grpo_trainer.py: rewards less the mean of their group, by torch.std + 1e-4
    expected = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
    found = torch.tensor([row.values["advantage"] for row in rows])
    torch.testing.assert_close(found, expected.flatten(), atol=1e-6, rtol=0)
