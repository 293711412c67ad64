"""Would more rows help? Scores at growing shares of the training rows, a power law through them, and what it promises.

    error(n) = floor + scale * n^-exponent        floor, scale >= 0

where the error is the distance to the metric's best value, or the value itself where it has no bounds (perplexity).
Learning curves of neural networks follow it over wide ranges (Hestness et al. 2017, arXiv:1712.00409). What more rows
would bring is the fall of the fitted curve, with an interval from two sources: the test rows (resampled together at
all sizes, since all answer the same rows) and the trainings (each size is one draw; how far draws lie from a smooth
curve is read off the fit, and is added to every resample). Of three sizes alone nothing can be read off: the fit goes
through them, and the interval is too narrow where trainings differ.

Shapes: M sizes, B resamples, C exponents. The curve never rises by assumption: rows that harm are not its subject.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from luthier.errors import EvaluationError
from luthier.evaluation.metrics.base import Array, Metric
from luthier.evaluation.significance import Groups, Interval, metric_interval, resample

FEWEST_SIZES = 3
EXPONENTS = np.geomspace(0.05, 2.0, 40)
"""Tried for the fit; measured ones lie between 0.07 and 0.5, steeper ones where a task is learned at once."""
RESAMPLES = 1000
FURTHEST = 4.0
"""Nothing is said beyond so many times the rows there are: a fit through a few sizes knows nothing of it."""


@dataclass(frozen=True)
class Size:
    """The test rows as a model answered that was trained on so many rows."""

    rows: int
    statistics_NS: Array


@dataclass(frozen=True)
class Promise:
    """What more rows would bring, on the scale of the metric; positive is better whichever way the metric points."""

    more_rows: int
    gain: float
    low: float
    high: float


@dataclass(frozen=True)
class Curve:
    """Measured sizes and the fit through them."""

    metric: str
    rows: tuple[int, ...]
    values: tuple[Interval, ...]
    """Each with its own interval, of the test rows alone."""
    floor: float
    """Error that no number of rows would take away, by the fit."""
    scale: float
    exponent: float
    training_noise: float
    """Standard deviation of a training's score around the curve, from the residuals."""
    promises: tuple[Promise, ...]

    def dump(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "metric": self.metric,
            "points": [{"rows": n, **v.dump()} for n, v in zip(self.rows, self.values, strict=True)],
            "fit": {"floor": self.floor, "scale": self.scale, "exponent": self.exponent},
            "training_noise": self.training_noise,
            "promises": [
                {"more_rows": p.more_rows, "gain": p.gain, "low": p.low, "high": p.high} for p in self.promises
            ],
        }


def fit_curve(
    metric_name: str,
    metric: Metric,
    sizes: Sequence[Size],
    groups_N: Groups,
    more_rows: Sequence[int],
    confidence: float = 0.95,
    seed: int = 0,
) -> Curve:
    """The curve through measured sizes, and what each number of further rows would bring.

    Args:
        metric_name: for the record.
        metric: what is measured.
        sizes: ascending in rows, all of the same test rows.
        groups_N: which test rows ask the same.
        more_rows: how many rows more to speak of; of more than `furthest`, that is spoken of, once.
        confidence: coverage of the intervals.
        seed: decides the resamples.

    Raises:
        EvaluationError: fewer than `FEWEST_SIZES` sizes, or a value that is not finite.
    """
    rows_M = np.array([size.rows for size in sizes], dtype=np.float64)
    require_sizes([size.rows for size in sizes])
    values_M = np.array([metric.value(size.statistics_NS) for size in sizes])
    if not np.isfinite(values_M).all():
        raise EvaluationError(f"{metric_name} could not be measured at every size: {values_M.tolist()}")
    fitted = fit_power(rows_M, _errors(metric, values_M)[None])
    residual_M = _errors(metric, values_M) - power(rows_M, *fitted)[0]
    freedom = max(len(sizes) - 3, 1)  # three numbers were fitted
    noise = math.sqrt(float((residual_M**2).sum()) / freedom)
    drawn_BM = np.concatenate(
        [
            np.stack([metric.values(size.statistics_NS, counts) for size in sizes], axis=1)
            for counts in resample(groups_N, seed, RESAMPLES)
        ]
    )
    rng = np.random.default_rng(seed)
    errors_BM = _errors(metric, drawn_BM[np.isfinite(drawn_BM).all(axis=1)])
    # one or two residuals tell little about the noise: each resample draws how large it may be as well (Student's t)
    spread_B1 = noise * np.sqrt(freedom / rng.chisquare(freedom, size=(len(errors_BM), 1)))
    errors_BM = errors_BM + spread_B1 * rng.normal(size=errors_BM.shape)
    resampled = fit_power(rows_M, errors_BM)
    largest, promises = float(rows_M.max()), []
    for more in dict.fromkeys(min(more, furthest(sizes[-1].rows)) for more in more_rows):
        beyond = np.array([largest, largest + more])
        own, others = power(beyond, *fitted), power(beyond, *resampled)
        tail = (1 - confidence) / 2
        low, high = np.quantile(others[:, 0] - others[:, 1], [tail, 1 - tail])
        promises.append(Promise(more, float(own[0, 0] - own[0, 1]), float(low), float(high)))
    floor, scale, exponent = (float(part[0]) for part in fitted)
    return Curve(
        metric_name,
        tuple(size.rows for size in sizes),
        tuple(metric_interval(metric, size.statistics_NS, confidence, seed, groups_N) for size in sizes),
        floor,
        scale,
        exponent,
        noise,
        tuple(promises),
    )


