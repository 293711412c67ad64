"""The keys and values of a batch that rows join and leave between any two tokens.

All rows end at the same column; a shorter row begins further right, and a mask hides what lies before it. Rows join by
being copied into place and leave by letting the last row take theirs, so that nothing is recomputed and nobody waits
for the longest answer. Buffers grow in blocks: appending a token copies one column, not the whole cache.

Shapes: B rows, H key-value heads, C columns, D head size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

BLOCK = 256
"""Columns are added this many at a time."""


@dataclass
class _Window:
    """Which part of the buffers is in use; one for all layers."""

    rows: int
    first: int
    end: int
    row_capacity: int
    column_capacity: int


class _Layer(CacheLayerMixin):
    """One layer's buffers, (row_capacity, H, column_capacity, D), made when the first keys arrive."""

    is_sliding = False
    is_croppable = False

    def __init__(self, window: _Window) -> None:
        super().__init__()
        self.window = window

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make room of the kind of the first keys and values."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = (self._zeros(x) for x in (key_states, value_states))
        self.is_initialized = True

    def _zeros(self, like: Tensor) -> Tensor:
        # zeros: a masked column still takes part in 0 * value, and uninitialized memory may hold NaN
        shape = (self.window.row_capacity, like.shape[1], self.window.column_capacity, like.shape[3])
        return torch.zeros(shape, dtype=like.dtype, device=like.device)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write behind the last column; returns (B, H, C, D) views of all columns in use."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        w, n = self.window, key_states.shape[2]
        self.keys[: w.rows, :, w.end : w.end + n] = key_states
        self.values[: w.rows, :, w.end : w.end + n] = value_states
        used = (slice(0, w.rows), slice(None), slice(w.first, w.end + n))
        return self.keys[used], self.values[used]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(columns that a query of this length sees, offset of the first)."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """Columns in use."""
        return self.window.end - self.window.first

    def get_max_length(self) -> int:
        """No maximum."""
        return -1

    def resize(self, old: _Window, new: _Window) -> None:
        """Copy what is in use under `old` to its place under `new`."""
        self.window = new
        if not self.is_initialized:
            return
        for name, buffer in (("keys", self.keys), ("values", self.values)):
            bigger = self._zeros(buffer)
            width = old.end - old.first
            bigger[: old.rows, :, new.end - width : new.end] = buffer[: old.rows, :, old.first : old.end]
            self.keys, self.values = (bigger, self.values) if name == "keys" else (self.keys, bigger)


Row = list[tuple[Tensor, Tensor]]
"""Keys and values of one row, layer by layer, each (H, C, D); a layer that keeps none of its own has empty ones."""


class KeyValues(Cache):
    """The cache of a batch, as `transformers` models take it."""

    def __init__(self, layers: int, rows: int = 0) -> None:
        self._window = _Window(rows, 0, 0, max(rows, 1), BLOCK)
        super().__init__(layers=[_Layer(self._window) for _ in range(layers)])
        self.starts: list[int] = [0] * rows

    @property
    def rows(self) -> int:
        """Rows in the batch."""
        return self._window.rows

    @property
    def width(self) -> int:
        """Columns in use: the length of the longest row."""
        return self._window.end - self._window.first

    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [self._window.end - start for start in self.starts]

    def mask(self, new: int) -> Tensor | None:
        """(B, width + new) True where a row has a token; None if every row fills every column."""
        w = self._window
        if all(start == w.first for start in self.starts):
            return None
        columns = torch.arange(w.first, w.end + new)
        return columns[None, :] >= torch.tensor(self.starts)[:, None]

    def reserve(self, new: int) -> None:
        """Make room for `new` more columns; to be called before the model writes them."""
        w = self._window
        if w.end + new > w.column_capacity:
            self._resize(w.row_capacity, _blocks(self.width + new), self.width)

    def advance(self, new: int) -> None:
        """The model has written `new` columns in every row."""
        self._window.end += new

    def load(self, row: Row, length: int) -> None:
        """Put the first `length` columns of `row` into this cache, which must have one row and no columns."""
        self.reserve(length)
        self._write(0, row, 0, length)
        self.advance(length)

    def row(self, index: int) -> Row:
        """Copies of one row's keys and values."""
        return [
            (x.keys[index, :, start:end].clone(), x.values[index, :, start:end].clone())
            if x.is_initialized
            else _NOTHING
            for x in self.layers
            for start, end in [(self.starts[index], self._window.end)]
        ]

    def append(self, row: Row) -> None:
        """Let one row join, its last token in the last column."""
        n = max(keys.shape[1] for keys, _ in row)
        w = self._window
        if w.rows == 0:
            w.first = w.end
        rows = w.row_capacity if w.rows < w.row_capacity else 2 * w.row_capacity
        end = max(self.width, n)
        if rows != w.row_capacity or n > w.end or w.end >= w.column_capacity:
            self._resize(rows, _blocks(end + 1), end)
            w = self._window
        w.rows += 1
        self._write(w.rows - 1, row, w.end - n, n)
        self.starts.append(w.end - n)
        w.first = min(self.starts)

    def drop(self, index: int) -> None:
        """Let one row leave; the last row takes its place."""
        w = self._window
        last = w.rows - 1
        if index != last:
            for layer in self.layers:
                if layer.is_initialized:
                    layer.keys[index] = layer.keys[last]
                    layer.values[index] = layer.values[last]
            self.starts[index] = self.starts[last]
        self.starts.pop()
        w.rows -= 1
        w.first = min(self.starts, default=w.end)

    def _write(self, index: int, row: Row, at: int, n: int) -> None:
        for layer, (keys, values) in zip(self.layers, row, strict=True):
            if not keys.numel():
                continue
            if not layer.is_initialized:
                layer.lazy_initialization(keys[None], values[None])
            for buffer, new in ((layer.keys, keys), (layer.values, values)):
                buffer[index, :, :at] = 0  # whoever was here before may have left NaN behind
                buffer[index, :, at : at + n] = new[:, :n]

    def _resize(self, rows: int, columns: int, end: int) -> None:
        old = self._window
        width = old.end - old.first
        self._window = _Window(old.rows, end - width, end, rows, columns)
        for layer in self.layers:
            layer.resize(old, self._window)
        shift = self._window.end - old.end
        self.starts = [start + shift for start in self.starts]


