"""One label for a text: cross-entropy of a head with a number z_c for each of C labels.

    loss = - w_y sum_c q_c log softmax(z)_c        q_c = (1 - s) [c = y] + s / C        weight = sum of w_y

y is the row's label, s the label smoothing (Szegedy et al. 2016, arXiv:1512.00567), and w_c = n / (C n_c) where classes
are balanced: n rows, n_c of them with label c. A head of zeros begins at ln C. A held-out row whose label no training
row has adds nothing to the loss; it counts as wrong wherever answers are judged. Left out: focal loss, and several
heads on one model.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from luthier.data.templates import Template
from luthier.examples import Conversation, Example, Row
from luthier.models.forest import Batch
from luthier.objectives._labeled import UNKNOWN, Labeled, OfWhole, asked_row, error_at, label_of
from luthier.objectives.base import Loss, Mean, Models, in_float64

KIND = "classify"
"""Of the head."""


class Classify(OfWhole, Labeled):
    """Learn the one label of a text."""

    kind: ClassVar[str] = KIND

    class_weights: Literal["none", "balanced"] = "none"
    """`balanced`: a row counts the more the rarer its label is, so that all labels count alike."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of what is wanted that is spread over all labels."""
    counts: tuple[int, ...] = ()
    """Training rows with each label, for `class_weights`; absent: as they are counted."""

    def said(self, example: Example) -> Sequence[str]:
        """The one label."""
        return (label_of(example),)

    def learned(self, examples: Sequence[Example]) -> Self:
        """With the labels of the training rows, and how many rows have each where they are weighed."""
        found = super().learned(examples)
        if len(found.labels) < 2:
            raise error_at(examples[0], f"every training row has the label {found.labels[0]!r}; expected two at least")
        if found.class_weights == "none" or found.counts:
            return found
        place = {label: number for number, label in enumerate(found.labels)}
        counts = [0] * len(place)
        for example in examples:
            counts[place[label_of(example)]] += 1
        return found.model_copy(update={"counts": tuple(counts)})

    def rows(self, example: Example, template: Template) -> tuple[Row, ...]:
        """What was asked, with the number of its label."""
        assert isinstance(example, Conversation)
        labels, label = self.named(), label_of(example)
        number = float(labels.index(label)) if label in labels else UNKNOWN
        row = asked_row(example, template, self.input)
        return (Row(row.ids, row.loss_mask, row.id, {"label": number}),)

    def weight(self, batch: Batch) -> float:
        """Sum of the rows' weights."""
        return float(in_float64(self._weights(batch.values_R["label"])).sum())

    def loss(self, models: Models, batch: Batch) -> Loss:
        """Summed cross-entropy of the rows whose label is known."""
        logits_RC = models.policy.head_values(batch).rows_RO
        label_R = batch.values_R["label"]
        weight_R = self._weights(label_R).to(logits_RC.dtype)
        wanted_R = label_R.clamp_min(0).long()
        losses_R = F.cross_entropy(logits_RC, wanted_R, reduction="none", label_smoothing=self.label_smoothing)
        right_R = (logits_RC.argmax(-1) == label_R).float()
        total = (losses_R * weight_R).sum()
        mean = Mean(float(in_float64(total)), self.weight(batch))
        return Loss(total, {"loss": mean, "accuracy": Mean.of(right_R)})

    def _weights(self, label_R: Tensor) -> Tensor:
        """(R,) 0 for a label that is not known."""
        known_R = (label_R >= 0).float()
        if self.class_weights == "none":
            return known_R
        total, classes = sum(self.counts), len(self.counts)
        weight_C = torch.tensor([total / (classes * n) if n else 0.0 for n in self.counts], device=label_R.device)
        return weight_C[label_R.clamp_min(0).long()] * known_R