def require_sizes(rows: Sequence[int]) -> None:
    """Check that a curve can be fitted through so many rows.

    Raises:
        EvaluationError: fewer than `FEWEST_SIZES` different numbers.
    """
    if len(set(rows)) < FEWEST_SIZES:
        raise EvaluationError(
            f"a learning curve needs at least {FEWEST_SIZES} different numbers of training rows, the whole among them, "
            f"and has {len(set(rows))}; give more shares, or more training rows"
        )


def furthest(rows: int) -> int:
    """Of how many more rows something is said, at most."""
    return int((FURTHEST - 1) * rows)


def _errors(metric: Metric, values: Array) -> Array:
    """What is left to gain: smaller is better, and 0 is perfect."""
    if not metric.higher_is_better:
        return values - (metric.best if math.isfinite(metric.best) else 0.0)
    found: Array = metric.best - values
    return found


def power(rows_M: Array, floor_B: Array, scale_B: Array, exponent_B: Array) -> Array:
    """(B, M) the error of each fit at each number of rows."""
    found: Array = floor_B[:, None] + scale_B[:, None] * rows_M[None] ** -exponent_B[:, None]
    return found


def fit_power(rows_M: Array, errors_BM: Array) -> tuple[Array, Array, Array]:
    """Least squares of floor, scale and exponent for each row of `errors_BM`: floor and scale in closed form with both
    at least 0, the exponent from `EXPONENTS`."""
    best_B = np.full(len(errors_BM), np.inf)
    found = tuple(np.zeros(len(errors_BM)) for _ in range(3))
    for exponent in EXPONENTS:
        x_M = rows_M**-exponent
        floor_B, scale_B = _line(x_M, errors_BM)
        left_B = ((errors_BM - floor_B[:, None] - scale_B[:, None] * x_M) ** 2).sum(axis=1)
        better_B = left_B < best_B * (1 - 1e-9)
        best_B = np.where(better_B, left_B, best_B)
        for part, value in zip(found, (floor_B, scale_B, np.full(len(errors_BM), exponent)), strict=True):
            part[better_B] = value[better_B]
    floor, scale, exponents = found
    return floor, scale, exponents


def _line(x_M: Array, y_BM: Array) -> tuple[Array, Array]:
    """Intercept and slope of each line, neither below 0: of the free line, the flat one and the one through 0, the
    first that is allowed, as a least squares problem of two variables that may not be negative is solved."""
    x = x_M - x_M.mean()
    slope_B = (y_BM @ x) / (x @ x)
    intercept_B = y_BM.mean(axis=1) - slope_B * x_M.mean()
    through_zero_B = np.maximum((y_BM @ x_M) / (x_M @ x_M), 0.0)
    flat = slope_B < 0
    from_zero = (intercept_B < 0) & ~flat
    intercept_B = np.where(flat, np.maximum(y_BM.mean(axis=1), 0.0), np.where(from_zero, 0.0, intercept_B))
    slope_B = np.where(flat, 0.0, np.where(from_zero, through_zero_B, slope_B))
    return intercept_B, slope_B
