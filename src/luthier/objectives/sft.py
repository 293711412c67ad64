"""Supervised fine-tuning: raise the log-probability of the tokens that the loss mask selects.

    loss = - sum_k w_k log p(token_k | what came before)        weight = sum_k w_k

K trained-on tokens over all rows; w is the loss mask, so a message of weight 0 costs nothing. Left out: label
smoothing and dynamic re-weighting (DFT), which are separate objectives.
"""

from luthier.data.templates import Template
from luthier.examples import Example, Row
from luthier.models.forest import Batch
from luthier.objectives._wanted import wanted_rows
from luthier.objectives.base import Loss, Mean, Models, Objective, in_float64


class SFT(Objective):
    """Learn the wanted replies token by token."""

    def rows(self, example: Example, template: Template) -> tuple[Row, ...]:
        """The rows of a conversation or document as the template renders them."""
        return wanted_rows(example, template, "sft")

    def weight(self, batch: Batch) -> float:
        """Sum of the loss mask."""
        return float(in_float64(batch.loss_mask_K).sum())

    def loss(self, models: Models, batch: Batch) -> Loss:
        """Summed negative log-likelihood of the trained-on tokens."""
        logprobs_K, right_K = models.policy.token_scores(batch)
        losses_K = -logprobs_K * batch.loss_mask_K
        parts, weight = {"loss": losses_K, "token_accuracy": right_K * batch.loss_mask_K}, self.weight(batch)
        return Loss(
            losses_K.sum(), {name: Mean(float(in_float64(values_K).sum()), weight) for name, values_K in parts.items()}
        )
