"""REINFORCE leave one out (Ahmadian et al. 2024, arXiv:2402.14740): each reply is compared with the mean of the others.

    r = reward - beta * sum over tokens of (log policy - log reference)     A_i = r_i - mean of r_j over j != i

The baseline knows nothing of the reply itself, so the gradient is unbiased; the divergence is a part of the reward, and
a reply is one action: its ratio is that of its whole probability, clipped as PPO clips. R rows.
"""

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from luthier.examples import Row
from luthier.models.forest import Batch
from luthier.objectives._online import (
    Clipped,
    GroupObjective,
    Ratios,
    groups_of,
    less_mean,
    reply_metrics,
    rewards_less_kl,
    row_means,
    trained_rows,
    with_advantage,
)
from luthier.objectives.base import Loss, Mean, Memory, Models, Reply


class RLOO(GroupObjective):
    """Learn from graded replies, each beside the mean of the others to its prompt."""

    beta: float = Field(0.05, ge=0)
    """What a nat of divergence from the reference model costs of the reward."""
    epsilon: float = Field(0.2, ge=0, le=1)
    """How far a reply's ratio may move from 1."""
    normalize_advantages: bool = False
    """Bring the advantages of a rollout to mean 0 and deviation 1."""

    @property
    def least_group(self) -> int:
        """Two, to compare them."""
        return 2

    def credit(self, replies: Sequence[Reply], memory: Memory) -> list[Row]:
        """The advantage of each reply over the mean of the others in its group."""
        rewards, first, advantages = rewards_less_kl(replies, self.beta), 0, []
        for group in groups_of(replies):
            own = rewards[first : first + len(group)]
            advantages.append(less_mean(own) * len(own) / (len(own) - 1))  # reward less the mean of the others
            first += len(group)
        found = np.concatenate(advantages)
        if self.normalize_advantages:
            found = (found - found.mean()) / (found.std(ddof=1) + 1e-4)
        return with_advantage(replies, found.tolist())

    def weight(self, batch: Batch) -> float:
        """Number of replies."""
        return trained_rows(batch)

    def loss(self, models: Models, batch: Batch) -> Loss:
        """The summed clipped loss of the replies."""
        ratios = Ratios.of(models.policy.token_logprobs(batch), batch, self.sampler_cap)
        ratio_R = batch.sum_rows(ratios.log_ratio_K).exp()
        clipped = Clipped.of(ratio_R, batch.values_R["advantage"].to(ratio_R.dtype), self.epsilon, self.epsilon)
        losses_R = clipped.losses * row_means(batch, ratios.correction_K)
        told = {**reply_metrics(batch), **ratios.metrics(), "clip_fraction": Mean.of(clipped.is_clipped)}
        return Loss(losses_R.sum(), told)
