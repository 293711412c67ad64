"""What one pass over memory makes again is not kept for the backward pass; the graph keeps how it is made.

A norm, and the middle of a gated feed-forward, are read by the products after them, which keep what they read. To make
them twice costs a hundredth of those products; kept, they are a third of what a layer holds.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


class _Recipe:
    """How a tensor is made again; the result waits until everyone who kept it has asked for it."""

    def __init__(self, made: Tensor, make: Callable[[], Tensor]) -> None:
        self._make = make
        self._shape = made.shape
        self._again: Tensor | None = None
        self.readers = self._asked = 0

    def again(self) -> Tensor:
        if self._again is None:
            with torch.no_grad():
                self._again = self._make().view(self._shape)
        again = self._again
        self._asked += 1
        if self._asked % self.readers == 0:
            self._again = None
        return again


class Recomputed:
    """Tensors whose making is known, while they are in use; outside of `recomputed` nothing is noted."""

    def __init__(self, active: bool = False) -> None:
        self._active = active
        self._known: dict[int, tuple[Tensor, _Recipe]] = {}

    def note(self, made: Tensor, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
        """`made`, which is `function(*arguments)`, bit by bit."""
        if not self._active:
            return made
        given = [a.detach() if isinstance(a, Tensor) else a for a in arguments]
        # held until the end, so that no other tensor can have its place in memory
        self._known[made.untyped_storage().data_ptr()] = made, _Recipe(made, partial(function, *given))
        return made

    def forget(self) -> None:
        """Hold no tensor any longer."""
        self._known.clear()

    def pack(self, tensor: Tensor) -> Tensor | tuple[_Recipe, torch.Size]:
        """What the graph keeps of a tensor."""
        found = self._known.get(tensor.untyped_storage().data_ptr())
        if found is None or tensor.numel() != found[0].numel() or tensor.dtype != found[0].dtype:
            return tensor
        found[1].readers += 1
        return found[1], tensor.shape

    def unpack(self, kept: Tensor | tuple[_Recipe, torch.Size]) -> Tensor:
        """The tensor."""
        return kept if isinstance(kept, Tensor) else kept[0].again().view(kept[1])


@contextmanager
def recomputed() -> Iterator[Recomputed]:
    """While it is open, what is noted is not kept by the graph.

    Not for layers that are checkpointed: of two such hooks torch asks the inner one only, and the outer frees nothing.
    """
    known = Recomputed(active=torch.is_grad_enabled())
    with saved_tensors_hooks(known.pack, known.unpack):
        yield known
    known.forget()
