"""The order of rows as a pure function of (seed, epoch, position), so that resuming needs no saved state.

A *unit* is the rows that one example became: one row for a conversation, two for a preference pair. Units are never
split over micro-batches.
"""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol, TypeAlias

import numpy as np

from luthier.examples import Row
from luthier.models.forest import MIN_SHARED

Unit: TypeAlias = tuple[Row, ...]

NOTHING: Mapping[str, float] = MappingProxyType({})
"""What is remembered before the first step."""

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


class Places:
    """Which of `count` things stands at a position. Epochs follow one another without a gap, each in an order of its
    own."""

    def __init__(self, count: int, seed: int) -> None:
        if not count:
            raise ValueError("a source needs at least one unit")
        self.count, self.seed = count, seed
        self._epoch = -1
        self._order: np.ndarray = np.zeros(0, dtype=np.int64)

    def at(self, position: int) -> int:
        """The thing at a position, counted from 0."""
        epoch, offset = divmod(position, self.count)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, order(self.count, self.seed, epoch)
        return int(self._order[offset])

    def between(self, first: int, end: int) -> list[int]:
        """The things at the positions from `first` to before `end`."""
        return [self.at(position) for position in range(first, end)]


class RowSource(Protocol):
    """Where the loop gets its rows from: those that were given, or replies that are sampled when they are needed."""

    def step(self, number: int, memory: Mapping[str, float] = NOTHING) -> list[Unit]:
        """The units of step `number`, counted from 1, under the weights as they are now and with what the objective
        remembers of earlier steps."""
        ...

    def planned(self, number: int) -> list[Unit]:
        """Units like those of step `number`, as far as it is known before they are needed: for memory and time."""
        ...

    def validating(self, units: Sequence[Unit], number: int) -> Sequence[Unit]:
        """What to validate on after step `number`, where `units` were planned for it."""
        ...


class Source:
    """Training units that were given, step by step; every step has the same size."""

    def __init__(self, units: Sequence[Unit], rows_per_step: int, seed: int) -> None:
        self.units, self.rows_per_step, self.seed = units, rows_per_step, seed
        self._places = Places(len(units), seed)

    def step(self, number: int, memory: Mapping[str, float] = NOTHING) -> list[Unit]:
        """The units of step `number`, counted from 1, whatever is remembered."""
        first = (number - 1) * self.rows_per_step
        return [self.units[place] for place in self._places.between(first, first + self.rows_per_step)]

    def planned(self, number: int) -> list[Unit]:
        """The same."""
        return self.step(number)

    def validating(self, units: Sequence[Unit], number: int) -> Sequence[Unit]:
        """The units that were planned."""
        return units


def micro_batches(units: Sequence[Unit], max_tokens: int) -> Iterator[list[Row]]:
    """Cut the units of a step into lists of rows of at most `max_tokens` tokens (more only for one large unit).

    What a row begins with in common with the first row of its list, or with the one before it, counts once, as it is
    computed (`models.forest`).
    """
    held: list[Row] = []
    tokens = 0
    for unit in units:
        size = _computed(unit, held)
        if held and tokens + size > max_tokens:
            yield held
            held, tokens = [], 0
            size = _computed(unit, held)
        held.extend(unit)
        tokens += size
    if held:
        yield held


def _computed(unit: Unit, held: Sequence[Row]) -> int:
    """Tokens that the rows of a unit add to those of `held`."""
    beside = [held[0], held[-1]] if held else []
    size = 0
    for row in unit:
        shared = max((_common(row.ids, other.ids) for other in beside), default=0)
        size += len(row.ids) - (shared if shared >= MIN_SHARED else 0)
        beside = [*beside[:1], row]
    return size


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix, by halving: comparing slices is one call each."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
