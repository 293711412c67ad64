"""Proximal policy optimization of replies (Schulman et al. 2017, arXiv:1707.06347), with a value head.

As in Ziegler et al. 2019 (arXiv:1909.08593), and Huang et al. 2023, "The N implementation details of RLHF with PPO":

    r_t = [t is the last token] (reward - missing end) - c (log policy - log reference)_t
    A_t = sum over i of (gamma lam)^i (r_{t+i} + gamma V_{t+i+1} - V_{t+i})        return_t = A_t + V_t
    loss = max(-ratio A, -clip(ratio) A) + value_weight / 2 max((V - return)^2, (clip(V) - return)^2)

V_t is the head's value of what comes before token t, and 0 behind the last one. The head begins at 0. Advantages are
whitened over the rollout. c is fixed, or follows the divergence to a target: it grows by the share that the divergence
of a reply is above it, at most a fifth for each `kl_horizon` replies, and is kept in checkpoints. At the first step on
fresh replies ratios are 1, and at the first step of all the divergence is 0.

K tokens that the model wrote; T of them in one reply.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from luthier.errors import RecipeError
from luthier.examples import Row
from luthier.models.forest import Batch
from luthier.models.heads import HeadShape
from luthier.objectives._online import (
    Clipped,
    GroupObjective,
    Ratios,
    advantage_of_tokens,
    kl_of_tokens,
    reply_metrics,
    trained_tokens,
)
from luthier.objectives.base import Loss, Mean, Memory, Models, Reply, no_grad_logprobs

COEFFICIENT, NEXT = "kl_coefficient", "next_kl_coefficient"
"""The weight of the divergence in a rollout, and in the one after it."""


def estimated_advantages(rewards_T: np.ndarray, values_T: np.ndarray, gamma: float, lam: float) -> np.ndarray:
    """(T,) generalized advantage estimates (Schulman et al. 2016, arXiv:1506.02438, equation 16)."""
    found_T, following, value_after = np.zeros_like(rewards_T), 0.0, 0.0
    for t in range(len(rewards_T) - 1, -1, -1):
        following = rewards_T[t] + gamma * value_after - values_T[t] + gamma * lam * following
        found_T[t], value_after = following, values_T[t]
    return found_T


def whitened(values: np.ndarray, shift_mean: bool = True) -> np.ndarray:
    """Deviation 1, and mean 0 unless it stays what it is."""
    mean = values.mean()
    scaled: np.ndarray = (values - mean) / np.sqrt(values.var() + 1e-8)
    return scaled if shift_mean else scaled + mean


def next_coefficient(now: float, kl: float, target: float, horizon: float, replies: int) -> float:
    """The weight of the divergence after a rollout in which it was `kl` a reply (Ziegler et al. 2019, section 2.2)."""
    error = min(max(kl / target - 1, -0.2), 0.2)
    return now * (1 + error * replies / horizon)


class PPO(GroupObjective):
    """Learn from graded replies, each token by what a value model did not expect."""

    beta: float = Field(0.05, ge=0)
    """What a nat of divergence from the reference model costs of a token's reward; the first value if it adapts."""
    kl_target: float | None = Field(None, gt=0)
    """Nats a reply that the divergence is led to; absent: its weight stays `beta`."""
    kl_horizon: float = Field(10_000, gt=0)
    """Replies over which the weight may change by a fifth."""
    epsilon: float = Field(0.2, ge=0, le=1)
    """How far a token's ratio may move from 1."""
    value_clip: float = Field(0.2, gt=0)
    """How far a value may move from what it was when the reply was sampled."""
    value_weight: float = Field(0.1, ge=0)
    """Weight of the value model's loss."""
    gamma: float = Field(1.0, gt=0, le=1)
    """How much a reward counts one token earlier."""
    lam: float = Field(0.95, ge=0, le=1)
    """1 trusts what came of a reply, 0 the value model."""
    whiten_rewards: bool = False
    """Bring the rewards of all tokens of a rollout to deviation 1."""
    whiten_advantages: bool = True
    """Bring the advantages of all tokens of a rollout to mean 0 and deviation 1."""
    missing_end_penalty: float = Field(0.0, ge=0)
    """What a reply loses for running into the limit of tokens."""

    @model_validator(mode="after")
    def _together(self) -> "PPO":
        """Refuse what would be ignored.

        Raises:
            RecipeError: a weight of the divergence that could not follow its target, or a horizon without one.
        """
        if self.kl_target is not None and not self.beta:
            raise RecipeError(
                "objective.kl_target: a weight of 0 stays 0, whatever it follows; set objective.beta above 0"
            )
        if self.kl_target is None and self.kl_horizon != type(self).model_fields["kl_horizon"].default:
            raise RecipeError("objective.kl_horizon means nothing without objective.kl_target")
        return self

    def head(self) -> HeadShape:
        """Values, one for each place; they are of no use once the training ends."""
        return HeadShape("value", after_training=False)

    def measure(self, models: Models, batch: Batch) -> Mapping[str, Tensor]:
        """Log-probabilities of policy and reference, and the value of what comes before each token."""
        with torch.no_grad():
            logprobs_K, values = models.policy.logprobs_and_values(batch)
        found = {"old_logprob": logprobs_K, "value": values.tokens_KO[:, 0]}
        if self.uses_reference:
            found["reference_logprob"] = no_grad_logprobs(models.reference, batch)
        return found

    def credit(self, replies: Sequence[Reply], memory: Memory) -> list[Row]:
        """Advantage and return of each token, and the weight of the divergence now and in the next rollout."""
        coefficient = memory.get(COEFFICIENT, self.beta)
        written = [np.flatnonzero(reply.row.loss_mask) for reply in replies]
        costs = [self._divergence(reply)[places] for reply, places in zip(replies, written, strict=True)]
        rewards = [self._rewards(reply, kl, coefficient) for reply, kl in zip(replies, costs, strict=True)]
        if self.whiten_rewards:
            rewards = _over_all(rewards, shift_mean=False)
        values = [np.array(r.row.token_values["value"])[p] for r, p in zip(replies, written, strict=True)]
        pairs = zip(rewards, values, strict=True)
        advantages = [estimated_advantages(rewards_T, values_T, self.gamma, self.lam) for rewards_T, values_T in pairs]
        returns = [a + v for a, v in zip(advantages, values, strict=True)]
        if self.whiten_advantages:
            advantages = _over_all(advantages)
        rows = [
            reply.row.telling({"advantage": advantage.tolist(), "return": wanted.tolist()})
            for reply, advantage, wanted in zip(replies, advantages, returns, strict=True)
        ]
        if self.kl_target is None:
            return rows
        kl = float(np.mean([cost.sum() for cost in costs]))
        after = next_coefficient(coefficient, kl, self.kl_target, self.kl_horizon, len(replies))
        return [replace(row, values={**row.values, COEFFICIENT: coefficient, NEXT: after}) for row in rows]

    def remember(self, memory: Memory, metrics: Mapping[str, Mean]) -> Memory:
        """The weight of the divergence for the rollout after this one; each of its steps tells the same."""
        return {COEFFICIENT: metrics[NEXT].value()} if NEXT in metrics else memory

    def _divergence(self, reply: Reply) -> np.ndarray:
        return np.array(kl_of_tokens(reply)) if self.uses_reference else np.zeros(len(reply.row.ids))

    def _rewards(self, reply: Reply, kl_T: np.ndarray, coefficient: float) -> np.ndarray:
        """(T,) of each token that was written; the reply's own at the last one."""
        rewards_T = -coefficient * kl_T
        if len(rewards_T):
            rewards_T[-1] += reply.reward - self.missing_end_penalty * reply.truncated
        return rewards_T

    def weight(self, batch: Batch) -> float:
        """Number of tokens."""
        return trained_tokens(batch)

    def loss(self, models: Models, batch: Batch) -> Loss:
        """The summed clipped losses of policy and values."""
        logprobs_K, head = models.policy.logprobs_and_values(batch)
        values_K = head.tokens_KO[:, 0].to(logprobs_K.dtype)
        ratios = Ratios.of(logprobs_K, batch, self.sampler_cap)
        advantage_K = advantage_of_tokens(batch).to(logprobs_K.dtype)
        clipped = Clipped.of(ratios.log_ratio_K.exp(), advantage_K, self.epsilon, self.epsilon)
        errors_K = self._value_errors(batch, values_K, advantage_K)
        losses_K = (clipped.losses * ratios.correction_K + self.value_weight * errors_K) * batch.loss_mask_K
        told = {**reply_metrics(batch), **ratios.metrics(), "clip_fraction": Mean.of(clipped.is_clipped)}
        told |= {"value": Mean.of(values_K), "value_error": Mean.of(errors_K)}
        told |= {name: Mean.of(batch.values_R[name]) for name in (COEFFICIENT, NEXT) if name in batch.values_R}
        return Loss(losses_K.sum(), told)

    def _value_errors(self, batch: Batch, values_K: Tensor, advantage_K: Tensor) -> Tensor:
        """(K,) half the squared distance of each value from its return, the larger one with or without clipping."""
        old_K = batch.values_K.get("value", values_K.detach()).to(values_K.dtype)
        wanted_K = batch.values_K.get("return", advantage_K + old_K).to(values_K.dtype)
        near_K = old_K + (values_K - old_K).clamp(-self.value_clip, self.value_clip)
        return torch.maximum((values_K - wanted_K).square(), (near_K - wanted_K).square()) / 2


def _over_all(parts: Sequence[np.ndarray], shift_mean: bool = True) -> list[np.ndarray]:
    """Each part, whitened together with all others."""
    ends = np.cumsum([len(part) for part in parts])[:-1]
    return np.split(whitened(np.concatenate(parts), shift_mean), ends)
