"""How much memory a computation takes at any size, from a few small ones.

A training pass makes the same tensors in the same order however many tokens it reads; each is as large as a number,
plus one for each token, one for each position whose logits are needed, and, where attention is given a mask, one for
each pair of tokens that see one another. So is the sum of those that live at any moment. Four passes over few tokens
give the four numbers of every moment, whatever adapter, objective and number format are at work: nothing here knows any
of them.
"""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Allocations(TorchDispatchMode):
    """Bytes of the tensors that were made and live, after each one that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.moments: list[int] = []
        self.live = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor.untyped_storage(), given)
        return out

    def _see(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or key in given:
            return

        def gone(_: Any) -> None:
            del self._known[key]
            self.live -= size

        self._known[key] = weakref.ref(storage, gone)
        self.live += size
        self.moments.append(self.live)


def allocations(compute: Callable[[], object], device: torch.device) -> list[int]:
    """Bytes that live of what `compute` allocates, after each allocation; on CUDA their peak alone."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = _asked_for(device, "current")
        compute()
        return [_asked_for(device, "peak") - before]
    seen = _Allocations()
    with seen:
        compute()
    return seen.moments


def lasting(compute: Callable[[], object], device: torch.device) -> int:
    """Bytes of what `compute` allocates and leaves: what is made once and kept for the next time."""
    if device.type == "cuda":
        before = _asked_for(device, "current")
        compute()
        return _asked_for(device, "current") - before
    seen = _Allocations()
    with seen:
        compute()
    return seen.live


def _asked_for(device: torch.device, when: str) -> int:
    """Bytes that were asked for; the blocks given for them are up to a MiB larger, which few tokens would blur."""
    return int(torch.cuda.memory_stats(device)[f"requested_bytes.all.{when}"])


@dataclass(frozen=True)
class Size:
    """What a pass computes."""

    tokens: int
    positions: int
    """Whose logits are needed."""
    pairs: int = 0
    """Of tokens that may see one another: of each node of a forest, its length times that of its path."""


class Growth:
    """Bytes of a pass at its peak as a function of its size: the largest of many planes."""

    def __init__(self, planes_J4: np.ndarray) -> None:
        """(J, 4) bytes at each moment: for any size, for each token, for each position, for each pair."""
        self.planes_J4 = planes_J4

    @classmethod
    def of(cls, sizes: Sequence[Size], moments: Sequence[Sequence[int]]) -> "Growth":
        """From a few passes; where they did not make the same tensors, from their peaks.

        What sizes do not tell apart is left out, pairs first and positions then: bytes then grow with the rest alone.
        """
        known = moments if len({len(m) for m in moments}) == 1 else [[max(m)] for m in moments]
        given = np.array([_numbers(size) for size in sizes])
        told = next(n for n in (4, 3, 2, 1) if np.linalg.matrix_rank(given[:, :n]) == n)
        planes, *_ = np.linalg.lstsq(given[:, :told], np.array(known, dtype=np.float64), rcond=None)
        return cls(np.pad(planes.T, ((0, 0), (0, 4 - told))))

    def bytes_at(self, size: Size) -> int:
        """Peak bytes of a pass of this size."""
        return int((self.planes_J4 @ _numbers(size)).max())

    def bytes_of_positions(self, size: Size) -> int:
        """How many of them are there for positions alone, at the moment of the peak."""
        at = (self.planes_J4 @ _numbers(size)).argmax()
        return max(0, int(self.planes_J4[at, 2] * size.positions))

    def scaled(self, fixed: float, token: float, position: float, pair: float) -> "Growth":
        """The growth of a model whose parts are so many times as large."""
        return Growth(self.planes_J4 * [fixed, token, position, pair])


def _numbers(size: Size) -> list[float]:
    return [1.0, size.tokens, size.positions, size.pairs]
