"""Objectives of sampled replies: what they are at step 0, where they lead, and what equal rewards are worth."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.engine_runs import VOCABULARY, make_run
from torch import Tensor

from luthier import registry
from luthier.data.source import NOTHING, Unit
from luthier.engine.loop import train
from luthier.engine.run import Run
from luthier.errors import RecipeError
from luthier.examples import Row
from luthier.models.forest import build_batch
from luthier.objectives._online import Estimator, kl_penalty
from luthier.objectives.base import Mean, Memory, Objective, OnlineObjective, Reply
from luthier.objectives.grpo import GRPO
from luthier.objectives.ppo import PPO, estimated_advantages, next_coefficient, whitened
from luthier.objectives.reinforce_plus_plus import ReinforcePlusPlus
from luthier.objectives.rloo import RLOO
from luthier.recipe import OBJECTIVES, build_part

ONLINE = [
    name
    for name in registry.names(OBJECTIVES)
    for kind in (registry.load_class(OBJECTIVES, name, Objective),)  # type: ignore[type-abstract]
    if issubclass(kind, OnlineObjective) and kind.needs_rewards
]
ESTIMATORS: tuple[Estimator, ...] = ("k1", "k2", "k3")


def replies(rewards: list[list[float]]) -> list[Reply]:
    """Replies of two tokens each."""
    tokens = {name: (0.0, -1.0, -2.0) for name in ("old_logprob", "reference_logprob", "sampled_logprob")}
    row = Row((1, 2, 3), (0.0, 1.0, 1.0), "r", {}, tokens)
    return [Reply(i, row, reward, False) for i, group in enumerate(rewards) for reward in group]


def advantages(objective: OnlineObjective, rewards: list[list[float]]) -> list[float]:
    rows = objective.credit(replies(rewards), {})
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
    for rewards in ([[0.5] * 4, [1.0] * 4], [[0.7] * 3, [0.1] * 3]):  # the mean of the second ones rounds
        assert set(advantages(GRPO(scale_rewards=scale), rewards)) == {0.0}
        assert set(advantages(RLOO(beta=0.0), rewards)) == {0.0}


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
    rows = RLOO(beta=0.1).credit([far, near], {})
    assert [row.values["advantage"] for row in rows] == pytest.approx([-0.3, 0.3])


def test_each_token_of_reinforce_plus_plus_is_worth_what_is_still_to_come() -> None:
    row = replies([[1.0]])[0].row
    tokens = {**row.token_values, "reference_logprob": (0.0, -2.0, -4.0)}
    both = [Reply(0, Row(row.ids, row.loss_mask, "far", {}, tokens), 1.0, False), Reply(1, row, 0.0, False)]
    rows = ReinforcePlusPlus(beta=0.1).credit(both, {})
    raw = np.array([1 - 0.3, 1 - 0.2, 0.0, 0.0])
    scaled = (raw - raw.mean()) / raw.std()
    found = [value for row in rows for value in row.token_values["advantage"]]
    assert found == pytest.approx([0.0, *scaled[:2], 0.0, *scaled[2:]], abs=1e-6)
    rows = ReinforcePlusPlus(beta=0.0, baseline=True).credit(replies([[1.0, 0.0], [5.0, 4.0]]), {})
    found = [row.token_values["advantage"][1] for row in rows]
    assert found == pytest.approx([1.0, -1.0, 1.0, -1.0])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"type": "grpo", "loss_type": "cispo", "epsilon": 0.2}, "only from above"),
        ({"type": "grpo", "kl_estimator": "k1"}, "set objective.beta above 0"),
        ({"type": "ppo", "beta": 0.0, "kl_target": 1.0}, "a weight of 0 stays 0"),
        ({"type": "ppo", "kl_horizon": 10.0}, "means nothing without objective.kl_target"),
    ],
)
def test_what_would_be_ignored_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        build_part(OBJECTIVES, settings, "grpo", ["objective"])


# PPO's details


def test_advantages_are_those_of_the_definition() -> None:
    rewards, values = np.array([0.0, 0.5, -1.0, 2.0]), np.array([0.3, -0.2, 0.8, 0.1])
    gamma, lam = 0.9, 0.7
    deltas = rewards + gamma * np.append(values[1:], 0.0) - values
    wanted = [sum((gamma * lam) ** i * deltas[t + i] for i in range(4 - t)) for t in range(4)]
    assert estimated_advantages(rewards, values, gamma, lam) == pytest.approx(np.array(wanted))
    # lam 1: what came of it, less what was expected; lam 0: one step
    assert estimated_advantages(rewards, values, 1.0, 1.0) == pytest.approx(rewards[::-1].cumsum()[::-1] - values)
    assert estimated_advantages(rewards, values, gamma, 0.0) == pytest.approx(deltas)


def test_whitening_without_a_shift_of_the_mean_is_that_of_the_blog() -> None:
    """Huang et al. 2023, "The N implementation details of RLHF with PPO": the variance is the biased one."""
    rewards = np.array([[1.2, 1.3, 1.4], [1.5, 1.6, 1.7], [1.8, 1.9, 2.0]])
    assert rewards.var() == pytest.approx(0.0666667, abs=1e-7)
    assert whitened(rewards, shift_mean=False)[0] == pytest.approx([0.0508, 0.4381, 0.8254], abs=5e-5)
    assert whitened(rewards).mean() == pytest.approx(0, abs=1e-12) and whitened(rewards).std() == pytest.approx(1)


@pytest.mark.parametrize(("kl", "change"), [(6.0, 0.0), (6.6, 0.1), (60.0, 0.2), (0.0, -0.2)])
def test_the_weight_of_the_divergence_follows_its_target(kl: float, change: float) -> None:
    assert next_coefficient(0.15, kl, 6.0, 10_000, 256) == pytest.approx(0.15 * (1 + change * 256 / 10_000))


def with_values(reward: float, truncated: bool = False) -> Reply:
    """A reply of two tokens, 0.5 and 1 nats more likely than to the reference."""
    (reply,) = replies([[reward]])
    tokens = {**reply.row.token_values, "reference_logprob": (0.0, -1.5, -3.0), "value": (0.0, 0.25, 0.75)}
    return Reply(0, Row(reply.row.ids, reply.row.loss_mask, "r", {}, tokens), reward, truncated)


def test_the_reward_comes_at_the_last_token_and_the_divergence_at_each() -> None:
    objective = PPO(beta=0.1, lam=1.0, whiten_advantages=False)
    (row,) = objective.credit([with_values(2.0)], {})
    assert row.token_values["return"] == pytest.approx((0.0, 2.0 - 0.1 - 0.05, 2.0 - 0.1))
    assert row.token_values["advantage"] == pytest.approx((0.0, 1.85 - 0.25, 1.9 - 0.75))
    assert "kl_coefficient" not in row.values


def test_a_reply_without_an_end_loses_what_the_settings_say() -> None:
    objective = PPO(beta=0.0, lam=1.0, whiten_advantages=False, missing_end_penalty=1.5)
    rows = objective.credit([with_values(2.0), with_values(2.0, truncated=True)], {})
    assert [row.token_values["return"][2] for row in rows] == pytest.approx([2.0, 0.5])


def test_the_next_rollout_is_told_the_weight_of_the_divergence() -> None:
    objective = PPO(beta=0.1, kl_target=1.0, kl_horizon=10)
    (row,) = objective.credit([with_values(2.0)], {})
    after = 0.1 * (1 + 0.2 / 10)
    assert row.values["kl_coefficient"] == 0.1 and row.values["next_kl_coefficient"] == pytest.approx(after)
    memory = objective.remember({}, {"next_kl_coefficient": Mean(3 * after, 3)})
    (row,) = objective.credit([with_values(2.0)], memory)
    assert row.values["kl_coefficient"] == pytest.approx(after) and row.values["next_kl_coefficient"] > after


def test_a_value_may_not_move_far_from_what_it_was(tmp_path: Path) -> None:
    """The larger error counts, so a value that moved further than `value_clip` towards its return earns nothing."""
    run = make_run(tmp_path, objective={"type": "ppo", "value_clip": 0.1, "value_weight": 1.0, "sampler_cap": 0.0})
    tokens = {"advantage": (0.0, 0.0), "value": (0.0, 0.0), "return": (0.0, 1.0)}

    def loss(value: float) -> tuple[float, float]:
        batch = build_batch([Row((3, 4), (0.0, 1.0), "r", {"reward": 0.0}, tokens)])
        assert run.injected.head is not None and run.injected.head.bias is not None
        bias = run.injected.head.bias
        with torch.no_grad():
            bias.fill_(value)
        (gradient,) = torch.autograd.grad(run.objective.loss(run.models, batch).total, bias)
        return float(run.objective.loss(run.models, batch).total.detach()), float(gradient)

    assert loss(0.05) == pytest.approx((0.95**2 / 2, -0.95), abs=1e-6)
    assert loss(0.5) == pytest.approx((0.9**2 / 2, 0.0), abs=1e-6)  # clipped at 0.1, whose error is the larger one
    assert loss(-0.5) == pytest.approx((1.5**2 / 2, -1.5), abs=1e-6)


# where they lead: every token is a reply, weighted by how likely it is, so that nothing is left to chance


class Bandit:
    """One prompt, one token as the reply, and a reward for each token."""

    def __init__(self, run: Run, rewards: np.ndarray) -> None:
        self.run, self.rewards = run, rewards

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

    def step(self, number: int, memory: Memory = NOTHING) -> list[Unit]:
        """All tokens, each as much as the policy would sample it."""
        objective: Any = self.run.objective
        fresh, likely = self.rows(np.ones(VOCABULARY)), np.exp(self.logprobs())
        with torch.no_grad():
            measured = objective.measure(self.run.models, build_batch(fresh))
        told = []
        for i, row in enumerate(fresh):
            tokens = {name: (*(0.0,) * 17, float(values_K[i])) for name, values_K in measured.items()}
            told.append(Reply(0, Row(row.ids, row.loss_mask, row.id, {}, tokens), float(self.rewards[i]), False))
        rows = objective.credit(told, memory)
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


def test_ppo_with_a_divergence_finds_the_closed_form(tmp_path: Path) -> None:
    rewards, beta = np.random.default_rng(0).random(VOCABULARY), 0.5
    made = bandit(tmp_path, rewards, 60, type="ppo", beta=beta, whiten_advantages=False)
    start = made.logprobs()
    for _ in train(made.run):
        pass
    wanted = np.exp(start + rewards / beta)
    assert np.abs(made.logprobs() - np.log(wanted / wanted.sum())).max() < 1e-1


@pytest.mark.parametrize("name", ONLINE)
def test_the_one_rewarded_token_becomes_certain(name: str, tmp_path: Path) -> None:
    made = bandit(tmp_path, np.eye(VOCABULARY)[5], 40, type=name, beta=0.0)
    for _ in train(made.run):
        pass
    assert np.exp(made.logprobs())[5] > 0.99
