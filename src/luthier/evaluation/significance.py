"""How sure a measured value is: intervals, paired tests, and what n rows can show at all.

Intervals are BCa bootstrap intervals (Efron 1987); a metric that is right or wrong on each row gets the exact binomial
one (Clopper and Pearson 1934). Two systems are always compared on the same rows: paired bootstrap of the difference,
and McNemar's exact test (1947) for right-or-wrong metrics. All of it is seeded.

The unit of resampling is the group of rows that ask the same, since a row that is there twice is no second witness:
whole groups are drawn, counts_BN = counts_BG[:, group_of_row_N] (the cluster bootstrap, Davison and Hinkley 1997,
section 3.8). Exact tests count independent rows, so they are used only where every row is a group of its own.

Shapes: N rows, G groups of rows, S statistics a row, B resamples; `groups_N` holds the group of each row, from 0 on.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import stats

from luthier.evaluation.metrics.base import Array, Metric, divide

RESAMPLES = 2000
CHUNK_CELLS = 4_000_000
"""Cells of a matrix of counts computed at once: 32 MB."""
BCA_MAX_GROUPS = 3000
"""With more groups the correction, of order 1 / sqrt(G), is not worth its G x N cells."""
ALIKE = "exact bound: rows do not differ"
"""The method where resampling sees no spread."""

Values: TypeAlias = Callable[[Array, Array], Array]
"""`Metric.values`: (statistics_NS, counts_BN) -> (B,)."""
Groups: TypeAlias = npt.NDArray[np.intp]
"""(N,) the group of each row, numbered from 0 without gaps."""


@dataclass(frozen=True)
class Interval:
    """A value and the confidence interval around it."""

    value: float
    low: float
    high: float
    method: str

    def dump(self) -> dict[str, float | None]:
        """`value`, `low` and `high`; None for what is not finite, because JSON has no name for it."""
        return {"value": finite(self.value), "low": finite(self.low), "high": finite(self.high)}


@dataclass(frozen=True)
class Comparison:
    """The difference a - b of two systems on the same rows."""

    difference: float
    low: float
    high: float
    p_value: float
    standard_error: float
    test: str


def finite(value: float) -> float | None:
    """The value, or None if it is infinite or nan."""
    return value if math.isfinite(value) else None


def resample(groups_N: Groups, seed: int, resamples: int = RESAMPLES) -> Iterator[Array]:
    """Counts (B', N) of bootstrap resamples of groups, in chunks that fit in memory; equal seeds give equal counts."""
    rng = np.random.default_rng(seed)
    size = max(1, min(resamples, CHUNK_CELLS // max(len(groups_N), 1)))
    for start in range(0, resamples, size):
        yield _draw(rng, count_groups(groups_N), min(size, resamples - start))[:, groups_N]


def _draw(rng: np.random.Generator, groups: int, resamples: int) -> Array:
    drawn = rng.integers(0, groups, size=(resamples, groups))
    drawn += np.arange(resamples)[:, None] * groups
    return np.bincount(drawn.ravel(), minlength=resamples * groups).reshape(resamples, groups).astype(np.float64)


def number_groups(keys: Sequence[str]) -> Groups:
    """The group of each row, from a key that is equal within a group (`data.split.group_keys`)."""
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([numbers[key] for key in keys], dtype=np.intp)


def count_groups(groups_N: Groups) -> int:
    """G, the number of groups."""
    return int(groups_N.max()) + 1 if len(groups_N) else 0


def _groups_of(rows: int, groups_N: Groups | None) -> Groups:
    """The groups as given, else every row by itself."""
    if groups_N is None:
        return np.arange(rows)
    if len(groups_N) != rows:
        raise ValueError(f"{len(groups_N)} groups were named for {rows} rows; expected one for each row")
    return groups_N


def metric_interval(
    metric: Metric,
    statistics_NS: Array,
    confidence: float = 0.95,
    seed: int = 0,
    groups_N: Groups | None = None,
) -> Interval:
    """The value of a metric with its interval: exact for right-or-wrong metrics, BCa bootstrap for the others and
    wherever rows repeat.

    Where all rows are perfect, or all are worthless, resampling sees no spread; the far end is then the exact bound
    for G successes (or failures) out of G, which holds for every mean of scores between worst and best.

    Args:
        metric: what is measured.
        statistics_NS: its statistics of each row.
        confidence: coverage.
        seed: decides the resamples.
        groups_N: which rows ask the same; None: all differ.

    Raises:
        ValueError: not every row has a group.
    """
    rows = len(statistics_NS)
    if not rows:
        return Interval(float("nan"), float("nan"), float("nan"), "no rows")
    groups_N = _groups_of(rows, groups_N)
    groups = count_groups(groups_N)
    if metric.binary and groups == rows:
        right = float(statistics_NS[:, 0].sum())
        low, high = clopper_pearson(round(right), rows, confidence)
        return Interval(right / rows, low, high, "Clopper-Pearson")
    found = bootstrap_interval(metric.values, statistics_NS, confidence, seed, groups_N=groups_N)
    if found.low == found.high and math.isfinite(metric.worst):
        return _at_the_end(found.value, (metric.worst, metric.best), groups, confidence)
    return found


def mean_interval(scores_N: Array, confidence: float = 0.95, seed: int = 0, groups_N: Groups | None = None) -> Interval:
    """The mean of scores between 0 and 1 with its interval, as `metric_interval` gives it to a metric.

    Raises:
        ValueError: there is no row, or not every row has a group.
    """
    found, groups = _mean(scores_N, confidence, seed, groups_N)
    return _at_the_end(found.value, (0.0, 1.0), groups, confidence) if found.low == found.high else found


def gain_interval(gains_N: Array, confidence: float = 0.95, seed: int = 0, groups_N: Groups | None = None) -> Interval:
    """The mean of differences of two such scores with its interval; where rows do not differ, as in `compare`.

    Raises:
        ValueError: there is no row, or not every row has a group.
    """
    found, groups = _mean(gains_N, confidence, seed, groups_N)
    if found.low == found.high:
        margin = clopper_pearson(0, groups, confidence)[1]
        return Interval(found.value, max(-1.0, found.value - margin), min(1.0, found.value + margin), ALIKE)
    return found


def _mean(values_N: Array, confidence: float, seed: int, groups_N: Groups | None) -> tuple[Interval, int]:
    """The mean with its bootstrap interval, and how many groups of rows there are."""
    groups_N = _groups_of(len(values_N), groups_N)
    found = bootstrap_interval(_means, values_N[:, None], confidence, seed, groups_N=groups_N)
    return found, count_groups(groups_N)


def _means(statistics_NS: Array, counts_BN: Array) -> Array:
    return divide(counts_BN @ statistics_NS[:, 0], counts_BN.sum(1), float("nan"))


def _at_the_end(value: float, ends: tuple[float, float], groups: int, confidence: float) -> Interval:
    low, high = sorted(ends)
    margin = (high - low) * clopper_pearson(0, groups, confidence)[1]
    return Interval(value, max(low, value - margin), min(high, value + margin), ALIKE)


def bootstrap_interval(
    values: Values,
    statistics_NS: Array,
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = RESAMPLES,
    groups_N: Groups | None = None,
) -> Interval:
    """The value over all rows with its BCa bootstrap interval (percentile where BCa cannot be computed).

    Args:
        values: the metric, or any function of its kind.
        statistics_NS: at least one row.
        confidence: coverage.
        seed: decides the resamples.
        resamples: how many.
        groups_N: which rows ask the same; None: all differ.

    Raises:
        ValueError: not every row has a group.
    """
    rows = len(statistics_NS)
    groups_N = _groups_of(rows, groups_N)
    value = float(values(statistics_NS, np.ones((1, rows)))[0])
    drawn = np.concatenate([values(statistics_NS, counts) for counts in resample(groups_N, seed, resamples)])
    drawn = drawn[~np.isnan(drawn)]
    if not len(drawn) or math.isnan(value):
        return Interval(value, float("nan"), float("nan"), "undefined")
    tails = None
    if count_groups(groups_N) <= BCA_MAX_GROUPS:
        tails = _bca_tails(value, drawn, _jackknife(values, statistics_NS, groups_N), confidence)
    method = "BCa bootstrap" if tails else "percentile bootstrap"
    low, high = np.quantile(drawn, tails or ((1 - confidence) / 2, (1 + confidence) / 2))
    return Interval(value, float(low), float(high), method)


def _bca_tails(value: float, drawn: Array, left_out: Array, confidence: float) -> tuple[float, float] | None:
    """The two quantiles of the resampled values that bound the interval, corrected for bias and skewness.

    Efron 1987, equation 6.8: Phi(z0 + (z0 + z) / (1 - a (z0 + z))), a from the jackknife.
    """
    below = (np.mean(drawn < value) + np.mean(drawn <= value)) / 2
    if not 0 < below < 1:
        return None
    bias = stats.norm.ppf(below)
    centered = left_out.mean() - left_out
    spread = float((centered**2).sum())
    if math.isnan(spread) or spread == 0:
        return None
    acceleration = float((centered**3).sum()) / (6 * spread**1.5)
    tails = []
    for tail in ((1 - confidence) / 2, (1 + confidence) / 2):
        z = bias + stats.norm.ppf(tail)
        if acceleration * z >= 1:
            return None
        tails.append(float(stats.norm.cdf(bias + z / (1 - acceleration * z))))
    return tails[0], tails[1]


def _jackknife(values: Values, statistics_NS: Array, groups_N: Groups) -> Array:
    """(G,) the value without each group."""
    groups, rows = count_groups(groups_N), len(statistics_NS)
    size = max(1, CHUNK_CELLS // rows)
    parts = []
    for start in range(0, groups, size):
        left_out = np.arange(start, min(start + size, groups))
        parts.append(values(statistics_NS, (groups_N[None, :] != left_out[:, None]).astype(np.float64)))
    return np.concatenate(parts)


def compare(
    metric: Metric,
    a_NS: Array,
    b_NS: Array,
    confidence: float = 0.95,
    seed: int = 0,
    groups_N: Groups | None = None,
) -> Comparison:
    """The difference a - b on the same rows, with its interval and p-value.

    For a right-or-wrong metric on rows that all differ: McNemar's exact test, and an interval that is never narrower
    than what this test allows. Else: paired percentile bootstrap, and twice the smaller share of resamples on either
    side of no difference. An interval that leaves 0 out always comes with p <= 1 - confidence.

    Args:
        metric: what is measured.
        a_NS: its statistics of each row for one system.
        b_NS: and for the other.
        confidence: coverage.
        seed: decides the resamples.
        groups_N: which rows ask the same; None: all differ.

    Raises:
        ValueError: the systems did not answer the same number of rows, or none; not every row has a group.
    """
    if len(a_NS) != len(b_NS) or not len(a_NS):
        raise ValueError(
            f"a paired comparison needs the same rows for both, at least one; found {len(a_NS)} and {len(b_NS)}"
        )
    rows = len(a_NS)
    groups_N = _groups_of(rows, groups_N)
    ones = np.ones((1, rows))
    difference = float(metric.values(a_NS, ones)[0] - metric.values(b_NS, ones)[0])
    drawn = np.concatenate([metric.values(a_NS, c) - metric.values(b_NS, c) for c in resample(groups_N, seed)])
    drawn = drawn[~np.isnan(drawn)]
    if not len(drawn):
        return Comparison(difference, float("nan"), float("nan"), float("nan"), float("nan"), "undefined")
    groups = count_groups(groups_N)
    found = _bootstrap_comparison(metric, difference, np.sort(drawn), groups, confidence)
    return _with_mcnemar(found, a_NS, b_NS, confidence) if metric.binary and groups == rows else found


def _bootstrap_comparison(
    metric: Metric, difference: float, drawn: Array, groups: int, confidence: float
) -> Comparison:
    """From the resampled differences, in order. The ends are the order statistics that make interval and p-value agree
    exactly: 0 is outside if, and only if, p <= 1 - confidence."""
    outside = max(0, math.floor((1 - confidence) / 2 * (len(drawn) + 1)) - 1)
    low, high = float(drawn[outside]), float(drawn[len(drawn) - 1 - outside])
    p_value = bootstrap_p_value(drawn)
    standard_error = float(drawn.std(ddof=1)) if len(drawn) > 1 else float("nan")
    if low == high and math.isfinite(metric.worst):  # every resample agrees: what G groups allow is all that is known
        span = abs(metric.best - metric.worst)
        margin = span * clopper_pearson(0, groups, confidence)[1]
        low, high = max(-span, low - margin), min(span, high + margin)
        standard_error = margin / float(stats.norm.ppf((1 + confidence) / 2))
        # the level at which that interval would just reach 0
        p_value = max(p_value, min(1.0, 2 * (1 - abs(difference) / span) ** groups))
    return Comparison(difference, low, high, p_value, standard_error, "paired bootstrap")


def _with_mcnemar(found: Comparison, a_NS: Array, b_NS: Array, confidence: float) -> Comparison:
    """With the p-value of McNemar's exact test, and the interval widened to the exact one of its coin.

    Of the rows that only one system gets right, a share in [low, high] (Clopper and Pearson) is `a`'s; the difference
    that this share makes, (2 share - 1) * (better + worse) / N, excludes 0 exactly when the test is significant.
    """
    better = int(((a_NS[:, 0] > 0) & (b_NS[:, 0] == 0)).sum())
    worse = int(((a_NS[:, 0] == 0) & (b_NS[:, 0] > 0)).sum())
    low, high = found.low, found.high
    if better + worse:
        exact = [
            (2 * x - 1) * (better + worse) / len(a_NS) for x in clopper_pearson(better, better + worse, confidence)
        ]
        low, high = min(low, exact[0]), max(high, exact[1])
    test = "McNemar's exact test; the wider of paired bootstrap and exact interval"
    return replace(found, low=low, high=high, p_value=mcnemar(better, worse), test=test)


def bootstrap_p_value(drawn: Array) -> float:
    """Two-sided p-value of resampled differences; never 0, because so few resamples cannot say that."""
    resamples = len(drawn)
    tail = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return min(1.0, 2 * (tail + 1) / (resamples + 1))


def mcnemar(better: int, worse: int) -> float:
    """Two-sided exact p-value of McNemar's test: rows that only one system gets right, `better` of one and `worse` of
    the other, are a fair coin if the systems are equally good."""
    if better + worse == 0:
        return 1.0
    return float(stats.binomtest(better, better + worse, 0.5).pvalue)


def clopper_pearson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact binomial interval of a share; covers at least `confidence`."""
    if not 0 <= successes <= trials or not trials:
        raise ValueError(f"{successes} successes of {trials} trials")
    alpha = 1 - confidence
    low = 0.0 if successes == 0 else float(stats.beta.ppf(alpha / 2, successes, trials - successes + 1))
    high = 1.0 if successes == trials else float(stats.beta.ppf(1 - alpha / 2, successes + 1, trials - successes))
    return low, high


def failures_per_million(failures: int, rows: int, confidence: float = 0.95) -> dict[str, float]:
    """Failures, per million answers, and the one-sided upper bound that this many rows allow.

    At 0 failures the bound is 1 - (1 - confidence) ** (1 / n), about 3 / n at 95 % (the rule of three): 200 rows
    without a failure still allow nearly 15,000 in a million.
    """
    if not 0 <= failures <= rows or not rows:
        raise ValueError(f"{failures} failures of {rows} rows")
    high = 1.0 if failures == rows else float(stats.beta.ppf(confidence, failures + 1, rows - failures))
    return {"count": failures, "per_million": 1e6 * failures / rows, "per_million_high": 1e6 * high}


def minimum_detectable_effect(standard_error: float, confidence: float = 0.95, power: float = 0.8) -> float:
    """The smallest true difference that a paired comparison finds with probability `power`.

    (z of 1 - alpha / 2 + z of power) * standard error of the difference; the standard error already has n in it.
    """
    return float(stats.norm.ppf((1 + confidence) / 2) + stats.norm.ppf(power)) * standard_error
