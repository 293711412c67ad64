"""Contrastive learning of an embedder: the vector of a question nearer to its passage than to all others of the step.

    loss(q) = - log  exp(q . p+ / t) / sum over p of exp(q . p / t)          (InfoNCE: van den Oord et al. 2018,
                                                                              arXiv:1807.03748, equation 4)

The sum goes over p+ and every passage that the step holds, those of other questions too (Karpukhin et al. 2020,
arXiv:2004.04906, section 3.2), but for those that answer q: a passage that two questions share is no wrong answer to
either. Each distinct passage counts once, however many questions bring it. All vectors have length 1, t is the
`temperature`, and the best step is the one with the highest MRR@10 of the validation questions.

So the loss compares all rows of a step, and no micro-batch holds them. `whole_step` computes every vector without a
graph, and the loss's gradient g with respect to each (Gao et al. 2021, arXiv:2101.06983); a micro-batch then computes
its vectors v once more, and the gradient of sum g . v is its exact share. A step may hold any number of rows.

Shapes: R rows, Q questions, P distinct passages, D numbers of a vector. Left out: margins, triplets, and the loss of
passages that are to find their questions.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from luthier.examples import Row
from luthier.models.forest import Batch
from luthier.objectives._retriever import (
    DEPTH,
    PASSAGE,
    POSITIVE,
    EmbedderObjective,
    Singles,
    Sought,
    encoder_of,
    questions_of,
    ranges,
    rights,
    text_row,
    told,
)
from luthier.objectives.base import Loss, Mean, Memory, Models, with_value

GRADIENT, SHARE, RANK = "gradient", "share", "rank"
"""What `whole_step` tells of each row: (D,) of the loss by its vector; of a question its loss, and its right passage's
rank."""


class Contrastive(EmbedderObjective):
    """Learn vectors of questions and passages from those that belong together."""

    least_per_step: ClassVar[int] = 2

    temperature: float = Field(0.05, gt=0)
    """What cosines are divided by: the lower, the more the hardest wrong passages count."""

    def training(self, sought: Sequence[Sought], texts: Singles) -> list[tuple[Row, ...]]:
        """The question, its passage, and `negatives` wrong ones."""
        most = _most(sought)
        units: list[tuple[Row, ...]] = []
        for one in sought:
            passages = (one.positive, *one.wrong[: self.negatives])
            units.append((_question(one, most, texts), *(_passage(number, most, texts) for number in passages)))
        return units

    def validating(self, sought: Sequence[Sought], pool: Sequence[int], texts: Singles) -> list[tuple[Row, ...]]:
        """Each question and each passage of the pool by itself."""
        most = _most(sought)
        rows = [_question(one, most, texts) for one in sought] + [_passage(number, most, texts) for number in pool]
        return [(row,) for row in rows]

    def weight(self, batch: Batch) -> float:
        """Number of questions."""
        return float(questions_of(batch).sum())

    def whole_step(self, models: Models, batches: Iterable[Batch], memory: Memory) -> list[Batch]:
        """The batches with each row's gradient, and each question's loss and rank."""
        held = list(batches)
        vectors = [encoder_of(models).vectors(batch) for batch in held]
        step = _Step(held)
        with torch.enable_grad():
            vectors_RD = torch.cat(vectors).requires_grad_()
            losses_Q, ranks_Q = step.compare(vectors_RD, self.temperature)
            gradient_RD = torch.autograd.grad(losses_Q.sum(), vectors_RD)[0]
        told_R = {GRADIENT: gradient_RD, SHARE: step.of_rows(losses_Q.detach()), RANK: step.of_rows(ranks_Q)}
        for name, values_R in told_R.items():
            parts = values_R.split([batch.row_count for batch in held])
            held = [with_value(batch, name, part) for batch, part in zip(held, parts, strict=True)]
        return held

    def loss(self, models: Models, batch: Batch) -> Loss:
        """Summed loss of the batch's questions; its gradient is that of the whole step's loss by the batch's rows."""
        vectors_RD = encoder_of(models).vectors(batch)
        pull = (batch.values_R[GRADIENT] * (vectors_RD - vectors_RD.detach())).sum()  # 0, but its gradient is not
        return Loss(batch.values_R[SHARE].sum() + pull, _found(batch))

    def validation(self, models: Models, batch: Batch) -> Loss:
        """1 - MRR@10, summed over questions."""
        found = _found(batch)
        missed = 1 - _reciprocal(batch)
        return Loss(missed.sum(), {**found, "contrastive_loss": Mean.of(batch.values_R[SHARE][questions_of(batch)])})


def _most(sought: Sequence[Sought]) -> int:
    return max((len(ranges(one.right)) for one in sought), default=0)


