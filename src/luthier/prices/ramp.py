"""Costs that grow with a quantity, and where one overtakes another.

    usd(x) = max(floor, rate * x) + fixed

With x the answers of a month: a machine that is kept costs `floor` until answering needs more hours than it is kept, a
hosted model costs from the first token (floor 0), and what training costs a month is `fixed`. The same form holds where
x is the factor by which an assumption changes. The difference of two such costs is a line between their kinks
floor / rate, so it is solved piece by piece, exactly.

Left out: a second machine's idle hours. Beyond the hours of one machine, more of them are paid by the hour.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

TOLERANCE = 1e-9
"""Costs that differ by less than this share of them are equal."""


@dataclass(frozen=True)
class Ramp:
    """max(floor, rate * x) + fixed, in USD."""

    floor: float
    rate: float
    fixed: float = 0.0

    def usd(self, x: float) -> float:
        """The cost at x."""
        return max(self.floor, self.rate * x) + self.fixed

    @property
    def kink(self) -> float:
        """Where it begins to grow."""
        return self.floor / self.rate if self.rate > 0 else inf


def crossings(a: Ramp, b: Ramp, by: float = 0.0) -> list[float]:
    """Every x > 0 at which a(x) - b(x) = by and changes, sorted."""
    edges = sorted({0.0, *(kink for kink in (a.kink, b.kink) if kink < inf)})
    found = []
    for start, end in zip(edges, [*edges[1:], inf], strict=True):
        inner = start + 1.0 if end == inf else (start + end) / 2
        slope = (a.rate if inner > a.kink else 0.0) - (b.rate if inner > b.kink else 0.0)
        if slope:
            x = start + (by - (a.usd(start) - b.usd(start))) / slope
            if start <= x <= end and x > 0:
                found.append(x)
    return sorted(set(found))


def first_above(a: Ramp, b: Ramp, by: float) -> float | None:
    """The smallest x from which a costs more than b, by `by` or more; 0: always; None: never.

    `a` may fall behind again at a larger x, where a hosted model is cheaper by the answer than a machine that is full.
    """
    edges = [0.0, *crossings(a, b, by)]
    for x, end in zip(edges, [*edges[1:], inf], strict=True):
        inner = x * 2 + 1.0 if end == inf else (x + end) / 2
        more = a.usd(inner) - b.usd(inner)
        if more > 0 and more >= by * (1 - TOLERANCE):
            return x
    return None


@dataclass(frozen=True)
class Switch:
    """Where the cheapest of several costs changes."""

    factor: float
    cheapest: int
    """Index of the one that is cheapest beyond it."""


def switch(costs: Sequence[Ramp], *, upward: bool) -> Switch | None:
    """The x nearest to 1, above or below it, beyond which another of the costs is the cheapest; None: there is none.

    Of equal costs the first is the cheapest: a tie is no change.
    """
    now = cheapest(costs, 1.0)
    mine = costs[now]
    marks = {x for other in costs for x in (*crossings(mine, other), other.kink) if x < inf}
    side = sorted((x for x in marks if (x > 1.0 if upward else 0 < x < 1.0)), reverse=not upward)
    limits = [1.0, *side]
    far = limits[-1] * 2 + 1.0 if upward else 0.0
    for start, end in zip(limits, [*limits[1:], far], strict=True):
        best = cheapest(costs, (start + end) / 2)
        if best != now and _is_less(costs[best].usd((start + end) / 2), mine.usd((start + end) / 2)):
            return Switch(start, best)
    return None


def cheapest(costs: Sequence[Ramp], x: float) -> int:
    """Index of the cheapest at x; of equal ones the first."""
    best = 0
    for index, cost in enumerate(costs):
        if _is_less(cost.usd(x), costs[best].usd(x)):
            best = index
    return best


def _is_less(a: float, b: float) -> bool:
    return a < b - TOLERANCE * max(abs(a), abs(b))
