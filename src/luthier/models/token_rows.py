"""Rows that train in the place of some of a frozen embedding's and head's: what new tokens are read and written as.

    embedding: e_i = rows_i for the tokens i that train, else E_i        head: logit_i = h . W_i + h . (rows_i - W_i)

The rows are float32, and there are as many of them as tokens. What they have moved is 0 at first, so that logits are
the base's bit by bit, and exact in bfloat16 while it is small. The adapters' side is `adapters/_tokens.py`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from luthier.models.kernels.head import Moved, add_moved


class TokenRows(nn.Module):
    """What trains, and the ids that it stands for."""

    ids: Tensor

    def __init__(self, ids: Sequence[int], start: Tensor) -> None:
        """`start`: (tables, tokens, width): of the embedding, and of the head where that is another matrix."""
        super().__init__()
        self.rows = nn.Parameter(start)
        self.register_buffer("ids", torch.tensor(list(ids), device=start.device), persistent=False)
        self.enabled = True


class EmbeddingWithRows(nn.Module):
    """A frozen embedding and the rows that stand in for some of its own."""

    def __init__(self, base: nn.Embedding, tokens: TokenRows) -> None:
        super().__init__()
        self.base, self.tokens = base, tokens

    @property
    def weight(self) -> Tensor:
        """The frozen matrix."""
        return self.base.weight

    @property
    def num_embeddings(self) -> int:
        """Rows of the matrix."""
        return self.base.num_embeddings

    def forward(self, ids: Tensor) -> Tensor:
        """(...) ids -> (..., width)"""
        out: Tensor = self.base(ids)
        if not self.tokens.enabled:
            return out
        matches = ids.flatten()[:, None] == self.tokens.ids
        places = matches.any(1).nonzero()[:, 0]
        if not len(places):
            return out
        given = self.tokens.rows[0][matches[places].int().argmax(1)].to(out.dtype)
        return out.flatten(0, -2).index_copy(0, places, given).view(out.shape)


class HeadWithRows(nn.Module):
    """A frozen head and the rows that stand in for some of its own."""

    def __init__(self, base: nn.Linear, tokens: TokenRows) -> None:
        super().__init__()
        self.base = base
        self._tokens = (tokens,)  # a module of the embedding: its rows are named once
        self.in_features, self.out_features = base.in_features, base.out_features

    @property
    def weight(self) -> Tensor:
        """The frozen matrix."""
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        """The head's own."""
        return self.base.bias

    def moved(self) -> Moved | None:
        """Which logits the rows change, and by what; None while they are off."""
        (tokens,) = self._tokens
        return (tokens.ids, tokens.rows[-1] - self.base.weight[tokens.ids]) if tokens.enabled else None

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., width) -> (..., vocabulary)"""
        return add_moved(self.base(hidden), hidden, self.moved())
