"""A batch is a forest: a compressed trie of token spans.

Rows of fine-tuning data share prefixes (a system prompt, the prompt of chosen and rejected replies, the stem of a
multiple-choice question). Each shared span is held and computed once; a token sees the spans above it and, causally,
its own. Positions are depths. Rows that share nothing are single-node trees, which is packing without padding and
without leaks. The result is exact: a shared token's gradient is the sum over the rows that use it.

Shapes: N tokens of the forest; R rows; K trained-on tokens over all rows, row after row; Q distinct predictions
(position, next token); H positions whose logits are needed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from luthier.examples import Row

MIN_SHARED = 16
"""Shorter spans are computed for each row: a shared one saves arithmetic but costs a call."""


@dataclass(frozen=True)
class Forest:
    """Spans in depth-first order. Node i holds tokens starts[i]:ends[i]; parents[i] is -1 for a root."""

    ids_N: Tensor
    positions_N: Tensor
    starts: tuple[int, ...]
    ends: tuple[int, ...]
    parents: tuple[int, ...]

    def path(self, node: int) -> tuple[int, ...]:
        """The nodes from the root down to and including `node`."""
        above: list[int] = []
        while node >= 0:
            above.append(node)
            node = self.parents[node]
        return tuple(reversed(above))


@dataclass(frozen=True)
class Batch:
    """What the engine runs at once."""

    forest: Forest
    rows: tuple[Row, ...]
    """What it was built of."""
    row_K: Tensor
    """(K,) the row of each trained-on token."""
    loss_mask_K: Tensor
    """(K,) float32 weight of each trained-on token, never 0."""
    prediction_K: Tensor
    """(K,) index into the Q distinct predictions."""
    hidden_H: Tensor
    """(H,) forest positions whose logits are needed, ascending."""
    hidden_Q: Tensor
    """(Q,) index into `hidden_H` of the position that makes each prediction."""
    target_Q: Tensor
    """(Q,) the token predicted."""
    logical_tokens: int
    """Sum of the lengths of the rows, shared tokens counted for each row."""
    last_R: Tensor
    """(R,) forest position of the last token of each row."""
    values_R: Mapping[str, Tensor] = field(default_factory=dict)
    """(R,) each: `Row.values` as float32, by name, and what `whole_step` adds."""
    values_K: Mapping[str, Tensor] = field(default_factory=dict)
    """(K,) each: `Row.token_values` of the trained-on tokens as float32, by name, and what `whole_step` adds."""

    @property
    def row_count(self) -> int:
        """R."""
        return len(self.rows)

    @property
    def row_ids(self) -> tuple[str, ...]:
        """The ids of the rows."""
        return tuple(row.id for row in self.rows)

    @property
    def hidden_K(self) -> Tensor:
        """(K,) index into `hidden_H` of the position that predicts each trained-on token."""
        return self.hidden_Q[self.prediction_K]

    def sum_rows(self, values_K: Tensor) -> Tensor:
        """(R,) sums of `values_K` over each row's trained-on tokens."""
        return torch.zeros(self.row_count, dtype=values_K.dtype, device=values_K.device).index_add(
            0, self.row_K, values_K
        )

    def behind(self, ids: Sequence[int]) -> "Batch":
        """The same rows behind tokens that all of them begin with; nothing is trained on among these."""
        forest, count = self.forest, len(ids)
        device = forest.ids_N.device
        longer = Forest(
            ids_N=torch.cat([torch.tensor(ids, device=device), forest.ids_N]),
            positions_N=torch.cat([torch.arange(count, device=device), forest.positions_N + count]),
            starts=(0, *(start + count for start in forest.starts)),
            ends=(count, *(end + count for end in forest.ends)),
            parents=(-1, *(parent + 1 for parent in forest.parents)),
        )
        return replace(self, forest=longer, hidden_H=self.hidden_H + count, last_R=self.last_R + count)

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch with its tensors on `device`."""
        moved = {name: getattr(self, name).to(device) for name in _TENSORS}
        values_R = {name: values.to(device) for name, values in self.values_R.items()}
        values_K = {name: values.to(device) for name, values in self.values_K.items()}
        forest = replace(
            self.forest, ids_N=self.forest.ids_N.to(device), positions_N=self.forest.positions_N.to(device)
        )
        return replace(self, forest=forest, values_R=values_R, values_K=values_K, **moved)


class TokenScores(NamedTuple):
    """What a model makes of the trained-on tokens of a batch, in the order of its `row_K`."""

    logprobs_K: Tensor
    """(K,) log-probabilities; float32 at least."""
    right_K: Tensor
    """(K,) whether each is the likeliest token at its place, the first of equally likely ones; no gradient."""


class HeadValues(NamedTuple):
    """What a head reads from a batch, float32 at least."""

    rows_RO: Tensor
    """(R, outputs) at the last token of each row."""
    tokens_KO: Tensor
    """(K, outputs) at the position that predicts each trained-on token, in the order of `row_K`."""


_TENSORS = ("row_K", "loss_mask_K", "prediction_K", "hidden_H", "hidden_Q", "target_Q", "last_R")


@dataclass(eq=False)
class _Node:
    tokens: np.ndarray
    depth: int
    parent: "_Node | None"
    children: list["_Node"] = field(default_factory=list)
    start: int = -1

    def positions(self) -> np.ndarray:
        """Forest positions of the tokens from the root down to the end of this node."""
        parts: list[np.ndarray] = []
        node: _Node | None = self
        while node is not None:
            parts.append(np.arange(node.start, node.start + len(node.tokens)))
            node = node.parent
        return np.concatenate(parts[::-1])


def _shared(a: np.ndarray, b: np.ndarray) -> int:
    """Length of the common prefix."""
    n = min(len(a), len(b))
    differs = np.flatnonzero(a[:n] != b[:n])
    return int(differs[0]) if len(differs) else n


def _split(node: _Node, at: int, siblings: list[_Node]) -> _Node:
    """Cut `node` in two and return the upper part; the object keeps the lower part, so rows that end at it still do."""
    upper = _Node(node.tokens[:at], node.depth, node.parent, [node])
    siblings[siblings.index(node)] = upper
    node.tokens, node.depth, node.parent = node.tokens[at:], node.depth + at, upper
    return upper


def _insert(roots: list[_Node], tokens: np.ndarray, min_shared: int) -> _Node:
    """Add one row and return the node it ends at. A span is shared only if at least `min_shared` tokens are."""
    siblings, depth = roots, 0
    last: _Node | None = None
    while len(tokens):
        best, shared = None, 0
        for node in siblings:
            n = _shared(node.tokens, tokens)
            if n > shared:
                best, shared = node, n
        if best is None or shared < min(min_shared, len(best.tokens)):
            leaf = _Node(tokens, depth, last)
            siblings.append(leaf)
            return leaf
        if shared < len(best.tokens):
            best = _split(best, shared, siblings)
        last, siblings, tokens, depth = best, best.children, tokens[shared:], depth + shared
    if last is None:
        raise ValueError("a row needs at least one token")
    return last


def _flatten(roots: list[_Node]) -> tuple[list[_Node], list[int]]:
    """Nodes in depth-first order with the index of each one's parent; sets `start` of each node."""
    order: list[_Node] = []
    parents: list[int] = []
    stack = [(node, -1) for node in reversed(roots)]
    offset = 0
    while stack:
        node, parent = stack.pop()
        node.start = offset
        offset += len(node.tokens)
        index = len(order)
        order.append(node)
        parents.append(parent)
        stack.extend((child, index) for child in reversed(node.children))
    return order, parents


