"""Intervals cover what they promise, and tests agree with textbooks."""

import math
from dataclasses import astuple

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from luthier.evaluation.metrics.base import Array, Metric, Prediction, RatioMetric
from luthier.evaluation.metrics.field_f1 import FieldF1
from luthier.evaluation.significance import (
    _bootstrap_comparison,
    bootstrap_interval,
    clopper_pearson,
    compare,
    failures_per_million,
    gain_interval,
    mcnemar,
    mean_interval,
    metric_interval,
    minimum_detectable_effect,
    number_groups,
    resample,
)


class Mean(RatioMetric):
    """The plain mean of scores."""

    def statistics(self, prediction: Prediction) -> tuple[float, float]:
        return float(prediction.output), 1.0


class Right(Mean):
    """The same, right or wrong."""

    binary = True


def scores(values: npt.ArrayLike) -> Array:
    column = np.asarray(values, dtype=np.float64)
    return np.stack([column, np.ones_like(column)], axis=1)


def test_resamples_are_seeded_and_draw_n_rows() -> None:
    first, again, other = (np.concatenate(list(resample(np.arange(30), s, resamples=500))) for s in (1, 1, 2))
    assert first.shape == (500, 30)
    assert (first == again).all() and (first != other).any()
    assert (first.sum(axis=1) == 30).all()
    assert first.mean() == pytest.approx(1.0)
    assert first.var() == pytest.approx(1 - 1 / 30, rel=0.05)  # binomial, not a permutation


def test_chunks_do_not_change_the_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = np.arange(20)
    whole = np.concatenate(list(resample(groups, seed=3, resamples=100)))
    monkeypatch.setattr("luthier.evaluation.significance.CHUNK_CELLS", 70)
    parts = list(resample(groups, seed=3, resamples=100))
    assert len(parts) > 30
    assert (np.concatenate(parts) == whole).all()


@pytest.mark.parametrize("shape", ["skewed", "corpus"])
def test_intervals_cover_the_truth(shape: str) -> None:
    """95 % intervals of 600 simulated data sets; 93 to 97 % of them must hold the true value."""
    rng = np.random.default_rng(5)
    held, datasets, rows = 0, 600, 80
    metric: Metric = Mean() if shape == "skewed" else FieldF1()
    for seed in range(datasets):
        if shape == "skewed":  # most rows nearly perfect, a tail of bad ones
            statistics, truth = scores(rng.beta(4, 1, rows)), 4 / 5
        else:  # fields right, answered and wanted: a ratio of sums with dependent parts
            wanted = rng.integers(2, 9, rows)
            right = rng.binomial(wanted, 0.7).astype(float)
            statistics = np.stack([right, right + rng.binomial(3, 0.4, rows), wanted], axis=1)
            truth = 2 * 3.5 / (3.5 + 1.2 + 5.0)
        interval = bootstrap_interval(metric.values, statistics, seed=seed, resamples=500)
        assert interval.method == "BCa bootstrap"
        held += interval.low <= truth <= interval.high
    assert 0.93 <= held / datasets <= 0.97


def test_paired_differences_cover_the_truth_and_false_alarms_are_rare() -> None:
    rng = np.random.default_rng(6)
    held = alarms = 0
    datasets, rows = 200, 60
    for seed in range(datasets):
        hardness = rng.normal(size=rows)  # shared by both systems: what pairing is for
        a = scores(hardness + rng.normal(scale=0.3, size=rows) + 0.1)
        b = scores(hardness + rng.normal(scale=0.3, size=rows))
        change = compare(Unbounded(), a, b, seed=seed)
        held += change.low <= 0.1 <= change.high
        same = compare(Unbounded(), b, scores(hardness + rng.normal(scale=0.3, size=rows)), seed=seed)
        alarms += same.p_value < 0.05
        assert (same.p_value < 0.05) == (not same.low <= 0 <= same.high) or abs(same.p_value - 0.05) < 0.005
    assert 0.92 <= held / datasets <= 0.98
    assert 0.02 <= alarms / datasets <= 0.08


