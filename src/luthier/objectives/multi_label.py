"""Several labels for a text, or none: each label c by itself, with a number z_c of the head.

    loss = - 1/C sum_c ( v_c y_c log sigmoid(z_c) + (1 - y_c) log sigmoid(-z_c) )        weight: rows

y_c is 1 where the row has label c. Where labels are balanced v_c = (n - n_c) / n_c, of n rows n_c with the label, at
most 100: having a label then counts as much as not having it. A head of zeros begins at ln 2 where v is 1. Left out:
that labels depend on one another.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F

from luthier.data.templates import Template
from luthier.examples import Conversation, Example, Row
from luthier.models.forest import Batch
from luthier.objectives._labeled import Labeled, OfWhole, asked_row, labels_of, stacked
from luthier.objectives.base import Loss, Mean, Models

KIND = "multi_label"
"""Of the head."""
MOST = 100.0


class MultiLabel(OfWhole, Labeled):
    """Learn which labels a text has."""

    kind: ClassVar[str] = KIND

    positive_weights: Literal["none", "balanced"] = "none"
    """`balanced`: that a row has a label counts the more the fewer rows have it."""
    weights: tuple[float, ...] = ()
    """Of having each label, in the order of `labels`; absent: as `positive_weights` says."""

    def said(self, example: Example) -> Sequence[str]:
        """All that the row has."""
        return labels_of(example)

    def learned(self, examples: Sequence[Example]) -> Self:
        """With the labels of the training rows, and their weights where they are weighed."""
        found = super().learned(examples)
        if self.positive_weights == "none" or found.weights:
            return found
        counts = dict.fromkeys(found.labels, 0)
        for example in examples:
            for label in labels_of(example):
                counts[label] += 1
        weights = tuple(min(MOST, (len(examples) - n) / n) if n else 1.0 for n in counts.values())
        return found.model_copy(update={"weights": weights})

    def rows(self, example: Example, template: Template) -> tuple[Row, ...]:
        """What was asked, with 1 for each label that it has."""
        assert isinstance(example, Conversation)
        has = frozenset(labels_of(example))
        values = {f"label {number}": float(label in has) for number, label in enumerate(self.named())}
        row = asked_row(example, template, self.input)
        return (Row(row.ids, row.loss_mask, row.id, values),)

    def loss(self, models: Models, batch: Batch) -> Loss:
        """Summed cross-entropy of the rows' labels."""
        logits_RC = models.policy.head_values(batch).rows_RO
        wanted_RC = stacked(batch, "label", logits_RC.shape[1]).to(logits_RC.dtype)
        weight_C = torch.tensor(self.weights, dtype=logits_RC.dtype, device=logits_RC.device) if self.weights else None
        losses_RC = F.binary_cross_entropy_with_logits(logits_RC, wanted_RC, reduction="none", pos_weight=weight_C)
        losses_R = losses_RC.mean(1)
        right_R = ((logits_RC > 0) == (wanted_RC > 0)).all(1).float()
        return Loss(losses_R.sum(), {"loss": Mean.of(losses_R), "all_right": Mean.of(right_R)})
