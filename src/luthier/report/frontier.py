"""Gain against forgetting: where the marks of its plot stand, in percent, as in `plot.py`.

Every candidate is a numbered mark with the intervals of both; a line runs through those that no other one beats.
"""

from dataclasses import dataclass
from itertools import pairwise

from luthier.report.frontier_parts import Candidate, Frontier
from luthier.report.plot import Axis, Tick, build_axis


@dataclass(frozen=True)
class Mark:
    """A candidate in the plot, in percent of its width and height, from the top left."""

    number: int
    x: float
    y: float
    left: float
    right: float
    top: float
    bottom: float
    candidate: Candidate


@dataclass(frozen=True)
class FrontierPlot:
    """Where everything stands; `lines` join the marks of the frontier."""

    marks: tuple[Mark, ...]
    lines: tuple[tuple[float, float, float, float], ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    base: tuple[float, float]
    limit: float | None


def frontier_plot(frontier: Frontier | None) -> FrontierPlot | None:
    """Geometry of the plot; None if nothing was measured."""
    found = [
        (number, one, one.gain, one.forgetting)
        for number, one in enumerate(frontier.candidates if frontier else (), 1)
        if one.gain is not None and one.gain.value is not None and one.forgetting is not None
    ]
    if frontier is None or not found:
        return None
    losses = [100 * v for *_, f in found for v in (f.value, f.low, f.high)]
    limit = [] if frontier.limit is None else [100 * frontier.limit]
    gains = [v for *_, g, _ in found for v in (g.value, g.low, g.high) if v is not None]
    x, y = build_axis([0.0, *losses, *limit], 2.0), build_axis([0.0, *gains], 0.02)
    marks = tuple(
        Mark(
            number,
            x.at(100 * f.value),
            _down(y, g.value),
            x.at(100 * f.low),
            x.at(100 * f.high),
            _down(y, g.value if g.high is None else g.high),
            _down(y, g.value if g.low is None else g.low),
            one,
        )
        for number, one, g, f in found
    )
    best = sorted((mark for mark in marks if mark.candidate.on_frontier), key=lambda mark: mark.x)
    return FrontierPlot(
        marks,
        tuple((a.x, a.y, b.x, b.y) for a, b in pairwise(best)),
        tuple(Tick(t.at, f"{t.text} %") for t in x.ticks),
        tuple(Tick(round(100 - t.at, 3), t.text) for t in y.ticks),
        (x.at(0.0), _down(y, 0.0)),
        x.at(limit[0]) if limit else None,
    )


def _down(axis: Axis, value: float | None) -> float:
    return round(100 - axis.at(value or 0.0), 3)
