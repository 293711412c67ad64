"""Simple preference optimization (Meng et al. 2024, arXiv:2405.14734): mean log-probabilities, a margin, no reference.

    loss = -log sigmoid(beta * (r(chosen) - r(rejected)) - gamma)      r(y) = log pi(y) / tokens

What is compared is what ranks replies when they are written, so length gains nothing. AlphaPO (Gupta et al. 2025,
arXiv:2501.03884) bends the reward, r = (1 - pi(y)^(-alpha / tokens)) / alpha, which is the logarithm at alpha = 0.
Shapes: P pairs, R = 2P rows that alternate chosen, rejected.
"""

from typing import ClassVar

import torch
from pydantic import Field

from luthier.data.templates import Template
from luthier.examples import Example, Preference, Row
from luthier.models.forest import Batch
from luthier.objectives._pairs import lengths, margin_metrics, pair_rows, sides, smoothed
from luthier.objectives.base import Loss, Mean, Models, Objective


class SimPO(Objective):
    """Learn from pairs by mean log-probabilities, without a reference."""

    accepts: ClassVar[tuple[type, ...]] = (Preference,)
    rate_factor: ClassVar[float] = 0.1

    beta: float = Field(2.0, gt=0)
    """How sharply a small margin is punished; 2 to 2.5 in the paper, 10 for models that are good already."""
    gamma: float = Field(1.0, ge=0)
    """By how much a chosen reply should be ahead; 0.3 to 0.8 of beta in the paper."""
    alpha: float = 0.0
    """How AlphaPO bends the reward; 0 is SimPO."""
    sft_weight: float = Field(0.0, ge=0)
    """Weight of the supervised loss of the chosen reply beside it (CPO-SimPO; TRL: `cpo_alpha`)."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of labels taken to be flipped."""

    def rows(self, example: Example, template: Template) -> tuple[Row, ...]:
        """Two rows: prompt + chosen, prompt + rejected, with only the replies trained on."""
        return pair_rows(example, template, "simpo")

    def weight(self, batch: Batch) -> float:
        """Number of pairs."""
        return batch.row_count / 2

    def loss(self, models: Models, batch: Batch) -> Loss:
        """Summed losses of the pairs."""
        mean_R = batch.sum_rows(models.policy.token_logprobs(batch) * batch.loss_mask_K) / lengths(batch)
        reward_R = -torch.expm1(-self.alpha * mean_R) / self.alpha if self.alpha else mean_R
        chosen_P, rejected_P = (self.beta * values_P for values_P in sides(reward_R))
        losses_P = (
            smoothed(chosen_P - rejected_P - self.gamma, self.label_smoothing) - self.sft_weight * sides(mean_R)[0]
        )
        return Loss(losses_P.sum(), {"loss": Mean.of(losses_P), **margin_metrics(chosen_P, rejected_P)})
