"""REINFORCE++ (Hu 2025, arXiv:2501.03262): PPO's clipped ratio and per-token KL, without a value model.

    r_t = [t is the last token] reward - beta (log policy - log reference)_t        A_t = r_t + r_{t+1} + ...

and advantages are brought to mean 0 and deviation 1 over all tokens of the rollout, which is the only baseline; with
`baseline` the mean reward of the prompt's replies goes off first (REINFORCE++-baseline). K tokens.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from pydantic import Field

from luthier.examples import Row
from luthier.models.forest import Batch
from luthier.objectives._online import (
    Clipped,
    GroupObjective,
    Ratios,
    advantage_of_tokens,
    groups_of,
    kl_of_tokens,
    reply_metrics,
    trained_tokens,
)
from luthier.objectives.base import Loss, Mean, Memory, Models, Reply


class ReinforcePlusPlus(GroupObjective):
    """Learn from graded replies, each token by the reward that is still to come."""

    beta: float = Field(0.01, ge=0)
    """What a nat of divergence from the reference model costs of a token's reward."""
    epsilon: float = Field(0.2, ge=0, le=1)
    """How far a token's ratio may move from 1."""
    baseline: bool = False
    """Take the mean reward of a prompt's replies off each of them."""

    @property
    def least_group(self) -> int:
        """Two with a `baseline`: a reply alone is its own mean."""
        return 2 if self.baseline else 1

    def credit(self, replies: Sequence[Reply], memory: Memory) -> list[Row]:
        """The advantage of each token."""
        means = [
            float(np.mean([reply.reward for reply in group])) if self.baseline else 0.0
            for group in groups_of(replies)
            for _ in group
        ]
        to_come = [self._to_come(reply, mean) for reply, mean in zip(replies, means, strict=True)]
        written = [np.array(reply.row.loss_mask) != 0 for reply in replies]
        every = np.concatenate([values[mask] for values, mask in zip(to_come, written, strict=True)])
        mean, deviation = (float(every.mean()), float(every.std())) if len(every) else (0.0, 0.0)
        rows = []
        for reply, values, mask in zip(replies, to_come, written, strict=True):
            scaled = np.where(mask, (values - mean) / (deviation + 1e-8), 0.0)
            token_values = {**reply.row.token_values, "advantage": tuple(scaled.tolist())}
            rows.append(replace(reply.row, token_values=token_values))
        return rows

    def _to_come(self, reply: Reply, mean: float) -> np.ndarray:
        """For each token of the row: the reward, less the mean and the cost of divergence from here to the end."""
        costs = self.beta * np.array(kl_of_tokens(reply)) if self.beta else np.zeros(len(reply.row.ids))
        found: np.ndarray = reply.reward - mean - costs[::-1].cumsum()[::-1]
        return found

    def weight(self, batch: Batch) -> float:
        """Number of tokens."""
        return trained_tokens(batch)

    def loss(self, models: Models, batch: Batch) -> Loss:
        """The summed clipped loss of the tokens."""
        ratios = Ratios.of(models.policy.token_logprobs(batch), batch, self.sampler_cap)
        advantage_K = advantage_of_tokens(batch).to(ratios.logprobs_K.dtype)
        clipped = Clipped.of(ratios.log_ratio_K.exp(), advantage_K, self.epsilon, self.epsilon)
        losses_K = clipped.losses * ratios.correction_K * batch.loss_mask_K
        told = {**reply_metrics(batch), **ratios.metrics(), "clip_fraction": Mean.of(clipped.is_clipped)}
        return Loss(losses_K.sum(), told)