def build_batch(rows: Sequence[Row], min_shared: int = MIN_SHARED) -> Batch:
    """Build the forest of `rows` and the list of predictions that their loss masks ask for.

    Args:
        rows: at least one row, each with at least one token.
        min_shared: spans shorter than this are not shared.

    Raises:
        ValueError: a row is empty, or rows have values of different names.
    """
    arrays = [np.asarray(row.ids, dtype=np.int64) for row in rows]
    if not arrays or not all(len(a) for a in arrays):
        raise ValueError("a batch needs at least one row, and every row at least one token")
    roots: list[_Node] = []
    ends = [_insert(roots, tokens, min_shared) for tokens in arrays]
    nodes, parents = _flatten(roots)
    positions_per_row = [end.positions() for end in ends]
    row_K, mask_K, source_K, target_K = _predictions(rows, positions_per_row)
    values_R, values_K = _values(rows)
    pairs, prediction_K = np.unique(np.stack([source_K, target_K]), axis=1, return_inverse=True)
    hidden_H, hidden_Q = np.unique(pairs[0], return_inverse=True)
    forest = Forest(
        ids_N=torch.from_numpy(np.concatenate([n.tokens for n in nodes])),
        positions_N=torch.from_numpy(np.concatenate([np.arange(n.depth, n.depth + len(n.tokens)) for n in nodes])),
        starts=tuple(n.start for n in nodes),
        ends=tuple(n.start + len(n.tokens) for n in nodes),
        parents=tuple(parents),
    )
    return Batch(
        forest=forest,
        rows=tuple(rows),
        row_K=torch.from_numpy(row_K),
        loss_mask_K=torch.from_numpy(mask_K),
        prediction_K=torch.from_numpy(prediction_K.reshape(-1)),
        hidden_H=torch.from_numpy(hidden_H),
        hidden_Q=torch.from_numpy(hidden_Q.reshape(-1)),
        target_Q=torch.from_numpy(np.ascontiguousarray(pairs[1])),
        logical_tokens=sum(len(a) for a in arrays),
        last_R=torch.tensor([int(positions[-1]) for positions in positions_per_row]),
        values_R=values_R,
        values_K=values_K,
    )