class Unbounded(Mean):
    """Scores without a worst value."""

    worst = float("-inf")
    best = float("inf")


def test_pairing_makes_intervals_narrow() -> None:
    rng = np.random.default_rng(7)
    hardness = rng.normal(size=100)
    a, b = scores(hardness + 0.1), scores(hardness)
    change = compare(Unbounded(), a, b)
    single = bootstrap_interval(Mean().values, a)
    assert change.low > 0.09 and change.high < 0.11
    assert single.high - single.low > 0.3


def test_bca_agrees_with_scipy() -> None:
    values = np.random.default_rng(8).exponential(size=60)
    ours = bootstrap_interval(Mean().values, scores(values), resamples=20_000)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="BCa", rng=1).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=0.02)
    plain = np.quantile(
        [values[np.random.default_rng(i).integers(0, 60, 60)].mean() for i in range(4000)], [0.025, 0.975]
    )
    assert ours.high > plain[1] + 0.01, "the correction for skewness moves the interval"


def test_bca_corrects_a_biased_statistic_as_scipy_does() -> None:
    """The variance of 30 values, which resampling makes too small: the term for bias does most of the work."""
    values = np.random.default_rng(10).exponential(size=30)

    def variance(statistics_NS: Array, counts_BN: Array) -> Array:
        x, n = statistics_NS[:, 0], counts_BN.sum(axis=1)
        spread: Array = counts_BN @ x**2 / n - (counts_BN @ x / n) ** 2
        return spread

    ours = bootstrap_interval(variance, scores(values), 0.8, resamples=20_000)
    theirs = stats.bootstrap((values,), np.var, confidence_level=0.8, n_resamples=20_000, method="BCa", rng=1)
    expected = theirs.confidence_interval
    assert (ours.low, ours.high) == pytest.approx((expected.low, expected.high), rel=0.02)


def test_right_or_wrong_metrics_get_the_exact_interval() -> None:
    found = metric_interval(Right(), scores([1.0] * 47 + [0.0] * 3))
    expected = stats.binomtest(47, 50).proportion_ci(0.95, method="exact")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.method == "Clopper-Pearson"


def test_all_rows_perfect_is_not_certainty() -> None:
    perfect = metric_interval(Mean(), scores([1.0] * 200))
    assert perfect.value == 1 and perfect.high == 1
    assert perfect.low == pytest.approx(0.025 ** (1 / 200))
    hopeless = metric_interval(Mean(), scores([0.0] * 200))
    assert hopeless.low == 0 and hopeless.high == pytest.approx(1 - 0.025 ** (1 / 200))


def test_systems_that_never_differ_may_still_differ_a_little() -> None:
    same = compare(Right(), scores([1.0] * 100), scores([1.0] * 100))
    assert same.difference == 0 and same.p_value == 1
    assert same.low == pytest.approx(-(1 - 0.025 ** (1 / 100))) and same.high == -same.low
    assert same.standard_error > 0


@pytest.mark.parametrize("rows", [2, 3, 5, 20, 100])
@pytest.mark.parametrize("gain", [0.1, 0.5, 1.0])
def test_systems_that_differ_equally_on_every_row(rows: int, gain: float) -> None:
    change = compare(Mean(), scores([gain] * rows), scores([0.0] * rows))
    assert -1 <= change.low < change.high <= 1  # two shares cannot differ by more
    assert (change.p_value < 0.05) == (change.low > 0)  # a few equal rows prove nothing


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (1, 0), (8, 2), (2, 8), (30, 10), (5, 5)])
def test_mcnemar_is_the_binomial_test(better: int, worse: int) -> None:
    n, k = better + worse, max(better, worse)
    tail = sum(math.comb(n, i) for i in range(k, n + 1)) / 2**n if n else 1.0
    assert mcnemar(better, worse) == pytest.approx(min(1.0, 2 * tail) if better != worse else 1.0)


