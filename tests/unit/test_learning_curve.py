"""What more rows would bring: the fit finds known curves, and its interval holds the truth as often as it says."""

import numpy as np
import pytest
from scipy.special import ndtr, ndtri

from luthier.errors import EvaluationError
from luthier.evaluation.learning_curve import FURTHEST, Curve, Size, fit_curve, fit_power, power
from luthier.evaluation.metrics.base import Array
from luthier.evaluation.task import build_metrics

ROWS = (50, 100, 200, 400, 800)
TEST_ROWS = 200


def curve_of(metric: str, sizes: list[Size], more: list[int], seed: int = 0) -> Curve:
    groups_N = np.arange(len(sizes[0].statistics_NS))
    return fit_curve(metric, build_metrics([metric])[metric], sizes, groups_N, more, seed=seed)


def answered(error: float, rows: int, rng: np.random.Generator, hardness_N: Array) -> Size:
    """Right and wrong answers with this expected error, hard rows wrong more often."""
    right_N = ndtr(ndtri(1 - error) * 2**0.5 + hardness_N) > rng.random(len(hardness_N))
    return Size(rows, np.stack([right_N.astype(float), np.ones(len(hardness_N))], axis=1))


@pytest.mark.parametrize(("floor", "scale", "exponent"), [(0.1, 2.0, 0.5), (0.0, 0.9, 0.1), (0.25, 30.0, 1.2)])
def test_a_curve_without_noise_is_found(floor: float, scale: float, exponent: float) -> None:
    rows_M = np.array(ROWS, dtype=float)
    truth = [np.array([part]) for part in (floor, scale, exponent)]
    fitted = fit_power(rows_M, power(rows_M, *truth))
    beyond = np.array([1300.0, 3200.0])
    assert power(beyond, *fitted)[0] == pytest.approx(power(beyond, *truth)[0], abs=0.003)


def test_a_curve_never_rises_and_never_falls_below_perfection() -> None:
    rows_M = np.array(ROWS, dtype=float)
    rising, falling = np.linspace(0.2, 0.4, 5), np.array([0.4, 0.2, 0.05, 0.0, 0.0])
    floor, scale, _ = fit_power(rows_M, np.stack([rising, falling]))
    assert scale[0] == 0 and floor[0] == pytest.approx(0.3)
    assert floor[1] == 0 and scale[1] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("noise", "trained_on", "test_rows"), [(0.0, ROWS, TEST_ROWS), (0.02, ROWS, TEST_ROWS), (0.03, ROWS[1:], 1000)]
)
def test_the_interval_of_a_promise_holds_the_truth(noise: float, trained_on: tuple[int, ...], test_rows: int) -> None:
    """150 simulated curves with unknown floor and exponent; at least 92 % of 95 % intervals must hold."""
    held, curves, more = 0, 150, 500
    for seed in range(curves):
        rng = np.random.default_rng(seed)
        floor, exponent, first = rng.uniform(0, 0.2), rng.uniform(0.2, 0.8), rng.uniform(0.25, 0.7)
        scale = (first - floor) * trained_on[0] ** exponent
        hardness_N = rng.normal(size=test_rows)
        sizes = []
        for rows in trained_on:
            error = floor + scale * rows**-exponent + rng.normal(scale=noise)
            sizes.append(answered(float(np.clip(error, 0.001, 0.999)), rows, rng, hardness_N))
        (promise,) = curve_of("accuracy", sizes, [more], seed).promises
        truth = scale * (ROWS[-1] ** -exponent - (ROWS[-1] + more) ** -exponent)
        held += promise.low <= truth <= promise.high
    assert held / curves >= 0.92


def test_where_nothing_is_learned_nothing_is_promised() -> None:
    rng = np.random.default_rng(3)
    hardness_N = rng.normal(size=TEST_ROWS)
    curve = curve_of("accuracy", [answered(0.4, rows, rng, hardness_N) for rows in ROWS], [500])
    assert curve.promises[0].low <= 0.005 and curve.promises[0].gain < 0.01


def test_a_metric_that_falls_promises_a_gain_when_it_falls() -> None:
    """Perplexity: the value itself is what is left to gain."""
    sizes = []
    for rows in ROWS:
        loss = 1.0 + 5.0 * rows**-0.5
        sizes.append(Size(rows, np.stack([np.full(TEST_ROWS, loss * 10), np.full(TEST_ROWS, 10.0)], axis=1)))
    curve = curve_of("perplexity", sizes, [800])
    assert 0.12 < curve.promises[0].gain < 0.2 and curve.promises[0].low > 0


def test_nothing_is_promised_beyond_what_the_points_can_tell() -> None:
    rng = np.random.default_rng(4)
    hardness_N = rng.normal(size=TEST_ROWS)
    sizes = [answered(0.5 * (rows / 50) ** -0.3, rows, rng, hardness_N) for rows in ROWS]
    curve = curve_of("accuracy", sizes, [10, 10**5, 10**6])
    assert [p.more_rows for p in curve.promises] == [10, round((FURTHEST - 1) * ROWS[-1])]


def test_too_few_sizes_are_refused() -> None:
    rng = np.random.default_rng(5)
    sizes = [answered(0.3, rows, rng, rng.normal(size=TEST_ROWS)) for rows in (100, 200)]
    with pytest.raises(EvaluationError, match="at least 3"):
        curve_of("accuracy", sizes, [500])
