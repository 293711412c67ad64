"""Numbers as probabilities that can be believed: a temperature, how far confidence is off, and when to abstain.

    p = softmax(z / T), or sigmoid(z / T) of each label by itself       T: the least NLL on validation rows

(Guo et al. 2017, arXiv:1706.04599, section 4.2.) A temperature changes no answer of its own. Wanted is not quite 1 but
(n + 1) / (n + 2), the rest spread over the other labels (Platt 1999, section 2.2), so that rows that are all right do
not call for a temperature of 0.

A threshold says from which confidence on an answer is given, so that of the answers given a wanted share is right. It
is found on validation rows, going down from the surest ones and stopping where the exact binomial lower bound of what
is right (Clopper and Pearson 1934) falls below what is wanted: tests in a fixed order, of which the first that fails
ends all, so that the bound holds for the threshold that is found as well (Angelopoulos et al. 2021, arXiv:2110.01052,
section 3.1). Two wrong answers among the surest rows would end it before it began, so it begins at several places, of
which each has its share of the allowed error and takes over what passed the ones before (the fallback procedure,
Wiens 2003): at the fewest rows that one wrong answer leaves enough of, and at each doubling up to two thirds of all.

Shapes: N rows, C labels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats
from scipy.optimize import minimize_scalar

from luthier.evaluation.metrics.base import Array

LEVEL = 0.95
"""Confidence of the lower bound that a threshold must keep; one-sided."""
LAST_START = 2 / 3
"""Share of the rows beyond which no threshold is looked for anew."""
MOST_TIMES, MOST_ROWS = 10, 10_000
"""Times as many validation rows as there are, and how many in all: to look further takes minutes, and who needs more
will not have them."""
COLDEST, HOTTEST = 0.02, 50.0


@dataclass(frozen=True)
class Threshold:
    """From which confidence on an answer is given."""

    confidence: float
    answered: int
    right: int
    rows: int
    """Validation rows that it was found on; `answered` of them are at least as sure, and `right` of these right."""
    low: float
    """Lower bound of the share of answers that are right, at the confidence that its start left."""

    def dump(self) -> dict[str, Any]:
        """Plain values."""
        return vars(self)


def softmax(logits_NC: Array, temperature: float = 1.0) -> Array:
    """(N, C) probabilities."""
    return np.asarray(special.softmax(logits_NC / temperature, axis=1), dtype=np.float64)


def fit_temperature(logits_NC: Array, wanted_N: Sequence[int]) -> float:
    """The temperature of one label of many; 1 where no row tells.

    Args:
        logits_NC: of validation rows.
        wanted_N: the number of each row's label; below 0 where it is none of them.
    """
    wanted = np.asarray(wanted_N, dtype=np.int64)
    known = wanted >= 0
    logits, wanted = logits_NC[known], wanted[known]
    if not len(wanted):
        return 1.0
    rows, labels = logits.shape
    target = np.full((rows, labels), 1 / (rows + 2) / max(labels - 1, 1))
    target[np.arange(rows), wanted] = (rows + 1) / (rows + 2)
    return least_temperature(lambda t: -float((target * special.log_softmax(logits / t, axis=1)).sum()))


def fit_temperatures(logits_NC: Array, wanted_NC: Array) -> list[float]:
    """The temperature of each label, where a text may have several."""
    rows = len(logits_NC)
    low, high = 1 / (rows + 2), (rows + 1) / (rows + 2)
    found = []
    for logits_N, wanted_N in zip(logits_NC.T, wanted_NC.T, strict=True):
        target_N = np.where(wanted_N > 0, high, low)
        loss = partial(_binary, logits_N, target_N)
        found.append(least_temperature(loss) if rows else 1.0)
    return found


def _binary(logits_N: Array, target_N: Array, temperature: float) -> float:
    z_N = logits_N / temperature
    return -float((target_N * special.log_expit(z_N) + (1 - target_N) * special.log_expit(-z_N)).sum())


def least_temperature(loss: Callable[[float], float], coldest: float = COLDEST, hottest: float = HOTTEST) -> float:
    """The temperature of the least loss, which has one minimum between both bounds or is least at one of them."""

    def of_log(log_temperature: float) -> float:
        return loss(float(np.exp(log_temperature)))

    bounds = (float(np.log(coldest)), float(np.log(hottest)))
    found = minimize_scalar(of_log, bounds=bounds, method="bounded")
    # the ends are not tried by the search itself
    return float(np.exp(min((float(found.x), *bounds), key=of_log)))


def calibration_error(confidence_N: Array, right_N: Array, bins: int, counts_BN: Array | None = None) -> Array:
    """(B,) expected calibration error, sum over bins of |right - confidence| / N, with bins of equal width.

    Args:
        confidence_N: of each answer, between 0 and 1.
        right_N: 1 where it is right.
        bins: how many.
        counts_BN: how often each row counts; None: once.
    """
    counts_BN = np.ones((1, len(confidence_N))) if counts_BN is None else counts_BN
    place_N = np.clip((confidence_N * bins).astype(np.int64), 0, bins - 1)
    off_NM = np.zeros((len(confidence_N), bins))
    off_NM[np.arange(len(place_N)), place_N] = right_N - confidence_N
    error_B: Array = np.abs(counts_BN @ off_NM).sum(1) / counts_BN.sum(1)
    return error_B


def find_threshold(confidence_N: Array, right_N: Array, precision: float, level: float = LEVEL) -> Threshold | None:
    """The lowest confidence from which on so many answers are right; None where validation rows cannot show it.

    Args:
        confidence_N: of the validation rows' answers.
        right_N: 1 where an answer is right.
        precision: wanted share of right answers among those given.
        level: confidence of the lower bound.
    """
    order = np.argsort(-confidence_N, kind="stable")
    sorted_N, right_N = confidence_N[order], np.cumsum(right_N[order]).round()
    rows, found = len(order), None
    if not rows:
        return None
    starts, share = _starts(precision, 1 - level, rows)
    bounds = [lower_bound(right_N, np.arange(1, rows + 1), 1 - share * passed) for passed in range(1, len(starts) + 1)]
    passed = 0
    for answered in range(starts[0], rows + 1):
        passed += answered in starts
        if not passed or (answered < rows and sorted_N[answered] == sorted_N[answered - 1]):
            continue  # equally sure answers are given together
        low = float(bounds[passed - 1][answered - 1])
        if low < precision:
            passed = 0
        else:
            found = Threshold(float(sorted_N[answered - 1]), answered, int(right_N[answered - 1]), rows, low)
    return found


def rows_to_show(confidence_N: Array, right_N: Array, precision: float) -> int | None:
    """About how many validation rows like these would show a threshold where these do not: the least multiple of them
    that does, each row so many times. None: up to `MOST_TIMES` as many, or `MOST_ROWS`, none does.

    Args:
        confidence_N, right_N, precision: as of `find_threshold`.
    """
    for times in range(2, min(MOST_TIMES, MOST_ROWS // max(1, len(right_N))) + 1):
        if find_threshold(np.tile(confidence_N, times), np.tile(right_N, times), precision) is not None:
            return times * len(right_N)
    return None


def lower_bound(successes: ArrayLike, trials: ArrayLike, level: float = LEVEL) -> Array:
    """One-sided lower bound of shares (Clopper and Pearson 1934)."""
    right, trials = np.asarray(successes, dtype=np.float64), np.asarray(trials, dtype=np.float64)
    low: Array = np.where(right > 0, stats.beta.ppf(1 - level, np.maximum(right, 1), trials - right + 1), 0.0)
    return low


def _starts(precision: float, error: float, rows: int) -> tuple[list[int], float]:
    """At how many of the surest rows it is looked anew, and the share of the error that each start has."""
    fewest, count = _fewest(precision, 1 - error, rows), 1
    while fewest * 2**count <= LAST_START * rows:
        count += 1
    fewest = _fewest(precision, 1 - error / count, rows)
    return [fewest * 2**i for i in range(count)], error / count


def _fewest(precision: float, level: float, rows: int) -> int:
    """Rows of which one may be wrong and the bound still holds; all rows where these are fewer."""
    trials_N = np.arange(1, rows + 1)
    enough = np.flatnonzero(lower_bound(trials_N - 1, trials_N, level) >= precision)
    return int(trials_N[enough[0]]) if len(enough) else rows