def test_binary_metrics_are_compared_by_mcnemar() -> None:
    a, b = scores([1] * 20 + [0] * 5 + [1] * 8 + [0] * 2), scores([1] * 20 + [0] * 5 + [0] * 8 + [1] * 2)
    change = compare(Right(), a, b)
    assert change.difference == pytest.approx(6 / 35)
    assert change.p_value == pytest.approx(mcnemar(8, 2))
    assert change.test.startswith("McNemar")


@pytest.mark.parametrize("rows", [12, 40, 100])
def test_interval_and_exact_test_agree_for_right_or_wrong_metrics(rows: int) -> None:
    for better in range(min(rows, 13)):
        for worse in range(min(rows - better, 5)):
            a = scores([1] * better + [0] * (rows - better))
            b = scores([0] * better + [1] * worse + [0] * (rows - better - worse))
            change = compare(Right(), a, b)
            assert (change.low > 0 or change.high < 0) == (change.p_value < 0.05), (better, worse)
            assert change.low <= change.difference <= change.high


def test_four_wins_and_no_loss_prove_nothing() -> None:
    change = compare(Right(), scores([1.0] * 4 + [0.0] * 96), scores([0.0] * 100))
    assert change.p_value == pytest.approx(0.125)
    assert change.low < 0 < change.high


@pytest.mark.parametrize("confidence", [0.8, 0.9, 0.95, 0.99])
def test_interval_and_p_value_agree_for_every_other_metric(confidence: float) -> None:
    rng = np.random.default_rng(11)
    for seed in range(60):
        a, b = scores(rng.beta(2, 2, 30) + rng.uniform(0, 0.2)), scores(rng.beta(2, 2, 30))
        change = compare(Mean(), a, b, confidence, seed)
        assert (change.low > 0 or change.high < 0) == (change.p_value <= 1 - confidence)


@pytest.mark.parametrize("beyond", [0, 48, 49, 50, 51])
@pytest.mark.parametrize("side", [1, -1])
def test_interval_and_p_value_agree_at_the_very_edge(beyond: int, side: int) -> None:
    """2,000 resamples, of which so many lie on the other side of zero: 49 are significant at 5 %, 50 are not."""
    drawn = np.sort(side * np.concatenate([np.full(beyond, -0.1), np.linspace(0.1, 0.2, 2000 - beyond)]))
    change = _bootstrap_comparison(Mean(), side * 0.15, drawn, 100, 0.95)
    assert (change.low > 0 or change.high < 0) == (change.p_value <= 0.05) == (beyond <= 49)


# rows that repeat


def test_groups_are_drawn_whole() -> None:
    groups = number_groups(["x", "y", "x", "z", "y", "x"])
    assert groups.tolist() == [0, 1, 0, 2, 1, 0]
    drawn = np.concatenate(list(resample(groups, seed=1, resamples=300)))
    assert (drawn[:, 0] == drawn[:, 2]).all() and (drawn[:, 0] == drawn[:, 5]).all()
    assert (drawn[:, 0] + drawn[:, 1] + drawn[:, 3] == 3).all()


@pytest.mark.parametrize("copies", [2, 10])
def test_copies_of_rows_change_nothing(copies: int) -> None:
    rng = np.random.default_rng(12)
    a, b = rng.beta(4, 1, 50), rng.beta(3, 1, 50)
    groups = np.repeat(np.arange(50), copies)
    more_a, more_b = scores(np.repeat(a, copies)), scores(np.repeat(b, copies))
    one, many = metric_interval(Mean(), scores(a)), metric_interval(Mean(), more_a, groups_N=groups)
    assert (many.value, many.low, many.high) == pytest.approx((one.value, one.low, one.high))
    assert many.method == one.method == "BCa bootstrap"
    first, second = compare(Mean(), scores(a), scores(b)), compare(Mean(), more_a, more_b, groups_N=groups)
    assert astuple(second)[:-1] == pytest.approx(astuple(first)[:-1])


