"""Binary classifier optimization (Jung et al. 2024, arXiv:2404.04656): good or bad, by a logistic loss.

    reward = beta * (log pi(y|x) - log ref(y|x))
    loss = -log sigmoid(reward - center) if y is good, -log sigmoid(center - reward) if it is not

It bounds DPO's loss from above, most closely where the center lies half way between the mean rewards of good and of bad
replies; these are the means over all steps before (`_centered.py`). At step 0 the loss is ln 2. Shapes: R rows. Left
out: weighing bad replies by how likely their prompts are to have good ones (UDM), which needs a classifier of prompts.
"""

import math
from collections.abc import Iterable, Mapping
from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field

from luthier.data.templates import Template
from luthier.examples import Example, Judged, Preference, Row
from luthier.models.forest import Batch
from luthier.objectives._centered import CENTER, centered, with_center
from luthier.objectives._judged import judged_rows, reward_metrics, weighed
from luthier.objectives.base import Loss, Mean, Memory, Models, Objective, reference_logprobs


class BCO(Objective):
    """Learn from single replies that were good or bad, as a classifier would."""

    accepts: ClassVar[tuple[type, ...]] = (Judged, Preference)
    rate_factor: ClassVar[float] = 0.1

    beta: float = Field(0.1, gt=0)
    """Pull towards the reference model: higher stays closer."""
    desirable_weight: float = Field(1.0, gt=0)
    """Weight of a good reply."""
    undesirable_weight: float = Field(1.0, gt=0)
    """Weight of a bad reply."""

    @property
    def uses_reference(self) -> bool:
        """Always."""
        return True

    def rows(self, example: Example, template: Template) -> tuple[Row, ...]:
        """A row for each judged reply, with only the reply trained on."""
        return judged_rows(example, template, "bco")

    def weight(self, batch: Batch) -> float:
        """Number of replies."""
        return float(batch.row_count)

    def whole_step(self, models: Models, batches: Iterable[Batch], memory: Memory) -> Iterable[Batch]:
        """The center of earlier steps."""
        return with_center(batches, memory)

    def loss(self, models: Models, batch: Batch) -> Loss:
        """Summed losses of the replies."""
        gain_K = models.policy.token_logprobs(batch) - reference_logprobs(models, batch)
        reward_R = self.beta * batch.sum_rows(gain_K * batch.loss_mask_K)
        ahead_R = (reward_R - batch.values_R[CENTER]) * weighed(batch, 1.0, -1.0)
        losses_R = -F.logsigmoid(ahead_R) * weighed(batch, self.desirable_weight, self.undesirable_weight)
        return Loss(losses_R.sum(), {"loss": Mean.of(losses_R), **reward_metrics(batch, reward_R)})

    def remember(self, memory: Memory, metrics: Mapping[str, Mean]) -> Memory:
        """The rewards so far."""
        return centered(memory, metrics)

    def loss_at_start(self) -> float | None:
        """ln 2 times the weight of a reply; None where it depends on how many of them are good."""
        return self.desirable_weight * math.log(2) if self.desirable_weight == self.undesirable_weight else None
