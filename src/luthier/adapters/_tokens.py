"""Rows of embedding and head that train beside the frozen matrices (`models/token_rows.py`), as an adapter's tensors.

Where head and embedding are one matrix, both take the same row and stay tied; where they are two, each has a row of its
own, held in one tensor. Files are in the layout of peft's `trainable_token_indices`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from luthier.errors import ModelError
from luthier.models.new_tokens import tables_of
from luthier.models.packed import replace
from luthier.models.token_rows import EmbeddingWithRows, HeadWithRows, TokenRows

DELTA = "token_adapter.trainable_tokens_delta"
INDICES = "trainable_token_indices"


class InjectedRows:
    """Trained rows inside one model."""

    def __init__(self, model: Any, ids: Sequence[int]) -> None:
        """Put them in; they begin as the rows that they stand in for.

        Raises:
            ModelError: the model has no such tokens, or its tables are not plain ones.
        """
        self.model = model
        self.embedding, self.head, self.tied = tables_of(model)
        if not 0 <= min(ids) <= max(ids) < self.embedding.num_embeddings:
            raise ModelError(
                f"the adapter trains rows of the tokens {min(ids)} to {max(ids)}, and the model has "
                f"{self.embedding.num_embeddings} of them: it was trained with new tokens, which the recipe must name "
                "(adapter.new_tokens)"
            )
        names: dict[nn.Module, str] = {module: name for name, module in model.named_modules()}
        self.names = names[self.embedding], names[self.head]
        tables = (self.embedding,) if self.tied else (self.embedding, self.head)
        self.ids = list(ids)
        start = torch.stack([table.weight.detach()[self.ids] for table in tables])
        self.tokens = TokenRows(ids, start.to(torch.promote_types(start.dtype, torch.float32)))
        replace(model, self.names[0], EmbeddingWithRows(self.embedding, self.tokens))
        replace(model, self.names[1], HeadWithRows(self.head, self.tokens))

    @property
    def trainable(self) -> Mapping[str, nn.Parameter]:
        """The rows, by their name in the model."""
        return {f"{self.names[0]}.tokens.rows": self.tokens.rows}

    @property
    def _in_files(self) -> tuple[str, ...]:
        return tuple(f"{name}.{DELTA}" for name in self.names[: len(self.tokens.rows)])

    def settings(self) -> dict[str, Any]:
        """What peft's settings say of them."""
        if self.tied:
            return {INDICES: self.ids}
        return {INDICES: {name.rpartition(".")[2]: self.ids for name in self.names}}

    def file_tensors(self) -> dict[str, Tensor]:
        """(tokens, width) of each table, as peft calls them behind its prefix."""
        return dict(zip(self._in_files, self.tokens.rows, strict=True))

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the rows from such tensors."""
        self.tokens.rows.copy_(torch.stack([tensors[name] for name in self._in_files]))

    @torch.no_grad()
    def merge(self) -> None:
        """Write the rows into the matrices, and put these back."""
        matrices = (self.embedding.weight, self.head.weight)[: len(self.tokens.rows)]
        for matrix, rows in zip(matrices, self.tokens.rows, strict=True):
            matrix[self.ids] = rows.to(matrix.dtype)
        replace(self.model, self.names[0], self.embedding)
        replace(self.model, self.names[1], self.head)


def ids_of(config: Mapping[str, Any], model: Any) -> tuple[int, ...]:
    """The tokens that an artifact has rows for; none if it has no rows.

    Raises:
        ModelError: it trains rows of one of two tables alone, or not the same of both.
    """
    given = config.get(INDICES)
    if not given:
        return ()
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    lists = list(given.values()) if isinstance(given, dict) else [given]
    if any(ids != lists[0] for ids in lists) or not (tied or len(lists) == 2):
        raise ModelError(
            f"{INDICES} = {given}: rows of embedding and head are trained together here, the same of both; merge this "
            "adapter into its base with peft"
        )
    return tuple(lists[0])