def _question(one: Sought, most: int, texts: Singles) -> Row:
    return text_row(texts.question(one.question), f"{one.id}/question", told(most, one.positive, one.right))


def _passage(number: int, most: int, texts: Singles) -> Row:
    return text_row(texts.passage(number), f"passage {number}", told(most, passage=number))


@dataclass(frozen=True)
class _Columns:
    """The distinct passages of a step."""

    rows_P: Tensor
    """The first row that holds each."""
    column_of: dict[int, int]
    """By number; passages with the same tokens have one column."""


class _Step:
    """The rows of all micro-batches of a step, as one list."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        names = batches[0].values_R
        self.values_R = {name: torch.cat([batch.values_R[name] for batch in batches]) for name in names}
        self.rows = [row for batch in batches for row in batch.rows]
        self.device = batches[0].row_K.device
        self.questions_Q = torch.nonzero(self.values_R[POSITIVE] >= 0)[:, 0]

    def columns(self) -> _Columns:
        """The distinct passages, in the order of their tokens: the order of rows shall not decide how sums round."""
        numbers = self.values_R[PASSAGE].tolist()
        first: dict[tuple[int, ...], int] = {}
        for at, row in enumerate(self.rows):
            if numbers[at] >= 0:
                first.setdefault(row.ids, at)
        column = {ids: place for place, ids in enumerate(sorted(first))}
        column_of = {int(numbers[at]): column[row.ids] for at, row in enumerate(self.rows) if numbers[at] >= 0}
        return _Columns(torch.tensor([first[ids] for ids in column], device=self.device, dtype=torch.long), column_of)

    def compare(self, vectors_RD: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """(Q,) the loss of each question, and the rank of the first passage that answers it; both 0 of a question whose
        passage is not in the step."""
        columns = self.columns()
        count = len(columns.rows_P)
        positives = [columns.column_of.get(int(n), count) for n in self.values_R[POSITIVE][self.questions_Q].tolist()]
        positive_Q = torch.tensor(positives, device=self.device, dtype=torch.long)
        there_Q = positive_Q < count
        # one column more, which no passage has: what a question without its passage is said to find there
        cosines_QP = vectors_RD[self.questions_Q] @ vectors_RD[columns.rows_P].T
        cosines_QP = torch.cat([cosines_QP, cosines_QP.new_zeros(len(cosines_QP), 1)], dim=1)
        right_QP = self._right(columns, count)
        others_QP = right_QP.scatter(1, positive_Q[:, None], False)
        others_QP[:, count] = there_Q
        losses_Q = F.cross_entropy(
            cosines_QP.masked_fill(others_QP, -torch.inf) / temperature, positive_Q, reduction="none"
        )
        right_QP = right_QP.scatter(1, positive_Q[:, None], True)
        best_Q = cosines_QP.detach().masked_fill(~right_QP, -torch.inf).amax(1)
        right_QP[:, count] = True
        before_QP = (
            cosines_QP.detach() >= best_Q[:, None]
        ) & ~right_QP  # of equally near ones the right one comes last
        ranks_Q = 1 + before_QP.sum(1)
        return torch.where(there_Q, losses_Q, 0.0), torch.where(there_Q, ranks_Q, 0).to(vectors_RD.dtype)

    def _right(self, columns: _Columns, count: int) -> Tensor:
        """(Q, P + 1) whether a passage answers a question, as far as is known."""
        numbers = list(columns.column_of)
        values_Q = {name: values_R[self.questions_Q] for name, values_R in self.values_R.items()}
        right_QN = rights(values_Q, torch.tensor(numbers, device=self.device))
        places_N = torch.tensor([columns.column_of[n] for n in numbers], device=self.device, dtype=torch.long)
        found_QP = torch.zeros(len(right_QN), count + 1, device=self.device)
        return found_QP.index_add(1, places_N, right_QN.float()) > 0

    def of_rows(self, values_Q: Tensor) -> Tensor:
        """(R,) a question's value; 0 of passages."""
        return values_Q.new_zeros(len(self.rows)).index_copy(0, self.questions_Q, values_Q)


def _reciprocal(batch: Batch) -> Tensor:
    """(Q,) 1 / rank of each question, 0 beyond DEPTH."""
    rank_Q = batch.values_R[RANK][questions_of(batch)]
    return torch.where((rank_Q > 0) & (rank_Q <= DEPTH), 1 / rank_Q, 0.0)


def _found(batch: Batch) -> dict[str, Mean]:
    """How the batch's questions find their passages among those of the step."""
    rank_Q = batch.values_R[RANK][questions_of(batch)]
    return {
        "mrr": Mean.of(_reciprocal(batch)),
        "recall_at_1": Mean.of((rank_Q == 1).float()),
        "recall_at_5": Mean.of(((rank_Q > 0) & (rank_Q <= 5)).float()),
    }