@pytest.mark.parametrize("metric", [Mean(), Right()])
def test_false_alarms_stay_rare_where_rows_repeat(metric: Mean) -> None:
    """No true difference, 40 different rows, each there five times: nominal 5 %."""
    rng, groups = np.random.default_rng(13), np.repeat(np.arange(40), 5)
    counted = naive = 0
    for seed in range(150):
        a, b = (scores(np.repeat(rng.random(40) < 0.6, 5)) for _ in range(2))
        found = compare(metric, a, b, seed=seed, groups_N=groups)
        counted += found.low > 0 or found.high < 0
        naive += compare(metric, a, b, seed=seed).p_value < 0.05
    assert counted / 150 <= 0.09
    assert naive / 150 > 0.25, "the same rows counted one by one give many false alarms"


def test_exact_methods_need_rows_that_differ() -> None:
    a, b = scores([1.0, 0.0] * 30), scores([0.0, 1.0, 1.0] * 20)
    groups = np.array([0, *range(59)])
    assert metric_interval(Right(), a, groups_N=groups).method == "BCa bootstrap"
    assert compare(Right(), a, b, groups_N=groups).test == "paired bootstrap"


def test_perfect_copies_are_bounded_by_the_number_of_groups() -> None:
    found = metric_interval(Right(), scores([1.0] * 200), groups_N=np.repeat(np.arange(20), 10))
    assert found.low == pytest.approx(0.025 ** (1 / 20))
    same = compare(Mean(), scores([1.0] * 200), scores([1.0] * 200), groups_N=np.repeat(np.arange(20), 10))
    assert same.high == pytest.approx(1 - 0.025 ** (1 / 20))


def test_every_row_needs_a_group() -> None:
    with pytest.raises(ValueError, match="2 groups were named for 3 rows"):
        metric_interval(Mean(), scores([1.0, 0.0, 1.0]), groups_N=np.array([0, 1]))


def test_clopper_pearson_ends() -> None:
    assert clopper_pearson(0, 10)[0] == 0 and clopper_pearson(10, 10)[1] == 1
    assert clopper_pearson(0, 10)[1] == pytest.approx(1 - 0.025 ** (1 / 10))
    with pytest.raises(ValueError, match="3 successes of 2 trials"):
        clopper_pearson(3, 2)


def test_no_failures_still_allow_some() -> None:
    found = failures_per_million(0, 200)
    assert found["count"] == 0 and found["per_million"] == 0
    assert found["per_million_high"] == pytest.approx(1e6 * (1 - 0.05 ** (1 / 200)))
    assert found["per_million_high"] == pytest.approx(3e6 / 200, rel=0.01)  # the rule of three
    some = failures_per_million(4, 200)
    assert some["per_million"] == pytest.approx(20_000) and some["per_million_high"] > 20_000
    assert failures_per_million(5, 5)["per_million_high"] == 1e6


def test_the_detectable_effect_is_detected_four_times_in_five() -> None:
    rng = np.random.default_rng(9)
    rows, spread = 100, 0.5
    effect = minimum_detectable_effect(spread / math.sqrt(rows))
    found = 0
    for seed in range(200):
        a, b = scores(rng.normal(effect, spread, rows)), scores(np.zeros(rows))
        found += compare(Unbounded(), a, b, seed=seed).p_value < 0.05
    assert 0.74 <= found / 200 <= 0.86


def test_different_rows_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="same rows"):
        compare(Mean(), scores([1.0]), scores([1.0, 0.0]))
    with pytest.raises(ValueError, match="same rows"):
        compare(Mean(), scores([]), scores([]))


@pytest.mark.parametrize("gain", [0.0, -0.25, 1.0])
def test_an_equal_gain_of_all_rows_lies_within_its_interval(gain: float) -> None:
    found = gain_interval(np.full(20, gain))
    margin = clopper_pearson(0, 20)[1]
    assert (found.low, found.high) == (max(-1.0, gain - margin), min(1.0, gain + margin))


def test_gains_that_differ_are_resampled_as_scores_are() -> None:
    gains_N = np.random.default_rng(0).normal(0.1, 0.2, 40)
    assert gain_interval(gains_N) == mean_interval(gains_N)
