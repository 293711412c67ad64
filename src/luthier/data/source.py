"""The order of rows as a pure function of (seed, epoch, position), so that resuming needs no saved state.

A *unit* is the rows that one example became: one row for a conversation, two for a preference pair. Units are never
split over micro-batches.
"""

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np

from luthier.examples import Row

Unit: TypeAlias = tuple[Row, ...]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: np.ndarray) -> np.ndarray:
    """splitmix64 (Steele et al. 2014): a bijection of 64-bit integers that scatters neighbours."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed


def order(count: int, seed: int, epoch: int) -> np.ndarray:
    """(count,) a permutation of range(count); integer arithmetic only, so it is the same on every machine."""
    with np.errstate(over="ignore"):
        salt = _mix(_mix(np.array([seed], dtype=np.uint64) + _GOLDEN) + np.uint64(epoch) * _GOLDEN)
        keys = _mix(np.arange(count, dtype=np.uint64) * _GOLDEN + salt)
    return np.argsort(keys, kind="stable")


class Source:
    """Training units, step by step. Epochs follow one another without a gap, so every step has the same size."""

    def __init__(self, units: Sequence[Unit], rows_per_step: int, seed: int) -> None:
        if not units:
            raise ValueError("a source needs at least one unit")
        self.units, self.rows_per_step, self.seed = units, rows_per_step, seed
        self._epoch = -1
        self._order: np.ndarray = np.zeros(0, dtype=np.int64)

    def step(self, number: int) -> list[Unit]:
        """The units of step `number`, counted from 1."""
        first = (number - 1) * self.rows_per_step
        return [self.units[self._at(position)] for position in range(first, first + self.rows_per_step)]

    def _at(self, position: int) -> int:
        epoch, offset = divmod(position, len(self.units))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, order(len(self.units), self.seed, epoch)
        return int(self._order[offset])


def micro_batches(units: Sequence[Unit], max_tokens: int) -> Iterator[list[Row]]:
    """Cut the units of a step into lists of rows of at most `max_tokens` tokens (more only for one large unit)."""
    held: list[Row] = []
    tokens = 0
    for unit in units:
        size = sum(len(row.ids) for row in unit)
        if held and tokens + size > max_tokens:
            yield held
            held, tokens = [], 0
        held.extend(unit)
        tokens += size
    if held:
        yield held
