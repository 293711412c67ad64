"""Group relative policy optimization (Shao et al. 2024, arXiv:2402.03300) and its relatives.

Several replies to one prompt are graded; each is worth what it is better than its group, so that no value model is
needed. A clipped ratio keeps several steps on the same replies honest.

    A = (reward - mean of the group) / (deviation + 1e-4)        ratio = policy / policy that sampled
    loss of a token = -min(ratio A, clip(ratio, 1 - epsilon, 1 + epsilon_high) A) + beta KL(policy || reference)

How tokens are added up is what the kinds of `loss` differ in; the engine divides by the weight of the whole step:

    dapo, bnpo   every token of the step counts the same (arXiv:2503.14476); the two differ only where a program divides
                 within each part of a step, which Luthier never does
    grpo         every reply counts the same, however long
    dr_grpo      the sum over tokens, divided by the longest reply allowed: long wrong replies gain nothing
                 (arXiv:2503.20783, which also wants scale_rewards = "none")
    gspo         one ratio a reply, the geometric mean over its tokens (arXiv:2507.18071)
    cispo        the ratio is clipped but keeps every token's gradient (arXiv:2506.13585)

At the first step on fresh replies every ratio is 1 and the loss of a scaled group is 0; its gradient is not. K tokens,
R rows. Left out: sapo, luspo and vespo; the entropy bonus.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import Field, model_validator
from torch import Tensor

from luthier.errors import RecipeError
from luthier.examples import Row
from luthier.models.forest import Batch
from luthier.objectives._online import (
    Clipped,
    Estimator,
    GroupObjective,
    Ratios,
    advantage_of_tokens,
    groups_of,
    kl_penalty,
    kl_values,
    less_mean,
    reply_metrics,
    row_means,
    trained_rows,
    trained_tokens,
    with_advantage,
)
from luthier.objectives.base import Loss, Mean, Memory, Models, Reply, no_grad_logprobs

SMALLEST = 1e-4  # beside a deviation, as in TRL
# arXiv:2507.18071 clips a geometric mean far closer; arXiv:2506.13585 only bounds a weight from above
CLIPS: Mapping[str, tuple[float, float]] = {"gspo": (3e-4, 4e-4), "cispo": (1.0, 4.0)}
CLIP = (0.2, 0.28)  # arXiv:2503.14476: room upwards lets unlikely tokens grow


class GRPO(GroupObjective):
    """Learn from graded replies, each compared with the others to its prompt."""

    loss_type: Literal["dapo", "grpo", "dr_grpo", "bnpo", "cispo", "gspo"] = "dapo"
    """How the tokens of a step are added up, and what is clipped."""
    epsilon: float | None = Field(None, ge=0, le=1)
    """How far a ratio may fall below 1; absent: 0.2, for gspo 0.0003; cispo has no such bound."""
    epsilon_high: float | None = Field(None, ge=0)
    """How far it may rise above 1; absent: 0.28, for gspo 0.0004, for cispo 4."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """Divide advantages by the deviation of rewards in their group, in the whole rollout, or not."""
    kl_estimator: Estimator = "k3"
    """How the divergence is told; its gradient is the same for all."""

    @model_validator(mode="after")
    def _together(self) -> "GRPO":
        """Refuse what would be ignored.

        Raises:
            RecipeError: a bound that cispo has not, or the estimator of a divergence that there is not.
        """
        if self.epsilon is not None and self.loss_type == "cispo":
            raise RecipeError("objective.epsilon means nothing for cispo, which bounds a ratio only from above")
        if self.kl_estimator != "k3" and not self.beta:
            raise RecipeError("objective.kl_estimator means nothing without a divergence; set objective.beta above 0")
        return self

    @property
    def least_group(self) -> int:
        """Two, to compare them."""
        return 2

    def credit(self, replies: Sequence[Reply], memory: Memory) -> list[Row]:
        """The advantage of each reply within its group; 0 where all rewards of a group are equal."""
        rewards = [np.array([reply.reward for reply in group]) for group in groups_of(replies)]
        centred = [less_mean(group) for group in rewards]
        if self.scale_rewards == "group":
            centred = [c / (g.std(ddof=1) + SMALLEST) for c, g in zip(centred, rewards, strict=True)]
        advantages = np.concatenate(centred)
        if self.scale_rewards == "batch":
            advantages = advantages / (np.concatenate(rewards).std(ddof=1) + SMALLEST)
        return with_advantage(replies, advantages.tolist())

    def weight(self, batch: Batch) -> float:
        """Tokens, replies, or the longest replies allowed."""
        if self.loss_type in ("grpo", "gspo"):
            return trained_rows(batch)
        return float(batch.values_R["limit"].sum()) if self.loss_type == "dr_grpo" else trained_tokens(batch)

    def loss(self, models: Models, batch: Batch) -> Loss:
        """The summed loss of the tokens or replies."""
        ratios = Ratios.of(models.policy.token_logprobs(batch), batch, self.sampler_cap)
        advantage_K = advantage_of_tokens(batch).to(ratios.logprobs_K.dtype)
        losses_K, clipped_K = self._surrogate(batch, ratios, advantage_K)
        losses_K = losses_K * ratios.correction_K
        metrics = {**reply_metrics(batch), **ratios.metrics(), "clip_fraction": Mean.of(clipped_K)}
        if self.beta:
            reference_K = batch.values_K.get("reference_logprob")
            if reference_K is None:
                reference_K = no_grad_logprobs(models.reference, batch)
            reference_K = reference_K.to(losses_K.dtype)
            kl_K = kl_penalty(ratios.logprobs_K, reference_K, ratios.log_ratio_K.exp(), self.kl_estimator)
            losses_K = losses_K + self.beta * kl_K
            metrics["kl"] = Mean.of(kl_values(ratios.logprobs_K, reference_K, self.kl_estimator))
        losses_K = losses_K * batch.loss_mask_K
        per_reply = self.loss_type in ("grpo", "gspo")
        return Loss((row_means(batch, losses_K) if per_reply else losses_K).sum(), metrics)

    def _surrogate(self, batch: Batch, ratios: Ratios, advantage_K: Tensor) -> tuple[Tensor, Tensor]:
        """(K,) losses without KL, and whether each is clipped."""
        low, high = CLIPS.get(self.loss_type, CLIP)
        low = low if self.epsilon is None else self.epsilon
        high = high if self.epsilon_high is None else self.epsilon_high
        log_ratio_K = ratios.log_ratio_K
        if self.loss_type == "cispo":
            ratio_K = log_ratio_K.exp().detach()
            return -ratio_K.clamp(max=1 + high) * advantage_K * ratios.logprobs_K, ratio_K > 1 + high
        if self.loss_type == "gspo":
            log_ratio_K = row_means(batch, log_ratio_K)[batch.row_K]
        clipped = Clipped.of(log_ratio_K.exp(), advantage_K, low, high)
        return clipped.losses, clipped.is_clipped
