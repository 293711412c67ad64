"""Supervised fine-tuning that stays near the base: cross-entropy, and a penalty for leaving the base's predictions.

    loss = sum_k w_k (- log p(token_k | before) + kl_weight * KL(q_k || p_k))        weight = sum_k w_k

p is the model, q the base, KL over the whole vocabulary at each position that predicts a trained-on token, in the
direction that keeps what the base thinks possible (learning without forgetting, Li & Hoiem 2016, arXiv:1606.09282,
equation 3 at temperature 1; Hinton et al. 2015 for the loss). Where the data always want one token y, the minimum is
p = (onehot(y) + kl_weight q) / (1 + kl_weight): the weight says how much of the base is left in each prediction. At
step 0 the penalty is 0. Where the adapter goes on from an earlier run (`adapter.start_from`), q is that run's model.
K trained-on tokens over all rows; H positions, shared by rows that begin alike. Left out: the reverse direction
KL(p || q) of RLHF, which lets the model drop what the base thinks possible; positions of the prompt.
"""

from typing import ClassVar

import torch
from pydantic import Field

from luthier.data.templates import Template
from luthier.examples import Example, Row
from luthier.models.forest import Batch
from luthier.models.kernels.divergence import compared
from luthier.objectives._wanted import wanted_rows
from luthier.objectives.base import Loss, Mean, Models, Objective, in_float64


class SFTKL(Objective):
    """Learn the wanted replies token by token, without going far from the base."""

    keeps_reference: ClassVar[bool] = False

    kl_weight: float = Field(0.3, gt=0)
    """Weight of the divergence from the base beside the loss; 0.1 holds a little, 1 leaves half of each prediction."""

    @property
    def uses_reference(self) -> bool:
        """Always."""
        return True

    def rows(self, example: Example, template: Template) -> tuple[Row, ...]:
        """The rows of a conversation or document as the template renders them."""
        return wanted_rows(example, template, "sft_kl")

    def weight(self, batch: Batch) -> float:
        """Sum of the loss mask."""
        return float(in_float64(batch.loss_mask_K).sum())

    def loss(self, models: Models, batch: Batch) -> Loss:
        """Summed negative log-likelihood of the trained-on tokens, and summed divergence from the base."""
        if models.reference is None:
            raise ValueError("this objective needs a reference model")
        with torch.no_grad():
            reference_HV = models.reference.logits(batch)
        logprobs_Q, kl_H = compared(models.policy.logits(batch), reference_HV, batch.hidden_Q, batch.target_Q)
        nll_K = -logprobs_Q[batch.prediction_K] * batch.loss_mask_K
        kl_K = kl_H[batch.hidden_Q[batch.prediction_K]] * batch.loss_mask_K
        loss_K, weight = nll_K + self.kl_weight * kl_K, self.weight(batch)
        parts = {"loss": loss_K, "cross_entropy": nll_K, "kl": kl_K}
        return Loss(
            loss_K.sum(), {name: Mean(float(in_float64(values_K).sum()), weight) for name, values_K in parts.items()}
        )
