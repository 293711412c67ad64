"""Prompts are computed block by block, and the beginning of a prompt that is still in memory is not computed again.

Between two blocks the worker can serve others or give the request up. Blocks always begin at multiples of the same
number, and only whole blocks are reused, so a prompt's logits are the same to the last bit whether its beginning was
found or computed.

Shapes: C key-value heads, T tokens, D head size.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from luthier.models.decode import evaluating
from luthier.serve.models import ServedModel

Row = list[tuple[Tensor, Tensor]]
"""Keys and values of one prompt, layer by layer, each (C, T, D)."""


class PrefixStore:
    """Keys and values of recent prompts: a system prompt that requests share is computed once."""

    def __init__(self, block: int, max_tokens: int) -> None:
        self._block, self._max_tokens = block, max_tokens
        self._entries: list[tuple[ServedModel, tuple[int, ...], Row]] = []  # the most recently used last

    def find(self, model: ServedModel, ids: Sequence[int]) -> tuple[Row, int] | None:
        """The row of this model that shares most with `ids`, and how many of its tokens to take: not all."""
        best, longest = -1, 0
        for i, (owner, known, _) in enumerate(self._entries):
            n = _shared(known, ids) if owner is model else 0
            if n > longest:
                best, longest = i, n
        length = min(longest, len(ids) - 1) // self._block * self._block
        if length == 0:
            return None
        self._entries.append(self._entries.pop(best))
        return self._entries[-1][2], length

    def add(self, model: ServedModel, ids: tuple[int, ...], row: Row) -> None:
        """Keep a prompt; the least recently used ones make room."""
        if not self._block < len(ids) <= self._max_tokens:
            return
        # it contains these
        self._entries = [e for e in self._entries if e[0] is not model or ids[: len(e[1])] != e[1]]
        self._entries.append((model, ids, row))
        while sum(len(known) for _, known, _ in self._entries) > self._max_tokens:
            self._entries.pop(0)

    def forget(self, model: ServedModel) -> None:
        """Let go of all prompts of a model."""
        self._entries = [entry for entry in self._entries if entry[0] is not model]


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix."""
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n


class Prefill:
    """One prompt on its way."""

    def __init__(self, served: ServedModel, ids: tuple[int, ...], block: int, store: PrefixStore) -> None:
        """`ids` without the model's virtual tokens."""
        self.served, self.ids = served, (*served.before, *ids)
        self._block, self._store = block, store
        self._done = 0
        # without the model's settings all layers keep every token; the mask sees to sliding windows
        self._cache = DynamicCache()
        found = store.find(served, self.ids)
        if found is not None:
            row, self._done = found
            for index, (keys, values) in enumerate(row):
                self._cache.update(keys[None, :, : self._done], values[None, :, : self._done], index)

    def advance(self) -> Tensor | None:
        """Compute one block; returns the (V,) logits after the prompt when it was the last."""
        end = min(len(self.ids), self._done + self._block)
        model: Any = self.served.loaded.model
        device = self.served.loaded.device
        with evaluating(model):
            out = model(
                input_ids=torch.tensor([self.ids[self._done : end]], device=device),
                position_ids=torch.arange(self._done, end, device=device)[None],
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )
        self._done = end
        logits: Tensor = out.logits[0, -1]
        return logits if end == len(self.ids) else None

    def row(self) -> Row:
        """What was computed; the prompt is kept for later ones."""
        row = [(layer.keys[0], layer.values[0]) for layer in self._cache.layers]
        self._store.add(self.served, self.ids, row)
        return row
