"""Distillation: learn not the wanted token alone, but how likely a teacher finds each token in its place.

    loss = sum_k w_k ((1 - c) T^2 D(teacher, student) + c (- log p(token_k | before)))        weight = sum_k w_k

D is a divergence between the probabilities of both models at temperature T, c is `cross_entropy`; T^2 keeps the size of
the gradient whatever T is (Hinton, Vinyals, Dean 2015, arXiv:1503.02531, section 2). The teacher read the same tokens,
maybe behind a longer prompt, and was asked once: its `top_k` likeliest tokens are kept with the rows, and the mass of
all others as one number. A student that predicts as its teacher does has D = 0. K trained-on tokens over all rows; w is
the loss mask. Left out: hidden states and attention of the teacher, which need a student of its shape.
"""

from pydantic import Field

from luthier.data.templates import Template
from luthier.examples import Example, Row
from luthier.models.forest import Batch
from luthier.models.scorer import chosen_logprobs
from luthier.objectives._taught import TaughtSettings
from luthier.objectives._wanted import wanted_rows
from luthier.objectives.base import Lesson, Loss, Mean, Models, Objective, in_float64


class Distill(TaughtSettings, Objective):
    """Learn how likely a teacher finds each token of the wanted replies."""

    temperature: float = Field(1.0, gt=0)
    """That the logits of both models are divided by; above 1, unlikely tokens count more."""
    cross_entropy: float = Field(0.0, ge=0, lt=1)
    """Share of the loss that is plain cross-entropy with the rows' own tokens."""

    def lesson(self) -> Lesson:
        """The likeliest tokens at this temperature."""
        return Lesson(self.top_k, self.temperature, wants_every_token=not self.cross_entropy)

    def rows(self, example: Example, template: Template) -> tuple[Row, ...]:
        """The rows of a conversation or document as the template renders them."""
        return wanted_rows(example, template, "distill")

    def weight(self, batch: Batch) -> float:
        """Sum of the loss mask."""
        return float(in_float64(batch.loss_mask_K).sum())

    def loss(self, models: Models, batch: Batch) -> Loss:
        """Summed divergence from the teacher, and summed negative log-likelihood where it has a share."""
        logits_HV = models.policy.logits(batch)
        softened_HV = logits_HV if self.temperature == 1 else logits_HV / self.temperature
        distance_K = self.distance(softened_HV, batch, models.told(batch)) * batch.loss_mask_K
        loss_K = (1 - self.cross_entropy) * self.temperature**2 * distance_K
        parts = {"divergence": distance_K}
        if self.cross_entropy:
            parts["cross_entropy"] = -chosen_logprobs(logits_HV, batch) * batch.loss_mask_K
            loss_K = loss_K + self.cross_entropy * parts["cross_entropy"]
        weight = self.weight(batch)
        return Loss(
            loss_K.sum(),
            {
                name: Mean(float(in_float64(values_K).sum()), weight)
                for name, values_K in {"loss": loss_K, **parts}.items()
            },
        )
