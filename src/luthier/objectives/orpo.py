"""Odds ratio preference optimization (Hong et al. 2024, arXiv:2403.07691): supervised training and preferences at once.

    loss = -log p(chosen) - odds_weight * log sigmoid(log odds(chosen) - log odds(rejected))
    odds(y) = p(y) / (1 - p(y))        log p(y) = mean over the tokens of y of log pi(token)

No reference and no supervised training before: the first term teaches the chosen reply, the second keeps the rejected
one from rising with it. Shapes: P pairs, R = 2P rows that alternate chosen, rejected. TRL takes the first term over the
tokens of the prompt, too, and averages it over those of a micro-batch; here it is over the reply, as in the paper.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from luthier.data.templates import Template
from luthier.examples import Example, Preference, Row
from luthier.models.forest import Batch
from luthier.objectives._pairs import lengths, margin_metrics, pair_rows, sides
from luthier.objectives.base import Loss, Mean, Models, Objective


class ORPO(Objective):
    """Learn the chosen replies, and to prefer them by their odds, without a reference."""

    accepts: ClassVar[tuple[type, ...]] = (Preference,)

    odds_weight: float = Field(0.1, gt=0)
    """Weight of the odds ratio beside the supervised loss; the paper's lambda (TRL: `beta`)."""

    def rows(self, example: Example, template: Template) -> tuple[Row, ...]:
        """Two rows: prompt + chosen, prompt + rejected, with only the replies trained on."""
        return pair_rows(example, template, "orpo")

    def weight(self, batch: Batch) -> float:
        """Number of pairs."""
        return batch.row_count / 2

    def loss(self, models: Models, batch: Batch) -> Loss:
        """Summed supervised losses and odds ratios of the pairs."""
        logprobs_K = models.policy.token_logprobs(batch)
        chosen_P, rejected_P = sides(batch.sum_rows(logprobs_K * batch.loss_mask_K) / lengths(batch))
        log_odds_P = (chosen_P - _log1mexp(chosen_P)) - (rejected_P - _log1mexp(rejected_P))
        losses_P = -chosen_P - self.odds_weight * F.logsigmoid(log_odds_P)
        metrics = margin_metrics(chosen_P, rejected_P)
        return Loss(losses_P.sum(), {"loss": Mean.of(losses_P), "log_odds_ratio": Mean.of(log_odds_P), **metrics})


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0, each half by the form that keeps its digits."""
    x = x.clamp(max=-1e-6)  # a reply that is certain has infinite odds
    near = x > -0.6931472
    return torch.where(near, torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(torch.where(near, -1.0, x))))