def _predictions(rows: Sequence[Row], positions_per_row: list[np.ndarray]) -> tuple[np.ndarray, ...]:
    """For each trained-on token of each row: row, weight, position that predicts it, token."""
    row_parts, mask_parts, source_parts, target_parts = [], [], [], []
    for index, (row, positions) in enumerate(zip(rows, positions_per_row, strict=True)):
        mask = np.asarray(row.loss_mask, dtype=np.float32)
        trained = np.flatnonzero(mask[1:]) + 1  # the first token has nothing before it to be predicted from
        row_parts.append(np.full(len(trained), index, dtype=np.int64))
        mask_parts.append(mask[trained])
        source_parts.append(positions[trained - 1])
        target_parts.append(np.asarray(row.ids, dtype=np.int64)[trained])
    return tuple(np.concatenate(p) for p in (row_parts, mask_parts, source_parts, target_parts))


def _values(rows: Sequence[Row]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The values of the rows, and those of their trained-on tokens, by name."""
    if any(row.values.keys() != rows[0].values.keys() for row in rows) or any(
        row.token_values.keys() != rows[0].token_values.keys() for row in rows
    ):
        raise ValueError("rows of one batch have values of different names")
    of_rows = {name: torch.tensor([row.values[name] for row in rows], dtype=torch.float32) for name in rows[0].values}
    of_tokens = {
        name: torch.tensor([n for row in rows for n in _trained(row, name)], dtype=torch.float32)
        for name in rows[0].token_values
    }
    return of_rows, of_tokens


def _trained(row: Row, name: str) -> list[float]:
    """The values of this name of the row's trained-on tokens."""
    numbers = zip(row.token_values[name][1:], row.loss_mask[1:], strict=True)
    return [number for number, weight in numbers if weight]
