"""From log-odds of letters to a probability that a reply is the better one, and how far that can be trusted.

For a pair (a, b) and one principle the critic is asked twice. With d1 = log p(A) - log p(B) where a stands first, and
d2 the same where b does,

    lean = (d1 - d2) / 2        for a, whatever the place
    bias = (d1 + d2) / 2        for the first place, whatever stands there

since d1 = bias + lean and d2 = bias - lean. The probability is the mean over principles of sigmoid(lean / T). T is 1,
or fitted to pairs that people judged, by the least mean of -log p(what they chose) (temperature scaling, Guo et al.
2017, arXiv:1706.04599). A critic that knows nothing gets the largest T that is tried, and all of its probabilities lie
near 1/2: soft labels then teach nothing, which is right. What is told of calibrated probabilities is cross-fitted: half
of the pairs are told with the T of the other half.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from luthier.evaluation.calibration import least_temperature
from luthier.evaluation.metrics.base import Array
from luthier.evaluation.share import Number, Score, Share
from luthier.evaluation.significance import Interval, metric_interval

TEMPERATURES = (0.05, 100.0)
"""Between which T is looked for."""
BINS = 10
"""Of the reliability curve; each holds as many pairs as the others."""
READ = math.log(9.0)
"""The log-odds that a letter counts for where a model only wrote it: both orders together then say 9 to 1."""


@dataclass(frozen=True)
class Vote:
    """What the critic says of a pair by one principle."""

    principle: str
    lean: float
    """For the first reply of the pair, in nats."""
    bias: float
    """For whatever stands first."""

    @property
    def names_a_place(self) -> bool:
        """Whether both orders name the same place, so that the critic contradicts itself."""
        return abs(self.bias) > abs(self.lean)


def vote_of(principle: str, first: float | None, second: float | None) -> Vote | None:
    """A vote from the log-odds of A over B in both orders; None: one of them is not known."""
    if first is None or second is None:
        return None
    return Vote(principle, (first - second) / 2, (first + second) / 2)


def probability(votes: Sequence[Vote], temperature: float) -> float:
    """That the first reply of a pair is the better one; 1/2 where nobody voted."""
    if not votes:
        return 0.5
    return float(np.mean([sigmoid(vote.lean / temperature) for vote in votes]))


def sigmoid(value: float) -> float:
    """1 / (1 + exp(-value)), at any size."""
    return float(expit(value))


@dataclass(frozen=True)
class Bin:
    """Pairs of about the same probability."""

    pairs: int
    told: float
    """Mean probability of what the critic prefers."""
    right: float
    """Share of pairs in which people chose that."""


@dataclass(frozen=True)
class Calibration:
    """How the critic's probabilities and people's choices go together."""

    pairs: int
    temperature: float
    right: Interval
    """Share of pairs in which it prefers what people chose; a tie counts half."""
    loss: Interval
    """Mean of -log p(what people chose), T = 1; a coin has 0.693."""
    fitted_loss: Interval
    """The same with the T of the other half of the pairs."""
    off: float
    """Expected calibration error, T = 1: how far probabilities lie from outcomes, over the bins."""
    fitted_off: float
    """The same with the T of the other half."""
    curve: tuple[Bin, ...]
    """With the T of the other half."""

    @property
    def knows_something(self) -> bool:
        """Whether it is surely right more often than a coin."""
        return self.right.low > 0.5


def calibrate(voted: Sequence[Sequence[Vote]], seed: int, confidence: float = 0.95) -> Calibration:
    """Fit T to pairs whose first reply is the one that people chose.

    Args:
        voted: of each pair the votes.
        seed: of intervals and halves.
        confidence: of intervals.

    Raises:
        ValueError: there are fewer than two pairs.
    """
    if len(voted) < 2:
        raise ValueError(f"{len(voted)} pairs; a temperature is fitted to two at least")
    halves_N = np.random.default_rng(seed).permutation(len(voted)) % 2
    crossed = [
        fit_temperature([votes for votes, half in zip(voted, halves_N, strict=True) if half != own]) for own in (0, 1)
    ]
    plain_N = np.array([probability(votes, 1.0) for votes in voted])
    fitted_N = np.array([probability(v, crossed[half]) for v, half in zip(voted, halves_N, strict=True)])
    right_N = (plain_N > 0.5) + 0.5 * (plain_N == 0.5)
    return Calibration(
        len(voted),
        fit_temperature(voted),
        _right(right_N, confidence, seed),
        _mean(-np.log(np.maximum(plain_N, 1e-12)), confidence, seed),
        _mean(-np.log(np.maximum(fitted_N, 1e-12)), confidence, seed),
        expected_error(curve_of(plain_N)),
        expected_error(curve_of(fitted_N)),
        curve_of(fitted_N),
    )


def fit_temperature(voted: Sequence[Sequence[Vote]]) -> float:
    """T with the least loss on pairs whose first reply is the one that people chose, each with a vote at least. Never
    below 0: a critic that is wrong more often than right is not believed the other way around, but less and less."""

    leans_V = np.array([vote.lean for votes in voted for vote in votes])
    counts_N = np.array([len(votes) for votes in voted])
    pair_V = np.repeat(np.arange(len(voted)), counts_N)

    def loss(temperature: float) -> float:
        sure_V = expit(leans_V / temperature)
        sure_N = np.bincount(pair_V, weights=sure_V) / counts_N
        return -float(np.log(np.maximum(sure_N, 1e-12)).mean())

    return least_temperature(loss, *TEMPERATURES)


def curve_of(chosen_N: Array) -> tuple[Bin, ...]:
    """Pairs in the order of how sure the critic is of what it prefers, in bins of equal size.

    Args:
        chosen_N: its probability of what people chose.
    """
    told_N, right_N = np.maximum(chosen_N, 1 - chosen_N), (chosen_N > 0.5) + 0.5 * (chosen_N == 0.5)
    order = np.argsort(told_N, kind="stable")
    parts = [part for part in np.array_split(order, min(BINS, len(order))) if len(part)]
    return tuple(Bin(len(part), float(told_N[part].mean()), float(right_N[part].mean())) for part in parts)


def expected_error(curve: Sequence[Bin]) -> float:
    """Mean distance of probability and outcome over the bins (Naeini et al. 2015), each by its pairs."""
    pairs = sum(one.pairs for one in curve)
    return sum(one.pairs * abs(one.told - one.right) for one in curve) / pairs


def _right(right_N: Array, confidence: float, seed: int) -> Interval:
    metric = Share() if set(right_N) <= {0.0, 1.0} else Score()
    return metric_interval(metric, right_N[:, None], confidence, seed)


def _mean(values_N: Array, confidence: float, seed: int) -> Interval:
    return metric_interval(Number(), values_N[:, None], confidence, seed)
