"""A reward model from pairs (Bradley & Terry 1952; Christiano et al. 2017, arXiv:1706.03741, equation 1).

A head over the hidden state of a reply's last token gives one number, and that of the reply which people preferred
should be the larger one:

    loss = - log sigmoid(r(chosen) - r(rejected) - margin) + centering * (r(chosen) + r(rejected))^2

The margin is the row's own field `margin`, how much better the chosen reply was rated, and 0 where it has none (Llama
2, arXiv:2307.09288, equation 2). A row whose field `probability` says how sure it is that the chosen reply is the
better one has the cross-entropy with that soft label: p times the first term, and 1 - p times that of the opposite
order. The loss of a pair does not depend on where 0 is; `centering` puts it between both replies (Eisenstein et al.
2023, arXiv:2312.09244, equation 3), and only then has the head a bias.

Shapes: P pairs, R = 2P rows that alternate chosen, rejected. A row ends with the end of its last turn, where the head
reads: what a template writes after it is cut off. With a head of zeros the loss begins at ln 2, with a drawn one near
it. Left out: rewards of single tokens, and several heads on one model.
"""

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from luthier.data.templates import Template
from luthier.examples import Conversation, Example, Message, Preference, Row
from luthier.models.forest import Batch
from luthier.models.heads import HeadShape
from luthier.objectives._pairs import (
    PROBABILITY,
    number_of,
    pair_rows,
    probabilities,
    probability_of,
    ranked_right,
    sides,
    smoothed,
)
from luthier.objectives.base import Loss, Mean, Models, Objective

KIND = "reward"
"""Of the head."""


def scored_row(template: Template, conversation: Conversation, reply: tuple[Message, ...]) -> Row:
    """What a reward is read from: the conversation up to the end of `reply`, its last messages.

    Raises:
        TemplateError: the template refuses a message, or the reply has no assistant message.
    """
    return _up_to_end_of_turn(template.reply_row(conversation, reply))


def _up_to_end_of_turn(row: Row) -> Row:
    last = max((i for i, weight in enumerate(row.loss_mask) if weight), default=len(row.ids) - 1)
    return row.first(last + 1)


class Reward(Objective):
    """Learn a number for a reply from pairs of a chosen and a rejected one."""

    accepts: ClassVar[tuple[type, ...]] = (Preference,)
    rate_factor: ClassVar[float] = 0.5

    centering: float = Field(0.0, ge=0)
    """Weight of the pull of both rewards of a pair towards a sum of 0; 0.01 is usual."""
    head_start: Literal["normal", "zeros"] = "normal"
    """How the head begins: drawn from N(0, 1 / (width + 1)), or at zeros."""

    def head(self) -> HeadShape:
        """One number for a reply; without `centering` the loss would never move a bias."""
        return HeadShape(KIND, normalized=True, bias=self.centering > 0, start=self.head_start)

    @property
    def reads_probability(self) -> bool:
        """Always."""
        return True

    def rows(self, example: Example, template: Template) -> tuple[Row, ...]:
        """Two rows: prompt + chosen, prompt + rejected; both carry the pair's `margin` and its `probability`."""
        rows, margin = pair_rows(example, template, "reward"), _margin(example)
        values = {"margin": margin, PROBABILITY: probability_of(example)}
        return tuple(replace(_up_to_end_of_turn(row), values=values) for row in rows)

    def weight(self, batch: Batch) -> float:
        """Number of pairs."""
        return batch.row_count / 2

    def loss(self, models: Models, batch: Batch) -> Loss:
        """Summed loss of the pairs."""
        reward_R = models.policy.head_values(batch).rows_RO[:, 0]
        chosen_P, rejected_P = sides(reward_R)
        difference_P = chosen_P - rejected_P
        losses_P = smoothed(difference_P - sides(batch.values_R["margin"])[0], 1 - probabilities(batch))
        if self.centering:
            losses_P = losses_P + self.centering * (chosen_P + rejected_P) ** 2
        return Loss(
            losses_P.sum(),
            {
                "loss": Mean.of(losses_P),
                "margin": Mean.of(difference_P),
                "accuracy": ranked_right(difference_P),
                "reward": Mean.of(reward_R),
            },
        )


def _margin(example: Example) -> float:
    """The row's field `margin`; 0 where it has none; raises DataError if it is no number."""
    return number_of(example, "margin", 0.0, "how much better the chosen reply is")
