"""Objectives of sampled replies: what they are at step 0, where they lead, and what equal rewards are worth."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.engine_runs import VOCABULARY, make_run
from torch import Tensor

from luthier import registry
from luthier.data.source import Unit
from luthier.engine.loop import train
from luthier.engine.run import Run
from luthier.examples import Row
from luthier.models.forest import build_batch
from luthier.objectives._online import Estimator, kl_penalty
from luthier.objectives.base import Objective, OnlineObjective, Reply
from luthier.objectives.grpo import GRPO
from luthier.objectives.reinforce_plus_plus import ReinforcePlusPlus
from luthier.objectives.rloo import RLOO
from luthier.recipe import OBJECTIVES

ONLINE = [
    name
    for name in registry.names(OBJECTIVES)
    if issubclass(registry.load_class(OBJECTIVES, name, Objective), OnlineObjective)  # type: ignore[type-abstract]
]
ESTIMATORS: tuple[Estimator, ...] = ("k1", "k2", "k3")


def replies(rewards: list[list[float]]) -> list[Reply]:
    """Replies of two tokens each."""
    tokens = {name: (0.0, -1.0, -2.0) for name in ("old_logprob", "reference_logprob", "sampled_logprob")}
    row = Row((1, 2, 3), (0.0, 1.0, 1.0), "r", {}, tokens)
    return [Reply(i, row, reward, False) for i, group in enumerate(rewards) for reward in group]


def advantages(objective: OnlineObjective, rewards: list[list[float]]) -> list[float]:
    rows, _ = objective.credit(replies(rewards), {})
    return [row.values["advantage"] for row in rows]


# the divergence


def categorical() -> tuple[Tensor, Tensor, Tensor]:
    """Logits, and what policy and reference make of every token."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(7, generator=generator, dtype=torch.float64).requires_grad_()
    reference = torch.randn(7, generator=generator, dtype=torch.float64).log_softmax(0)
    return logits, logits.log_softmax(0), reference


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_each_estimator_leads_along_the_divergence_itself(estimator: Estimator) -> None:
    logits, policy, reference = categorical()
    exact = (policy.exp() * (policy - reference)).sum()
    (wanted,) = torch.autograd.grad(exact, logits, retain_graph=True)
    penalty = kl_penalty(policy, reference, torch.ones(7, dtype=torch.float64), estimator)
    (found,) = torch.autograd.grad((policy.exp().detach() * penalty).sum(), logits)
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=0)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_it_does_so_too_for_tokens_that_an_older_policy_sampled(estimator: Estimator) -> None:
    logits, policy, reference = categorical()
    old = torch.randn(7, generator=torch.Generator().manual_seed(2), dtype=torch.float64).log_softmax(0)
    (wanted,) = torch.autograd.grad((policy.exp() * (policy - reference)).sum(), logits, retain_graph=True)
    penalty = kl_penalty(policy, reference, (policy - old).exp(), estimator)
    (found,) = torch.autograd.grad((old.exp() * penalty).sum(), logits)
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=0)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_the_mean_of_k1_and_k3_is_the_divergence(estimator: Estimator) -> None:
    _, policy, reference = categorical()
    exact = (policy.exp() * (policy - reference)).sum()
    mean = (policy.exp() * kl_penalty(policy, reference, torch.ones_like(policy), estimator)).sum()
    assert float(mean.detach()) == pytest.approx(float(exact.detach()), abs=1e-12)


# credit


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_equal_rewards_are_worth_nothing(scale: Any) -> None:
    assert advantages(GRPO(scale_rewards=scale), [[0.5] * 4, [1.0] * 4]) == [0.0] * 8
    assert advantages(RLOO(beta=0.0), [[0.5] * 4, [1.0] * 4]) == pytest.approx([0.0] * 8)


def test_what_a_reply_is_worth_beside_its_group() -> None:
    rewards = [[1.0, 0.0], [4.0, 2.0]]
    assert advantages(GRPO(scale_rewards="none"), rewards) == [0.5, -0.5, 1.0, -1.0]
    assert advantages(GRPO(), rewards) == pytest.approx([2**-0.5, -(2**-0.5)] * 2, abs=2e-4)
    deviation = np.std([1.0, 0.0, 4.0, 2.0], ddof=1)
    assert advantages(GRPO(scale_rewards="batch"), rewards) == pytest.approx(
        np.array([0.5, -0.5, 1.0, -1.0]) / (deviation + 1e-4)
    )
    assert advantages(RLOO(beta=0.0), [[3.0, 0.0, 1.5]]) == pytest.approx([2.25, -2.25, 0.0])


def test_a_divergence_costs_of_the_reward() -> None:
    far, near = replies([[1.0, 1.0]])
    tokens = {**far.row.token_values, "reference_logprob": (0.0, -2.0, -4.0)}  # 1 + 2 nats more likely than before
    far = Reply(0, Row(far.row.ids, far.row.loss_mask, "far", {}, tokens), 1.0, False)
    rows, _ = RLOO(beta=0.1).credit([far, near], {})
    assert [row.values["advantage"] for row in rows] == pytest.approx([-0.3, 0.3])


