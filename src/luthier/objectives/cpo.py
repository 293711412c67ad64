"""Contrastive preference optimization (Xu et al. 2024, arXiv:2401.08417): DPO with a uniform reference, and supervised.

    loss = f(beta * (log pi(chosen) - log pi(rejected))) - sft_weight * log pi(chosen) / tokens

No pass of a reference; the second term holds the model where the chosen replies are. Shapes: P pairs, R = 2P rows that
alternate chosen, rejected. Averaged over tokens and without the second term it is SimPO (`simpo.py`).
"""

from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from luthier.data.templates import Template
from luthier.errors import RecipeError
from luthier.examples import Example, Preference, Row
from luthier.models.forest import Batch
from luthier.objectives._pairs import lengths, margin_metrics, pair_rows, sides, smoothed
from luthier.objectives.base import Loss, Mean, Models, Objective


def _sigmoid(margin_P: Tensor, o: "CPO") -> Tensor:
    return smoothed(o.beta * margin_P, o.label_smoothing)  # CPO, equation 3


def _hinge(margin_P: Tensor, o: "CPO") -> Tensor:
    return torch.relu(1 - o.beta * margin_P)  # SLiC-HF, arXiv:2305.10425


def _ipo(margin_P: Tensor, o: "CPO") -> Tensor:
    return (margin_P - 1 / (2 * o.beta)) ** 2  # IPO, arXiv:2310.12036, equation 17; of means over tokens


PENALTIES: Mapping[str, Callable[[Tensor, "CPO"], Tensor]] = {"sigmoid": _sigmoid, "hinge": _hinge, "ipo": _ipo}
PER_TOKEN = frozenset({"ipo"})


class CPO(Objective):
    """Learn from pairs without a reference, held by a supervised term."""

    accepts: ClassVar[tuple[type, ...]] = (Preference,)
    rate_factor: ClassVar[float] = 0.1

    beta: float = Field(0.1, gt=0)
    """How sharply a small margin is punished."""
    penalty: Literal["sigmoid", "hinge", "ipo"] = "sigmoid"
    """How a small margin is punished."""
    sft_weight: float = Field(1.0, ge=0)
    """Weight of the supervised loss of the chosen reply (TRL: `cpo_alpha`); 0 leaves nothing to hold the model."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of labels taken to be flipped; `sigmoid` alone knows of it."""

    @model_validator(mode="after")
    def _together(self) -> "CPO":
        """Refuse what would be ignored.

        Raises:
            RecipeError: smoothing of a penalty that has none.
        """
        if self.label_smoothing and self.penalty != "sigmoid":
            raise RecipeError(f'objective.label_smoothing means nothing for {self.penalty}; set penalty = "sigmoid"')
        return self

    def rows(self, example: Example, template: Template) -> tuple[Row, ...]:
        """Two rows: prompt + chosen, prompt + rejected, with only the replies trained on."""
        return pair_rows(example, template, "cpo")

    def weight(self, batch: Batch) -> float:
        """Number of pairs."""
        return batch.row_count / 2

    def loss(self, models: Models, batch: Batch) -> Loss:
        """Summed penalties and supervised losses of the pairs."""
        logprobs_R = batch.sum_rows(models.policy.token_logprobs(batch) * batch.loss_mask_K)
        mean_R = logprobs_R / lengths(batch)
        chosen_P, rejected_P = sides(mean_R if self.penalty in PER_TOKEN else logprobs_R)
        losses_P = PENALTIES[self.penalty](chosen_P - rejected_P, self) - self.sft_weight * sides(mean_R)[0]
        metrics = margin_metrics(self.beta * chosen_P, self.beta * rejected_P)
        return Loss(losses_P.sum(), {"loss": Mean.of(losses_P), **metrics})
