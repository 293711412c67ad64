"""A reranker: a cross-encoder's numbers for a question beside each of some passages, the right one to be the highest.

    listwise    loss = - log  exp(s+) / sum over c of exp(s_c)        c: the right passage and the wrong ones beside it
                                                                        (Cao et al. 2007, ListNet's top-one loss)
    pointwise   loss = - log sigmoid(s+) - sum of log sigmoid(- s_c) over the wrong ones, by the length of the list
                                                                        (Nogueira and Cho 2019, arXiv:1901.04085)

`listwise` learns an order alone: what a number means beside those of another question is left open. `pointwise` makes
sigmoid(s) the probability that a passage answers, at the rate of right passages that the lists have. Lists are of the
passages that the search of `[retrieval]` finds, since these are what a reranker will be shown. The best step is the one
with the highest MRR@10 over what the search finds for validation questions, where a right passage that the search
missed counts as missed.

Shapes: R rows, each a question beside one passage; L lists, whose rows follow one another.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from luthier.examples import Row
from luthier.models.forest import Batch
from luthier.objectives._retriever import DEPTH, Pairs, RerankerObjective, Sought, encoder_of, pair_row
from luthier.objectives.base import Loss, Mean, Models

FIRST, RIGHT = "first", "right"
"""Values of rows: 1 for the first of a list; 1 for a passage that answers."""


class Rerank(RerankerObjective):
    """Learn which of the passages that a search finds answers the question."""

    negatives: int = Field(7, ge=1)
    """Wrong passages beside each right one: those that the search of `[retrieval]` ranks highest."""
    validation_passages: int = Field(10, ge=2)
    """How many passages that the search ranks highest are put into order for each validation question."""
    penalty: Literal["listwise", "pointwise"] = "listwise"
    """`listwise` compares the passages of a question, `pointwise` judges each by itself."""

    def training(self, sought: Sequence[Sought], texts: Pairs) -> list[tuple[Row, ...]]:
        """The question beside its passage, then beside wrong ones; a question without a wrong one teaches nothing."""
        return [_list(one, (one.positive, *one.wrong[: self.negatives]), texts) for one in sought if one.wrong]

    def validating(self, sought: Sequence[Sought], pool: Sequence[int], texts: Pairs) -> list[tuple[Row, ...]]:
        """The question beside what the search finds."""
        return [_list(one, one.found[: self.validation_passages], texts) for one in sought if one.found]

    def weight(self, batch: Batch) -> float:
        """Number of lists."""
        return float(batch.values_R[FIRST].sum())

    def loss(self, models: Models, batch: Batch) -> Loss:
        """Summed loss of the lists."""
        scores_R = encoder_of(models).scores(batch)
        lists_R, right_R = _lists(batch), batch.values_R[RIGHT] > 0
        if self.penalty == "listwise":
            losses_L = -_log_shares(scores_R, lists_R)[right_R]
        else:
            each_R = F.binary_cross_entropy_with_logits(scores_R, right_R.to(scores_R.dtype), reduction="none")
            losses_L = _sums(each_R, lists_R) / _sums(torch.ones_like(each_R), lists_R)
        return Loss(losses_L.sum(), {"loss": Mean.of(losses_L), **_found(scores_R.detach(), lists_R, right_R)})

    def validation(self, models: Models, batch: Batch) -> Loss:
        """1 - MRR@10, summed over lists."""
        scores_R = encoder_of(models).scores(batch)
        found = _found(scores_R, _lists(batch), batch.values_R[RIGHT] > 0)
        missed = scores_R.new_tensor(found["mrr"].count - found["mrr"].total)
        return Loss(missed, found)


def _list(one: Sought, numbers: Sequence[int], texts: Pairs) -> tuple[Row, ...]:
    def row(place: int, number: int) -> Row:
        values = {FIRST: float(place == 0), RIGHT: float(number in one.right)}
        return pair_row(*texts.pair(one.question, number), f"{one.id}/{place}", values)

    return tuple(row(place, number) for place, number in enumerate(numbers))


def _lists(batch: Batch) -> Tensor:
    """(R,) the number of each row's list."""
    return batch.values_R[FIRST].cumsum(0).long() - 1


def _sums(values_R: Tensor, lists_R: Tensor) -> Tensor:
    """(L,)"""
    return values_R.new_zeros(int(lists_R[-1]) + 1).index_add(0, lists_R, values_R)


def _log_shares(scores_R: Tensor, lists_R: Tensor) -> Tensor:
    """(R,) log softmax over the rows of each list."""
    count = int(lists_R[-1]) + 1
    top_L = scores_R.detach().new_full((count,), -torch.inf).scatter_reduce(0, lists_R, scores_R.detach(), "amax")
    shifted_R = scores_R - top_L[lists_R]
    return shifted_R - _sums(shifted_R.exp(), lists_R).log()[lists_R]


def _found(scores_R: Tensor, lists_R: Tensor, right_R: Tensor) -> dict[str, Mean]:
    """How high the first right passage of each list stands; of equal numbers the right one comes last."""
    count = int(lists_R[-1]) + 1
    best_L = scores_R.new_full((count,), -torch.inf)
    best_L = best_L.scatter_reduce(0, lists_R[right_R], scores_R[right_R], "amax")
    ranks_L = 1 + _sums(((scores_R >= best_L[lists_R]) & ~right_R).float(), lists_R)
    there_L = best_L > -torch.inf
    reciprocal_L = torch.where(there_L & (ranks_L <= DEPTH), 1 / ranks_L, 0.0)
    return {"mrr": Mean.of(reciprocal_L), "recall_at_1": Mean.of((there_L & (ranks_L == 1)).float())}