def test_each_token_of_reinforce_plus_plus_is_worth_what_is_still_to_come() -> None:
    row = replies([[1.0]])[0].row
    tokens = {**row.token_values, "reference_logprob": (0.0, -2.0, -4.0)}
    both = [Reply(0, Row(row.ids, row.loss_mask, "far", {}, tokens), 1.0, False), Reply(1, row, 0.0, False)]
    rows, _ = ReinforcePlusPlus(beta=0.1).credit(both, {})
    raw = np.array([1 - 0.3, 1 - 0.2, 0.0, 0.0])
    scaled = (raw - raw.mean()) / raw.std()
    found = [value for row in rows for value in row.token_values["advantage"]]
    assert found == pytest.approx([0.0, *scaled[:2], 0.0, *scaled[2:]], abs=1e-6)
    rows, _ = ReinforcePlusPlus(beta=0.0, baseline=True).credit(replies([[1.0, 0.0], [5.0, 4.0]]), {})
    found = [row.token_values["advantage"][1] for row in rows]
    assert found == pytest.approx([1.0, -1.0, 1.0, -1.0])


# where they lead: every token is a reply, weighted by how likely it is, so that nothing is left to chance


class Bandit:
    """One prompt, one token as the reply, and a reward for each token."""

    def __init__(self, run: Run, rewards: np.ndarray) -> None:
        self.run, self.rewards = run, rewards
        self.carried: Mapping[str, float] = {}

    def logprobs(self) -> np.ndarray:
        with torch.no_grad():
            found = self.run.models.policy.token_logprobs(build_batch(self.rows(np.ones(VOCABULARY))))
        return found.double().numpy()

    def rows(self, weights: np.ndarray, credited: list[Row] | None = None) -> list[Row]:
        prompt = tuple(range(17))
        given = credited or [Row((*prompt, token), (0.0,) * 18, str(token)) for token in range(VOCABULARY)]
        return [
            Row(row.ids, (*(0.0,) * 17, float(weight)), row.id, row.values, row.token_values)
            for row, weight in zip(given, weights, strict=True)
        ]

    def step(self, number: int) -> list[Unit]:
        """All tokens, each as much as the policy would sample it."""
        objective: Any = self.run.objective
        fresh, likely = self.rows(np.ones(VOCABULARY)), np.exp(self.logprobs())
        with torch.no_grad():
            measured = objective.measure(self.run.models, build_batch(fresh))
        told = []
        for i, row in enumerate(fresh):
            tokens = {name: (*(0.0,) * 17, float(values_K[i])) for name, values_K in measured.items()}
            told.append(Reply(0, Row(row.ids, row.loss_mask, row.id, {}, tokens), float(self.rewards[i]), False))
        rows, self.carried = objective.credit(told, self.carried)
        return [tuple(self.rows(likely, rows))]

    def planned(self, number: int) -> list[Unit]:
        """The same."""
        return self.step(number)

    def validating(self, units: Sequence[Unit], number: int) -> Sequence[Unit]:
        """Those that were given."""
        return units


def bandit(tmp_path: Path, rewards: np.ndarray, steps: int, **objective: Any) -> Bandit:
    run = make_run(
        tmp_path,
        objective=objective,
        adapter={"type": "full"},
        optimizer={"learning_rate": 1e-2, "weight_decay": 0.0},
        schedule={"type": "linear"},
        training={"steps": steps, "rows_per_step": 1, "patience": False, "validate_every": 1000, "save_every": 1000},
    )
    made = Bandit(run, rewards)
    run.source = made
    return made


@pytest.mark.parametrize("loss_type", ["dapo", "cispo"])
def test_grpo_with_a_divergence_finds_the_closed_form(loss_type: str, tmp_path: Path) -> None:
    """pi = pi_ref exp(r / beta) / Z (Rafailov et al. 2023, equation 4)."""
    rewards, beta = np.random.default_rng(0).random(VOCABULARY), 0.5
    made = bandit(tmp_path, rewards, 60, type="grpo", beta=beta, scale_rewards="none", loss_type=loss_type)
    start = made.logprobs()
    for _ in train(made.run):
        pass
    wanted = np.exp(start + rewards / beta)
    wanted /= wanted.sum()
    assert np.abs(np.exp(start) - wanted).max() > 0.01
    assert np.abs(np.exp(made.logprobs()) - wanted).max() < 1e-3
    assert np.abs(made.logprobs() - np.log(wanted)).max() < 1e-1


@pytest.mark.parametrize("name", ONLINE)
def test_the_one_rewarded_token_becomes_certain(name: str, tmp_path: Path) -> None:
    made = bandit(tmp_path, np.eye(VOCABULARY)[5], 40, type=name, beta=0.0)
    for _ in train(made.run):
        pass
    assert np.exp(made.logprobs())[5] > 0.99
