"""What share of answers is unsupported, when the checker that counts them is wrong now and then.

    true share = (counted share + specificity - 1) / (sensitivity + specificity - 1)

(Rogan and Gladen 1978, American Journal of Epidemiology 107(1), 71-76.) All three on the right are estimates: their
uncertainty is carried through by drawing sensitivity and specificity from their Jeffreys posteriors, Beta(x + 1/2,
n - x + 1/2), and the counted share by resampling groups of rows. Draws below 0 or above 1 are set to these ends. The
errors are taken to be those of the hand-checked rows, which is an assumption wherever answers are of another kind.
Where more, or less, is counted than such a checker could count, the assumption is false, and the interval holds what
was counted, too.
"""

from dataclasses import dataclass

import numpy as np

from luthier.evaluation.metrics.base import Array
from luthier.evaluation.significance import Comparison, Groups, Interval, count_groups, resample

DRAWS = 2000
LEAST_POWER = 0.05
"""Below this sensitivity + specificity - 1 a checker tells next to nothing, and a draw allows every share."""


@dataclass(frozen=True)
class Errors:
    """How a checker did on hand-checked rows."""

    found: int
    """Rows that are so, and were found."""
    there: int
    """Rows that are so."""
    passed: int
    """Rows that are not so, and were not found."""
    others: int
    """Rows that are not so."""

    @property
    def sensitivity(self) -> float:
        """Share of what is there that is found."""
        return self.found / self.there

    @property
    def specificity(self) -> float:
        """Share of the others that is not found."""
        return self.passed / self.others

    def correct(self, counted: float) -> float:
        """The true share behind a counted one, between 0 and 1; nan if the checker is no better than a coin."""
        power = self.sensitivity + self.specificity - 1
        return float(np.clip((counted + self.specificity - 1) / power, 0, 1)) if power > 0 else float("nan")

    def draw(self, rng: np.random.Generator, draws: int) -> tuple[Array, Array]:
        """(draws,) sensitivities and specificities that the hand-checked rows allow."""
        return (
            rng.beta(self.found + 0.5, self.there - self.found + 0.5, draws),
            rng.beta(self.passed + 0.5, self.others - self.passed + 0.5, draws),
        )


def corrected_share(counted_N: Array, errors: Errors, confidence: float, seed: int, groups_N: Groups) -> Interval:
    """The true share, from 1 for each row that was counted and 0 for the others; nan for no rows."""
    if not len(counted_N):
        return Interval(float("nan"), float("nan"), float("nan"), "no rows")
    sensitivity_B, specificity_B = errors.draw(np.random.default_rng(seed), DRAWS)
    counted, counted_B = float(counted_N.mean()), _resampled(counted_N, seed, groups_N)
    low_B, high_B = _unmixed(counted_B, sensitivity_B, specificity_B)
    found = _interval(errors.correct(counted), low_B, high_B, confidence)
    if 1 - errors.specificity <= counted <= errors.sensitivity:
        return found
    tail = (1 - confidence) / 2
    low, high = (float(np.quantile(counted_B, at)) for at in (tail, 1 - tail))
    return Interval(found.value, min(found.low, low), max(found.high, high), found.method)


def corrected_difference(
    a_N: Array, b_N: Array, errors: Errors, counted: Comparison, confidence: float, seed: int, groups_N: Groups
) -> Interval:
    """The true share of `a` minus that of `b` on the same rows; the same checker with the same errors counted both.

    The interval is never narrower than that of the `counted` difference over the checker's power: what counting cannot
    tell from nothing, correcting cannot.
    """
    sensitivity_B, specificity_B = errors.draw(np.random.default_rng(seed), DRAWS)
    a_low, a_high = _unmixed(_resampled(a_N, seed, groups_N), sensitivity_B, specificity_B)
    b_low, b_high = _unmixed(_resampled(b_N, seed, groups_N), sensitivity_B, specificity_B)
    value = errors.correct(float(a_N.mean())) - errors.correct(float(b_N.mean()))
    found = _interval(value, a_low - b_high, a_high - b_low, confidence)
    power = max(errors.sensitivity + errors.specificity - 1, LEAST_POWER)
    low, high = min(found.low, counted.low / power), max(found.high, counted.high / power)
    return Interval(value, max(low, -1.0), min(high, 1.0), found.method)


def _resampled(counted_N: Array, seed: int, groups_N: Groups) -> Array:
    """(B,) counted shares. Where no row, or every row, was counted, resamples do not differ: the share is drawn from
    its Jeffreys posterior instead."""
    groups = count_groups(groups_N)
    if counted_N.min() == counted_N.max():
        hits = groups if counted_N[0] else 0
        return np.random.default_rng(seed + 1).beta(hits + 0.5, groups - hits + 0.5, DRAWS)
    return np.concatenate([counts @ counted_N / counts.sum(axis=1) for counts in resample(groups_N, seed, DRAWS)])


def _unmixed(counted_B: Array, sensitivity_B: Array, specificity_B: Array) -> tuple[Array, Array]:
    """(B,) least and (B,) greatest true share that each draw allows; they differ only where the checker is no use."""
    power_B = sensitivity_B + specificity_B - 1
    useful_B = power_B > LEAST_POWER
    true_B = np.clip((counted_B + specificity_B - 1) / np.where(useful_B, power_B, 1.0), 0, 1)
    return np.where(useful_B, true_B, 0.0), np.where(useful_B, true_B, 1.0)


def _interval(value: float, low_B: Array, high_B: Array, confidence: float) -> Interval:
    tail = (1 - confidence) / 2
    low, high = float(np.quantile(low_B, tail)), float(np.quantile(high_B, 1 - tail))
    return Interval(value, min(low, value), max(high, value), "Rogan-Gladen, errors and rows resampled")
