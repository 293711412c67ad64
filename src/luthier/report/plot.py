"""Where the marks of a plot stand, in percent of its width or height; the template draws them as SVG.

Keeping geometry here and drawing in the template means that no text ever passes through a string of markup.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from luthier.evaluation.rungs import TRAINED
from luthier.report.ladder import paired, rung
from luthier.report.schema import Interval, LearningCurve, LossPoint, Report, System, Training
from luthier.report.text import count, difference, interval, number

PAD = 0.06
"""Share of the span left free at either end of an axis."""


@dataclass(frozen=True)
class Tick:
    """A mark on an axis."""

    at: float
    """Percent along the axis."""
    text: str
    """The number it stands for."""


@dataclass(frozen=True)
class Axis:
    """A linear scale from values to percent."""

    low: float
    high: float
    ticks: tuple[Tick, ...]

    def at(self, value: float) -> float:
        """Percent along the axis, kept on it."""
        return round(min(100.0, max(0.0, (value - self.low) / (self.high - self.low) * 100)), 3)


def build_axis(values: Sequence[float], least_span: float = 0.0, most_ticks: int = 7) -> Axis:
    """An axis that holds all values with some air around them, with ticks at round numbers.

    `values` must hold at least one finite number; `least_span` keeps equal values from being blown up.
    """
    low, high = min(values), max(values)
    span = max(high - low, least_span, abs(high) * 1e-6, 1e-9)
    middle = (low + high) / 2
    low, high = middle - span * (0.5 + PAD), middle + span * (0.5 + PAD)
    step = _round_step(span * (1 + 2 * PAD) / most_ticks)
    first = math.ceil(low / step)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    numbers = [i * step for i in range(first, math.floor(high / step) + 1)]
    axis = Axis(low, high, ())
    return Axis(
        low, high, tuple(Tick(axis.at(n), number(n + 0.0 if abs(n) > step / 2 else 0.0, decimals)) for n in numbers)
    )


def _round_step(least: float) -> float:
    power = 10.0 ** math.floor(math.log10(least))
    return next(m * power for m in (1.0, 2.0, 5.0, 10.0) if m * power >= least * 0.999999)


@dataclass(frozen=True)
class Dot:
    """A value with its interval on an axis."""

    at: float
    low: float
    high: float


def _dot(axis: Axis, value: float, low: float | None, high: float | None) -> Dot:
    return Dot(axis.at(value), axis.at(value if low is None else low), axis.at(value if high is None else high))


@dataclass(frozen=True)
class Rung:
    """A line of the ladder: a system, its text, and its dot (None if it was not measured)."""

    name: str
    kind: str
    """`tuned`, `external` or `base`: chooses the color."""
    held_out: bool
    chosen: bool
    text: str
    dot: Dot | None


@dataclass(frozen=True)
class DotPlot:
    """Rungs on one axis; `zero` is where no difference stands."""

    rungs: tuple[Rung, ...]
    axis: Axis
    zero: float | None = None


def kind(system: System) -> str:
    """The color of a system: external program, baseline, or fine-tuned."""
    place = rung(system)
    return "tuned" if place in TRAINED else "external" if place == "external" else "base"


def _least_span(values: Sequence[float]) -> float:
    return 0.1 if all(0 <= v <= 1 for v in values) else 0.0


def ladder_plot(report: Report) -> DotPlot | None:
    """All systems on the primary metric; None if nothing was measured."""
    if report.evaluation is None:
        return None
    metric = report.evaluation.primary_metric
    found = [(s, s.metrics.get(metric, Interval())) for s in report.systems]
    values = [v for _, m in found if m.value is not None for v in (m.value, m.low, m.high) if v is not None]
    if not values:
        return None
    axis = build_axis(values, _least_span(values))
    return DotPlot(
        tuple(
            Rung(
                s.name,
                kind(s),
                s.held_out,
                s.name == report.verdict.system,
                interval(m.value, m.low, m.high),
                None if m.value is None else _dot(axis, m.value, m.low, m.high),
            )
            for s, m in found
        ),
        axis,
    )


def difference_plot(report: Report) -> DotPlot | None:
    """Every system whose difference to the best baseline was measured; None if there is none."""
    baseline = report.verdict.baseline
    if report.evaluation is None or baseline is None:
        return None
    metric = report.evaluation.primary_metric
    measured = [(s, paired(report.differences, s.name, baseline, metric)) for s in report.systems]
    found = [(s, d, d.difference) for s, d in measured if d is not None and d.difference is not None]
    values = [v for _, d, value in found for v in (value, d.low, d.high) if v is not None]
    if not values:
        return None
    axis = build_axis([0.0, *values], _least_span([abs(v) for v in values]))
    rungs = tuple(
        Rung(
            s.name,
            kind(s),
            s.held_out,
            s.name == report.verdict.system,
            difference(value, d.low, d.high),
            _dot(axis, value, d.low, d.high),
        )
        for s, d, value in found
    )
    return DotPlot(rungs, axis, axis.at(0.0))


def rows_plot(curve: LearningCurve | None) -> DotPlot | None:
    """The score after a training on each number of rows; None without a learning curve."""
    if curve is None:
        return None
    points = [(f"{count(p.rows)} rows", "tuned", Interval(value=p.value, low=p.low, high=p.high)) for p in curve.points]
    return dot_plot(points, chosen=len(points) - 1)


def dot_plot(
    lines: Sequence[tuple[str, str, Interval]], chosen: int | None = None, is_difference: bool = False
) -> DotPlot | None:
    """Named values of a kind (`tuned`, `external`, `base`) on one axis; None if none is there."""
    values = [v for *_, m in lines for v in (m.value, m.low, m.high) if v is not None]
    if not values:
        return None
    axis = build_axis([0.0, *values], 0.02) if is_difference else build_axis(values, _least_span(values))
    shown = difference if is_difference else interval
    rungs = tuple(
        Rung(
            name,
            color,
            True,
            number == chosen,
            shown(m.value, m.low, m.high),
            None if m.value is None else _dot(axis, m.value, m.low, m.high),
        )
        for number, (name, color, m) in enumerate(lines)
    )
    return DotPlot(rungs, axis, axis.at(0.0) if is_difference else None)


@dataclass(frozen=True)
class BeforeAfter:
    """One forgetting measure on its own axis."""

    axis: Axis
    before: Dot
    after: Dot


def before_after(before: Interval, after: Interval) -> BeforeAfter | None:
    """Geometry of a forgetting measure; None if a value is missing."""
    if before.value is None or after.value is None:
        return None
    values = [v for m in (before, after) for v in (m.value, m.low, m.high) if v is not None]
    axis = build_axis(values, _least_span(values), most_ticks=4)
    return BeforeAfter(
        axis, _dot(axis, before.value, before.low, before.high), _dot(axis, after.value, after.low, after.high)
    )


@dataclass(frozen=True)
class CurvePlot:
    """Loss curves in a square of 1000 by 1000 that is stretched to the page; y grows downwards, as in SVG."""

    raw: str
    """Points of the training loss, as an SVG `points` list; empty if there is none."""
    smoothed: str
    validation: str
    validation_dots: tuple[tuple[float, float], ...]
    best: tuple[float, float] | None
    """The best step, and its validation loss if it was measured."""
    x_axis: Axis
    y_ticks: tuple[Tick, ...]
    """Percent from the top."""


def curve_plot(training: Training | None) -> CurvePlot | None:
    """Training and validation loss by step; None if no finite loss was recorded.

    The y axis holds the smoothed losses, the validation losses, and the raw losses between their 1st and 99th
    percentile: one wild step must not flatten everything else.
    """
    if training is None:
        return None
    finite = sorted(p.loss for p in training.curve if p.loss is not None)
    cut = len(finite) // 100
    heights = finite[cut : len(finite) - cut] if finite else []
    heights = heights + [p.loss for p in training.validation if p.loss is not None]
    heights += [p.smoothed for p in training.curve if p.smoothed is not None]
    if not heights:
        return None
    steps = [p.step for p in training.curve] + [p.step for p in training.validation]
    x_axis, y_axis = _step_axis(max(steps), min(steps)), build_axis(heights)

    def point(step: int, loss: float) -> tuple[float, float]:
        return round(x_axis.at(step) * 10, 1), round(1000 - y_axis.at(loss) * 10, 1)

    def line(points: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{x},{y}" for x, y in points)

    validation = tuple(point(p.step, p.loss) for p in training.validation if p.loss is not None)
    best = None
    if training.best_step is not None and min(steps) <= training.best_step <= max(steps):
        loss = training.best_validation_loss
        best = point(training.best_step, y_axis.high if loss is None else loss)
    return CurvePlot(
        line([point(p.step, p.loss) for p in training.curve if p.loss is not None]),
        line(_smoothed(training.curve, point)),
        line(validation),
        validation,
        best,
        x_axis,
        tuple(Tick(100 - t.at, t.text) for t in y_axis.ticks),
    )


def _smoothed(
    curve: Sequence[LossPoint], point: Callable[[int, float], tuple[float, float]]
) -> list[tuple[float, float]]:
    return [point(p.step, p.smoothed) for p in curve if p.smoothed is not None]


def _step_axis(last: int, first: int) -> Axis:
    low, high = float(min(first, 0)), float(max(last, 1))
    step = max(1.0, _round_step((high - low) / 5))
    axis = Axis(low, high, ())
    ticks = [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return Axis(low, high, tuple(Tick(axis.at(t), f"{t:,.0f}") for t in ticks))