_NOTHING = (torch.zeros(0, 0, 0), torch.zeros(0, 0, 0))


def _blocks(columns: int) -> int:
    return -(-(columns + BLOCK // 2) // BLOCK) * BLOCK


class PrefixStore:
    """Keys and values of recent prompts, so that a shared system prompt is computed once.

    Only whole blocks of `grid` tokens are reused, and prompts are computed block by block from the start: a prompt's
    logits are therefore the same to the last bit whether its beginning was found here or not.
    """

    def __init__(self, grid: int, max_tokens: int) -> None:
        self._grid, self._max_tokens = grid, max_tokens
        self._entries: list[tuple[tuple[int, ...], Row]] = []  # the most recently used last

    def find(self, ids: Sequence[int]) -> tuple[Row, int] | None:
        """The stored row that shares most with `ids`, and how many of its tokens to take; at least one is left over."""
        best, shared = -1, 0
        for i, (known, _) in enumerate(self._entries):
            n = _shared(known, ids)
            if n > shared:
                best, shared = i, n
        length = min(shared, len(ids) - 1) // self._grid * self._grid
        if length == 0:
            return None
        self._entries.append(self._entries.pop(best))
        return self._entries[-1][1], length

    def add(self, ids: tuple[int, ...], row: Row) -> None:
        """Keep a prompt; the least recently used ones make room."""
        if len(ids) < self._grid or len(ids) > self._max_tokens:
            return
        self._entries = [e for e in self._entries if ids[: len(e[0])] != e[0]]  # it contains these
        self._entries.append((ids, row))
        while sum(len(known) for known, _ in self._entries) > self._max_tokens:
            self._entries.pop(0)


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n
