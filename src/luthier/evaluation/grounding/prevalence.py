"""What share of answers is supported, unsupported or abstained, when the checker that counts them errs now and then.

With C[t, v] the share of answers of class t that get verdict v, the counted shares are `true @ C`, so that

    true shares = counted shares @ inverse of C, put onto the nearest mix of classes

(the matrix form of Rogan and Gladen 1978, American Journal of Epidemiology 107(1), 71-76). All classes at once, because
one against the rest has no fixed specificity: what is falsely counted depends on which others there are, and a training
that trades one of them for another would seem to change the first. Both factors on the right are estimates: each row of
C is drawn from its Jeffreys posterior, Dirichlet(n + 1/2), and the counted shares by resampling groups of rows. The
errors are taken to be those of the hand-checked rows, which is an assumption wherever answers are of another kind.
Where more, or less, is counted than such a checker could count, the assumption is false, and the intervals hold what
was counted, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from luthier.evaluation.metrics.base import Array
from luthier.evaluation.significance import Comparison, Groups, Interval, count_groups, resample

DRAWS = 2000
LEAST_POWER = 0.05
"""Below this determinant a confusion tells next to nothing (of two classes: sensitivity + specificity - 1), and a draw
allows every share."""
_METHOD = "confusion inverted, errors and rows resampled"


@dataclass(frozen=True)
class Corrected:
    """How shares are freed of the errors that a checker made on hand-checked rows."""

    confusion: Sequence[Sequence[int]]
    """(V, V) rows by hand-checked label (first index) and by verdict; each label occurs."""
    confidence: float
    seed: int

    def shares(self, given_NV: Array, groups_N: Groups) -> list[Interval]:
        """The true share of each class, from rows that are 1 for the verdict given, else 0; nan for no rows."""
        if not len(given_NV):
            return [Interval(float("nan"), float("nan"), float("nan"), "no rows") for _ in self.confusion]
        given_V, given_BV = given_NV.mean(axis=0), _resampled(given_NV, self.seed, groups_N)
        found = _intervals(self._true(given_V), *self._drawn(given_BV), self.confidence)
        if self._could_count(given_V):
            return found
        tail = (1 - self.confidence) / 2
        low_V, high_V = np.quantile(given_BV, tail, axis=0), np.quantile(given_BV, 1 - tail, axis=0)
        return [
            Interval(one.value, min(one.low, float(low)), max(one.high, float(high)), one.method)
            for one, low, high in zip(found, low_V, high_V, strict=True)
        ]

    def differences(self, a_NV: Array, b_NV: Array, counted: Sequence[Comparison], groups_N: Groups) -> list[Interval]:
        """The true shares of `a` minus those of `b` on the same rows; the same checker, with the same errors, counted
        both.

        An interval is never narrower, on either side, than that of its `counted` difference; and where counting tells
        no difference of any verdict from nothing, correcting does not either. One clear verdict is enough to make
        another clear: what counts as supported says something of how much is unsupported.
        """
        a_low_BV, a_high_BV = self._drawn(_resampled(a_NV, self.seed, groups_N))
        b_low_BV, b_high_BV = self._drawn(_resampled(b_NV, self.seed, groups_N))
        value_V = self._true(a_NV.mean(axis=0)) - self._true(b_NV.mean(axis=0))
        found = _intervals(value_V, a_low_BV - b_high_BV, a_high_BV - b_low_BV, self.confidence)
        open_ = all(one.low <= 0 <= one.high for one in counted)
        return [_no_surer(one, by, open_) for one, by in zip(found, counted, strict=True)]

    def _true(self, given_V: Array) -> Array:
        """(V,) true shares behind counted ones; nan if the checker is no better than a coin."""
        rates_VV = self._rates()
        if np.linalg.det(rates_VV) <= 0:
            return np.full(len(given_V), np.nan)
        return np.asarray(_nearest_mix((given_V @ np.linalg.inv(rates_VV))[None])[0])

    def _could_count(self, given_V: Array) -> bool:
        """Is there a mix of classes of which a checker with just these errors counts these shares?"""
        rates_VV = self._rates()
        return bool(np.linalg.det(rates_VV) > 0 and (given_V @ np.linalg.inv(rates_VV) >= -1e-9).all())

    def _rates(self) -> Array:
        table_VV = np.asarray(self.confusion, dtype=np.float64)
        return np.asarray(table_VV / table_VV.sum(axis=1, keepdims=True))

    def _drawn(self, given_BV: Array) -> tuple[Array, Array]:
        """(B, V) least and greatest true shares that each draw of the errors allows; they differ only where the checker
        is no use. The same errors are drawn each time."""
        rng = np.random.default_rng(self.seed)
        drawn_BVV = rng.standard_gamma(np.asarray(self.confusion) + 0.5, (len(given_BV), *np.shape(self.confusion)))
        rates_BVV = drawn_BVV / drawn_BVV.sum(axis=2, keepdims=True)
        useful_B = np.linalg.det(rates_BVV) > LEAST_POWER
        rates_BVV[~useful_B] = np.eye(given_BV.shape[1])
        true_BV = _nearest_mix((given_BV[:, None] @ np.linalg.inv(rates_BVV))[:, 0])
        return np.where(useful_B[:, None], true_BV, 0.0), np.where(useful_B[:, None], true_BV, 1.0)


def _resampled(given_NV: Array, seed: int, groups_N: Groups) -> Array:
    """(B, V) counted shares. Of a verdict that was never given resamples do not differ: its share is drawn from its
    Jeffreys posterior instead, and the others share the rest."""
    shares_BV = np.concatenate([c @ given_NV / c.sum(axis=1, keepdims=True) for c in resample(groups_N, seed, DRAWS)])
    never_V = ~given_NV.any(axis=0)
    rng, groups = np.random.default_rng(seed + 1), count_groups(groups_N)
    missed_BV = rng.beta(0.5, groups + 0.5, shares_BV.shape) * never_V
    missed_BV /= np.maximum(missed_BV.sum(axis=1, keepdims=True), 1.0)
    return np.asarray(missed_BV + shares_BV * (1 - missed_BV.sum(axis=1, keepdims=True)))


def _nearest_mix(shares_BV: Array) -> Array:
    """(B, V) the nearest shares that are not negative and add up to one (Duchi et al. 2008, figure 1)."""
    sorted_BV = -np.sort(-shares_BV, axis=1)
    over_BV = (np.cumsum(sorted_BV, axis=1) - 1) / np.arange(1, shares_BV.shape[1] + 1)
    last_B = (sorted_BV > over_BV).sum(axis=1) - 1
    return np.asarray(np.maximum(shares_BV - over_BV[np.arange(len(over_BV)), last_B][:, None], 0.0))


def _intervals(value_V: Array, low_BV: Array, high_BV: Array, confidence: float) -> list[Interval]:
    tail = (1 - confidence) / 2
    low_V, high_V = np.quantile(low_BV, tail, axis=0), np.quantile(high_BV, 1 - tail, axis=0)
    return [
        Interval(value, min(low, value), max(high, value), _METHOD)
        for value, low, high in zip(value_V.tolist(), low_V.tolist(), high_V.tolist(), strict=True)
    ]


def _no_surer(found: Interval, counted: Comparison, open_: bool) -> Interval:
    """The interval, wide enough beside the counted one; `open_`: counting tells nothing at all."""
    low = min(found.low, found.value - (counted.difference - counted.low), 0.0 if open_ else np.inf)
    high = max(found.high, found.value + (counted.high - counted.difference), 0.0 if open_ else -np.inf)
    return Interval(found.value, max(low, -1.0), min(high, 1.0), found.method)
