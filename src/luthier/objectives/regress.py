"""A number for a text: what the head says is its distance from the mean of the training rows in standard deviations.

    loss = huber(z - (y - mean) / std)        huber(d) = d^2 / 2 up to |d| = delta, then delta (|d| - delta / 2)

(Huber 1964.) `loss = "squared"` is d^2 / 2 for every d. A head of zeros says the mean, and its squared loss is about
1/2. Left out: numbers that say how sure they are; an interval comes from the errors on validation rows.
"""

from collections.abc import Sequence
from statistics import fmean, pstdev
from typing import ClassVar, Literal, Self

import torch.nn.functional as F
from pydantic import Field

from luthier.data.templates import Template
from luthier.errors import RecipeError
from luthier.examples import Conversation, Example, Row
from luthier.models.forest import Batch
from luthier.models.heads import HeadShape
from luthier.objectives._labeled import OfWhole, asked_row, error_at, number_of
from luthier.objectives.base import Loss, Mean, Models

KIND = "regress"
"""Of the head."""


class Regress(OfWhole):
    """Learn a number for a text."""

    kind: ClassVar[str] = KIND

    distance: Literal["huber", "squared"] = "huber"
    """How errors count: `huber` lets one row that is far off not outweigh the others."""
    delta: float = Field(1.0, gt=0)
    """From where on an error counts no more than in proportion, in standard deviations (`huber`)."""
    mean: float | None = None
    """Of the training rows' numbers; absent: as it is found."""
    std: float | None = Field(None, gt=0)
    """Their standard deviation; absent: as it is found."""

    def learned(self, examples: Sequence[Example]) -> Self:
        """With mean and standard deviation of the training rows.

        Raises:
            DataError: a row has no number, or all have the same.
        """
        numbers = [number_of(example) for example in examples]
        if self.mean is not None and self.std is not None:
            return self
        mean, std = (fmean(numbers), pstdev(numbers)) if numbers else (0.0, 0.0)
        if std == 0:
            raise error_at(examples[0], f"every training row has the number {mean:g}, so there is nothing to learn")
        mean, std = (mean if self.mean is None else self.mean), (std if self.std is None else self.std)
        return self.model_copy(update={"mean": mean, "std": std})

    def head(self) -> HeadShape:
        """One number."""
        mean, std = self._scale()
        return self.shape(1, mean=mean, std=std)

    def rows(self, example: Example, template: Template) -> tuple[Row, ...]:
        """What was asked, with its number in standard deviations."""
        assert isinstance(example, Conversation)
        mean, std = self._scale()
        row = asked_row(example, template, self.input)
        return (Row(row.ids, row.loss_mask, row.id, {"number": (number_of(example) - mean) / std}),)

    def loss(self, models: Models, batch: Batch) -> Loss:
        """Summed distance of the rows."""
        said_R = models.policy.head_values(batch).rows_RO[:, 0]
        wanted_R = batch.values_R["number"].to(said_R.dtype)
        if self.distance == "huber":
            losses_R = F.huber_loss(said_R, wanted_R, reduction="none", delta=self.delta)
        else:
            losses_R = (said_R - wanted_R) ** 2 / 2
        error_R = (said_R.detach() - wanted_R).abs() * self._scale()[1]
        return Loss(losses_R.sum(), {"loss": Mean.of(losses_R), "absolute_error": Mean.of(error_R)})

    def _scale(self) -> tuple[float, float]:
        if self.mean is None or self.std is None:
            raise RecipeError("objective.mean and std: not known before training rows are read")
        return self.mean, self.std
