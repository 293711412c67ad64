"""What objectives over pairs of replies share: two rows a pair, chosen before rejected, and sums over each.

Shapes: P pairs, R = 2P rows, K trained-on tokens.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.data.templates import Template
from luthier.errors import DataError
from luthier.examples import Conversation, Example, Preference, Row
from luthier.models.forest import Batch
from luthier.objectives.base import Mean

PROBABILITY = "probability"
"""Of a pair that its chosen reply is the better one: a soft label. A row's own field, and the value of its rows."""


def pair_rows(example: Example, template: Template, objective: str) -> tuple[Row, ...]:
    """Two rows: prompt + chosen, prompt + rejected, with only the replies trained on.

    Raises:
        DataError: the example is no pair; `objective` is who says so.
    """
    if not isinstance(example, Preference):
        at = example.where
        raise DataError(f"{objective} needs preference pairs (prompt, chosen, rejected)", at.path, at.line, at.row)
    return tuple(
        template.reply_row(
            Conversation(example.prompt + reply, example.tools, example.where, f"{example.id}/{name}"), reply
        )
        for name, reply in (("chosen", example.chosen), ("rejected", example.rejected))
    )


def sides(values_R: Tensor) -> tuple[Tensor, Tensor]:
    """(P,) each: the values of the chosen and of the rejected replies."""
    return values_R[0::2], values_R[1::2]


def probabilities(batch: Batch) -> Tensor:
    """(P,) how probable it is that the chosen reply of each pair is the better one; rows that tell none are certain."""
    given_R = batch.values_R.get(PROBABILITY)
    return sides(torch.ones(batch.row_count, device=batch.row_K.device) if given_R is None else given_R)[0]


def lengths(batch: Batch) -> Tensor:
    """(R,) trained-on tokens of each row, weighted by the mask; 1 where a cut has left none."""
    return batch.sum_rows(batch.loss_mask_K).clamp(min=1)


def places(batch: Batch) -> Tensor:
    """(K,) which of its row's trained-on tokens each one is, from 0."""
    counts_R = torch.bincount(batch.row_K, minlength=batch.row_count)
    first_R = counts_R.cumsum(0) - counts_R
    return torch.arange(len(batch.row_K), device=batch.row_K.device) - first_R[batch.row_K]


def number_of(example: Example, name: str, otherwise: float, meaning: str) -> float:
    """The row's own field of this name; `otherwise` where it has none.

    Raises:
        DataError: it is no number; `meaning` says what one would be.
    """
    given: Any = example.extra.get(name)
    if given is None or given == "":  # an empty cell of a CSV file
        return otherwise
    try:
        found = math.nan if isinstance(given, bool) else float(given)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        at = example.where
        raise DataError(f"{name!r} is {given!r}; expected a number, {meaning}", at.path, at.line, at.row)
    return found


def probability_of(example: Example) -> float:
    """The row's field `probability`; 1 where it has none: the label is certain.

    Raises:
        DataError: it is no number from 0 to 1.
    """
    found = number_of(example, PROBABILITY, 1.0, "how probable it is that the chosen reply is the better one")
    if not 0 <= found <= 1:
        at = example.where
        raise DataError(f"{PROBABILITY!r} is {found:g}; expected a number from 0 to 1", at.path, at.line, at.row)
    return found


def smoothed(margin: Tensor, smoothing: float | Tensor) -> Tensor:
    """-log sigmoid of a margin, where a share `smoothing` of the labels, or of each, is taken to be flipped (cDPO)."""
    return -(1 - smoothing) * F.logsigmoid(margin) - smoothing * F.logsigmoid(-margin)


def ranked_right(margin_P: Tensor) -> Mean:
    """The share of margins above 0; a tie counts as half right: at step 0 every margin is a tie."""
    return Mean.of((margin_P > 0).float() + 0.5 * (margin_P == 0).float())


def margin_metrics(chosen_P: Tensor, rejected_P: Tensor) -> dict[str, Mean]:
    """Implicit rewards and how they rank."""
    margin_P = chosen_P - rejected_P
    return {
        "margin": Mean.of(margin_P),
        "accuracy": ranked_right(margin_P),
        "chosen_reward": Mean.of(chosen_P),
        "rejected_reward": Mean.of(rejected_P),
    }
