"""Direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290) and its closest relatives.

The reply that people preferred should gain more probability, relative to a frozen reference, than the one they
rejected: one classification loss over pairs, without a reward model and without sampling.

    margin = (log pi(chosen) - log ref(chosen)) - (log pi(rejected) - log ref(rejected))      loss = f(beta * margin)

Shapes: P pairs, R = 2P rows that alternate chosen, rejected; K trained-on tokens. At step 0 the policy is the
reference, so margins are 0 and the sigmoid loss is ln 2. Left out: the rest of the family, which belongs in this
dictionary of penalties.
"""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from luthier.data.templates import Template
from luthier.errors import DataError
from luthier.examples import Conversation, Example, Preference, Row
from luthier.models.forest import Batch
from luthier.objectives.base import Loss, Mean, Models, Objective, no_grad_logprobs


def _sigmoid(margin_P: Tensor, beta: float) -> Tensor:
    return -F.logsigmoid(beta * margin_P)  # DPO, equation 7


def _hinge(margin_P: Tensor, beta: float) -> Tensor:
    return torch.relu(1 - beta * margin_P)  # SLiC-HF, arXiv:2305.10425


def _ipo(margin_P: Tensor, beta: float) -> Tensor:
    return (margin_P - 1 / (2 * beta)) ** 2  # IPO, arXiv:2310.12036, equation 17


PENALTIES = {"sigmoid": _sigmoid, "hinge": _hinge, "ipo": _ipo}
# IPO's square grows with the length of a reply; its authors averaged over tokens, as TRL's documentation reports
PER_TOKEN = frozenset({"ipo"})


class DPO(Objective):
    """Learn from pairs of a chosen and a rejected reply to one prompt."""

    accepts: ClassVar[tuple[type, ...]] = (Preference,)
    needs_reference: ClassVar[bool] = True
    rate_factor: ClassVar[float] = 0.1

    beta: float = Field(0.1, gt=0)
    """Pull towards the reference model: higher stays closer; 0.1 to 0.5 is usual."""
    penalty: Literal["sigmoid", "hinge", "ipo"] = "sigmoid"
    """How a small margin is punished."""

    def rows(self, example: Example, template: Template) -> tuple[Row, ...]:
        """Two rows: prompt + chosen, prompt + rejected, with only the replies trained on."""
        if not isinstance(example, Preference):
            at = example.where
            raise DataError("DPO needs preference pairs (prompt, chosen, rejected)", at.path, at.line, at.row)
        return tuple(
            template.reply_row(
                Conversation(example.prompt + reply, example.tools, example.where, f"{example.id}/{name}"), reply
            )
            for name, reply in (("chosen", example.chosen), ("rejected", example.rejected))
        )

    def weight(self, batch: Batch) -> float:
        """Number of pairs."""
        return batch.row_count / 2

    def loss(self, models: Models, batch: Batch) -> Loss:
        """Summed penalty of the margins."""
        log_ratio_K = models.policy.token_logprobs(batch) - no_grad_logprobs(models.reference, batch)
        log_ratio_R = batch.sum_rows(log_ratio_K * batch.loss_mask_K)
        if self.penalty in PER_TOKEN:
            log_ratio_R = log_ratio_R / batch.sum_rows(batch.loss_mask_K).to(log_ratio_R.dtype)
        chosen_P, rejected_P = log_ratio_R[0::2], log_ratio_R[1::2]
        margin_P = chosen_P - rejected_P
        losses_P = PENALTIES[self.penalty](margin_P, self.beta)
        return Loss(
            losses_P.sum(),
            {
                "loss": Mean.of(losses_P),
                "margin": Mean.of(self.beta * margin_P),
                # a tie counts as half right: at step 0 every margin is a tie
                "accuracy": Mean.of((margin_P > 0).float() + 0.5 * (margin_P == 0).float()),
            },
        )
