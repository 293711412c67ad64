"""What objectives share that learn from replies the model wrote: ratios, clipping, KL, and how a group is compared.

Shapes: K tokens that the model wrote, over all rows; R rows, one a reply. `batch.values_K` may hold `old_logprob`
(under the weights that sampled, scored as in training), `sampled_logprob` (as the sampler saw it) and
`reference_logprob`.
Without `old_logprob` the policy is the one that sampled, and all ratios are 1.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import ClassVar, Literal, TypeAlias

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from luthier.data.templates import Template
from luthier.errors import DataError
from luthier.examples import Conversation, Example, Row
from luthier.models.forest import Batch
from luthier.objectives.base import Loss, Mean, Models, OnlineObjective, Reply, in_float64, no_grad_logprobs

Estimator: TypeAlias = Literal["k1", "k2", "k3"]
TOLD = ("reward", "truncated", "dead", "reply_kl")
"""Values of a row that are told as metrics, with what their names begin with."""


def kl_values(logprobs_K: Tensor, reference_K: Tensor, estimator: Estimator) -> Tensor:
    """(K,) estimates of KL(policy || reference) from tokens of the policy (Schulman 2020, "Approximating KL
    divergence"): k1 = l, k2 = l^2 / 2, k3 = exp(-l) - 1 + l, where l = log policy - log reference. k1 and k3 have the
    KL as their mean; k3 is never negative."""
    log_ratio_K = logprobs_K - reference_K
    if estimator == "k1":
        return log_ratio_K
    return log_ratio_K.square() / 2 if estimator == "k2" else torch.expm1(-log_ratio_K) + log_ratio_K


def kl_penalty(logprobs_K: Tensor, reference_K: Tensor, ratio_K: Tensor, estimator: Estimator) -> Tensor:
    """(K,) the estimates, with the gradient of the divergence itself.

    A derivative of an estimate is not the gradient of what it estimates, since the policy also decides which tokens
    come: that of k1 has the mean 0, that of k3 leads along KL(reference || policy). The gradient of KL(policy ||
    reference) is the mean of l * grad log policy, which k2 has as its derivative, and `ratio` times k1 or k3 too. So
    the estimator chooses what is told, and never where it leads.
    """
    log_ratio_K = (logprobs_K - reference_K).detach()
    values_K = kl_values(logprobs_K, reference_K, estimator).detach() * ratio_K.detach()
    return values_K + ratio_K.detach() * log_ratio_K * (logprobs_K - logprobs_K.detach())


@dataclass(frozen=True)
class Ratios:
    """How likely the tokens of a batch are now, beside what they were when they were sampled."""

    logprobs_K: Tensor
    log_ratio_K: Tensor
    """log policy - log policy that sampled."""
    correction_K: Tensor
    """What the loss of a token is weighted with, since the sampler rounds otherwise than training does: the ratio of
    the two, no more than a cap (truncated importance sampling, Yao et al. 2025). No gradient."""
    drift_K: Tensor
    """log policy that sampled - the same as the sampler saw it; 0 where that is not known."""

    @classmethod
    def of(cls, logprobs_K: Tensor, batch: Batch, cap: float) -> "Ratios":
        """Those of a batch; with a cap of 0 nothing is corrected."""
        old_K = batch.values_K.get("old_logprob")
        old_K = logprobs_K.detach() if old_K is None else old_K.to(logprobs_K.dtype)
        sampled_K = batch.values_K.get("sampled_logprob")
        drift_K = torch.zeros_like(old_K) if sampled_K is None else old_K - sampled_K.to(old_K.dtype)
        correction_K = drift_K.exp().clamp(max=cap) if cap else torch.ones_like(drift_K)
        return cls(logprobs_K, logprobs_K - old_K, correction_K, drift_K)

    def metrics(self) -> dict[str, Mean]:
        """What is told of them."""
        ratio_K = self.log_ratio_K.exp()
        return {
            "ratio": Mean.of(ratio_K),
            "approx_kl": Mean.of(ratio_K - 1 - self.log_ratio_K),
            "sampler_drift": Mean.of(self.drift_K.abs()),
            "sampler_ratio": Mean.of(self.drift_K.exp()),
        }


@dataclass(frozen=True)
class Clipped:
    """The surrogate of PPO (Schulman et al. 2017, arXiv:1707.06347, equation 7), negated."""

    losses: Tensor
    is_clipped: Tensor

    @classmethod
    def of(cls, ratio: Tensor, advantage: Tensor, low: float, high: float) -> "Clipped":
        """max(-ratio A, -clip(ratio, 1 - low, 1 + high) A); the larger one cannot be gamed by moving further."""
        plain, bounded = ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage
        below, above = (ratio < 1 - low) & (advantage < 0), (ratio > 1 + high) & (advantage > 0)
        return cls(-torch.minimum(plain, bounded), (below | above).detach())


def row_means(batch: Batch, values_K: Tensor) -> Tensor:
    """(R,) means over each row's tokens; 0 for a row without any."""
    return batch.sum_rows(values_K) / batch.sum_rows(torch.ones_like(values_K)).clamp(min=1)


def trained_rows(batch: Batch) -> float:
    """How many rows have a token that is trained on."""
    return float(len(batch.row_K.unique()))


def trained_tokens(batch: Batch) -> float:
    """How many tokens are trained on."""
    return float(in_float64(batch.loss_mask_K).sum())


def reply_metrics(batch: Batch) -> dict[str, Mean]:
    """What is told of the replies of a batch: their rewards, how many were cut off, how long they are, and how far the
    model that wrote them is from the reference, in nats a reply."""
    told = {name: Mean.of(v) for name, v in batch.values_R.items() if name.startswith(TOLD)}
    return {**told, "reply_tokens": Mean.of(batch.sum_rows(torch.ones_like(batch.loss_mask_K)))}


def advantage_of_tokens(batch: Batch) -> Tensor:
    """(K,) each token's own advantage, or that of its row where it has none of its own."""
    own_K = batch.values_K.get("advantage")
    return batch.values_R["advantage"][batch.row_K] if own_K is None else own_K


def groups_of(replies: Sequence[Reply]) -> Iterator[list[Reply]]:
    """The replies to each prompt."""
    for _, group in groupby(replies, key=lambda reply: reply.group):
        yield list(group)


def less_mean(rewards: np.ndarray) -> np.ndarray:
    """Less their mean; exactly 0 where all are equal, which a rounded mean would not leave."""
    beside = rewards - rewards[0]
    found: np.ndarray = beside - beside.mean()
    return found


def with_advantage(replies: Sequence[Reply], advantages: Sequence[float]) -> list[Row]:
    """The row of each reply with its advantage, for all of its tokens."""
    return [
        replace(reply.row, values={**reply.row.values, "advantage": float(advantage)})
        for reply, advantage in zip(replies, advantages, strict=True)
    ]


def rewards_less_kl(replies: Sequence[Reply], beta: float) -> np.ndarray:
    """(replies,) rewards less `beta` times the sum of k1 over the tokens that were sampled."""
    return np.array([reply.reward - (beta * sum(kl_of_tokens(reply)) if beta else 0.0) for reply in replies])


def kl_of_tokens(reply: Reply) -> list[float]:
    """k1 of each token of the row; 0 where the model did not write it."""
    old, reference = (reply.row.token_values[name] for name in ("old_logprob", "reference_logprob"))
    return [(o - r) if weight else 0.0 for o, r, weight in zip(old, reference, reply.row.loss_mask, strict=True)]


class GroupObjective(OnlineObjective):
    """What all of them have in common."""

    accepts: ClassVar[tuple[type, ...]] = (Conversation,)
    rate_factor: ClassVar[float] = 0.1

    beta: float = Field(0.0, ge=0)
    """Weight of the divergence from the reference model; 0: there is none, and no reference either."""
    sampler_cap: float = Field(2.0, ge=0)
    """Most that a token's loss is weighted with where the sampler thought it less likely than training does; 0: no
    weights."""

    @property
    def uses_reference(self) -> bool:
        """Only a divergence that weighs something needs one."""
        return self.beta > 0

    def rows(self, example: Example, template: Template) -> tuple[Row, ...]:
        """The reference reply as it would be trained on: what the gates look at before anything is sampled."""
        if not isinstance(example, Conversation):
            at = example.where
            raise DataError("this objective asks prompts and samples replies; a row must be a chat", at.path, at.line)
        limit = float(template.max_tokens or 1)
        return tuple(replace(row, values={"advantage": 1.0, "limit": limit}) for row in template.rows(example))

    def measure(self, models: Models, batch: Batch) -> Mapping[str, Tensor]:
        """The policy's log-probabilities, and the reference's where it takes part."""
        found = {"old_logprob": no_grad_logprobs(models.policy, batch)}
        if self.uses_reference:
            found["reference_logprob"] = no_grad_logprobs(models.reference, batch)
        return found

    def validation_weight(self, batch: Batch) -> float:
        """Number of replies."""
        return float(batch.row_count)

    def validation(self, models: Models, batch: Batch) -> Loss:
        """Minus the rewards: the best step is that of the highest mean."""
        return Loss(-batch.values_R["reward"].sum(), reply_metrics(batch))
