"""An encoder that trains: texts, or pairs of texts, of a batch to vectors or scores, as an objective asks for them.

    v(t) = m / |m|,   m = sum of h_i over the tokens i of t          (the mean's direction; Reimers and Gurevych 2019)

Every token of an encoder sees all others of its row, so rows share nothing, and a forest's spans are not used: rows of
about the same length are computed together, padded, and equal rows once. What is served pads and pools by the same two
functions (`rag/embedder.py`), so that what is trained is what is searched with.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.errors import ModelError
from luthier.examples import Row
from luthier.models.attention import attending
from luthier.models.forest import Batch, HeadValues, TokenScores

SEGMENT = "segment"
"""Token values of a row that is a pair of texts: 0 for those of the first, 1 for those of the second."""
PADDED = 0.75
"""Rows computed together have at least this share of the tokens of the longest: at most a quarter is padding."""


def padded(ids: Sequence[Sequence[int]], fill: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(B, T) token ids, filled up on the right, and (B, T) 1 where there is a token."""
    longest = max(map(len, ids))
    ids_BT = torch.full((len(ids), longest), fill)
    mask_BT = torch.zeros((len(ids), longest), dtype=torch.long)
    for row, one in enumerate(ids):
        ids_BT[row, : len(one)] = torch.tensor(one)
        mask_BT[row, : len(one)] = 1
    return ids_BT.to(device), mask_BT.to(device)


def pooled(hidden_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """(B, D) the mean over tokens, of length 1."""
    # the length that is divided by does not change the direction, so the sum does as well as the mean
    return F.normalize((hidden_BTD * mask_BT[:, :, None]).sum(1), dim=-1)


def without_dropout(model: nn.Module) -> None:
    """Let an encoder compute in training what it computes when it answers.

    The vectors of a step are computed twice, once to compare all of them and once for the gradient, and must be the
    same: random numbers would make them others, and others again where the step is cut up otherwise.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


class EncoderScorer:
    """Vectors and scores of rows under one encoder, in whatever state its adapter is.

    Args:
        model: `AutoModel`, for vectors, or `AutoModelForSequenceClassification` with one number, for scores.
        fill: the id of the padding token.
    """

    def __init__(self, model: Any, fill: int) -> None:
        self.model, self._fill = model, fill
        self._attention: str = model.config._attn_implementation

    def vectors(self, batch: Batch) -> Tensor:
        """(R, D) a vector of length 1 for each row."""
        return self._of_rows(batch, self._vectors)

    def scores(self, batch: Batch) -> Tensor:
        """(R,) the number of each row."""
        return self._of_rows(batch, self._scores)

    def at(self, temperature: float) -> "EncoderScorer":
        """The same: nothing is sampled from an encoder."""
        return self

    def token_logprobs(self, batch: Batch) -> Tensor:
        """Refused."""
        self._predicts_nothing()

    def token_scores(self, batch: Batch) -> TokenScores:
        """Refused."""
        self._predicts_nothing()

    def logits(self, batch: Batch) -> Tensor:
        """Refused."""
        self._predicts_nothing()

    def head_values(self, batch: Batch) -> HeadValues:
        """Refused."""
        self._predicts_nothing()

    def logprobs_and_values(self, batch: Batch) -> tuple[Tensor, HeadValues]:
        """Refused."""
        self._predicts_nothing()

    def _predicts_nothing(self) -> NoReturn:
        raise ModelError(
            f"{type(self.model).__name__} is an encoder and predicts no token; what was asked for (an objective over "
            "replies, adapter.init = 'eva') needs a model that writes"
        )

    def _of_rows(self, batch: Batch, compute: Callable[[Sequence[Row], torch.device], Tensor]) -> Tensor:
        """What `compute` makes of the rows, in their order; of equal ones once."""
        place: dict[tuple[int, ...], int] = {}
        distinct: list[Row] = []
        for row in batch.rows:
            if row.ids not in place:
                place[row.ids] = len(distinct)
                distinct.append(row)
        parts, order = [], []
        with attending(self.model, self._attention):  # the loop lets models attend over forests
            for places in _alike([len(row.ids) for row in distinct]):
                parts.append(compute([distinct[at] for at in places], batch.forest.ids_N.device))
                order += places
        where = {at: number for number, at in enumerate(order)}
        found: Tensor = torch.cat(parts)[[where[place[row.ids]] for row in batch.rows]]
        return found

    def _vectors(self, rows: Sequence[Row], device: torch.device) -> Tensor:
        ids_BT, mask_BT = padded([row.ids for row in rows], self._fill, device)
        return pooled(self.model(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state, mask_BT)

    def _scores(self, rows: Sequence[Row], device: torch.device) -> Tensor:
        ids_BT, mask_BT = padded([row.ids for row in rows], self._fill, device)
        segments = {}
        if SEGMENT in rows[0].token_values:
            told = [[int(number) for number in row.token_values[SEGMENT]] for row in rows]
            segments = {"token_type_ids": padded(told, 0, device)[0]}
        logits_BO: Tensor = self.model(input_ids=ids_BT, attention_mask=mask_BT, **segments).logits
        return logits_BO[:, 0]


def _alike(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Places in groups of about the same length, the longest first."""
    group: list[int] = []
    for at in sorted(range(len(lengths)), key=lambda at: -lengths[at]):
        if group and lengths[at] < PADDED * lengths[group[0]]:
            yield group
            group = []
        group.append(at)
    if group:
        yield group
