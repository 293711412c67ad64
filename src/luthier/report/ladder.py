"""The systems as the rules of `decision.py` see them: who may be chosen, who is best, who is clearly better than whom.

A system that is not held out (it may have seen the test rows) is not on the ladder at all. "Clearly better" means that
the paired interval leaves zero out and that the difference matters in practice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from luthier.report.schema import (
    Difference,
    Evaluation,
    Finding,
    Forgetting,
    Gate,
    Recommendation,
    Split,
    System,
    Training,
)

SMALL_EFFECT = 0.02
"""Least difference worth acting on: two points of a score from 0 to 1; on other scales, 2 % of the baseline's value."""
COARSEST_EFFECT = 0.10
"""A tie means nothing if the test could not have seen a difference of ten points."""
FEWEST_ROWS = 20
"""Below this many test rows a bootstrap interval is not to be trusted, whatever it says."""
MOST_FAILURES = 0.05
"""A system of which more than one answer in twenty lacks the wanted form is not fit for use."""
POWER = 0.8
"""Share of true effects of the minimum detectable size that a test of this size shows."""

RUNGS: tuple[Recommendation, ...] = ("external", "prompt", "few_shot", "fine_tune")
"""From the cheapest to run and keep to the dearest."""


def rung(system: System) -> Recommendation:
    """The rung of the ladder that a system stands on; what is neither external nor a baseline is fine-tuned."""
    known: dict[str, Recommendation] = {"command": "external", "zero_shot": "prompt", "few_shot": "few_shot"}
    return known.get(system.type, "prompt" if system.baseline else "fine_tune")


@dataclass(frozen=True)
class Facts:
    """What a verdict is made of: the measured parts of a report."""

    evaluation: Evaluation | None = None
    systems: tuple[System, ...] = ()
    differences: tuple[Difference, ...] = ()
    forgetting: Forgetting | None = None
    findings: tuple[Finding, ...] = ()
    split: Split | None = None
    preflight: tuple[Gate, ...] = ()
    training: Training | None = None


class Ladder:
    """The systems as the rules see them: who may be chosen, who is best, and who is clearly better than whom."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.metric = facts.evaluation.primary_metric if facts.evaluation else ""
        self.sign = -1 if facts.evaluation and self.metric in facts.evaluation.lower_is_better else 1
        self.eligible = tuple(s for s in facts.systems if s.held_out and self.value(s) is not None)
        self.fine_tuned = self.best("fine_tune")
        self.baseline = self.best("prompt", "few_shot")
        self.external = self.best("external")

    def value(self, system: System) -> float | None:
        """Value on the primary metric; None if it was not measured."""
        return system.metrics[self.metric].value if self.metric in system.metrics else None

    def goodness(self, system: System) -> float:
        """Value with the sign that makes more better."""
        return self.sign * (self.value(system) or 0.0)

    def best(self, *rungs: Recommendation, reliable: bool = False) -> System | None:
        """The best eligible system of these rungs; of equals, the cheaper."""
        among = [s for s in self.eligible if rung(s) in rungs and (not reliable or is_reliable(s))]
        return max(among, key=lambda s: (self.goodness(s), -RUNGS.index(rung(s))), default=None)

    @property
    def unit(self) -> float:
        """What effects are a share of: 1 for scores from 0 to 1, else the size of the best baseline's value."""
        values = [v for s in self.eligible if (v := self.value(s)) is not None]
        if all(0 <= v <= 1 for v in values):
            return 1.0
        return abs(self.value(self.baseline) or 0.0) if self.baseline else max(abs(v) for v in values)

    def difference(self, a: System, b: System) -> Difference:
        """`a` minus `b` on the primary metric: the paired one if it was measured, else from the two intervals.

        Without a paired measurement the half-widths are added as for independent samples, which is wider than the
        paired interval when the systems agree on most rows: it errs on the side of "cannot tell".
        """
        if measured := paired(self.facts.differences, a.name, b.name, self.metric):
            return measured
        mine, theirs = a.metrics[self.metric], b.metrics[self.metric]
        if mine.value is None or theirs.value is None:
            return Difference(a=a.name, b=b.name, metric=self.metric)
        center, low, high = mine.value - theirs.value, None, None
        if None not in (mine.low, mine.high, theirs.low, theirs.high):
            half = (
                ((mine.high or 0) - (mine.low or 0)) ** 2 + ((theirs.high or 0) - (theirs.low or 0)) ** 2
            ) ** 0.5 / 2
            low, high = center - half, center + half
        text = "not paired: from the two intervals"
        return Difference(a=a.name, b=b.name, metric=self.metric, difference=center, low=low, high=high, test=text)

    def clearly_better(self, a: System, b: System) -> bool:
        """The interval of a minus b lies on a's side of zero, and the difference is worth acting on."""
        d = self.difference(a, b)
        if d.difference is None or d.low is None or d.high is None:
            return False
        least = d.low if self.sign > 0 else -d.high
        return least > 0 and self.sign * d.difference >= SMALL_EFFECT * self.unit

    def excludes_zero(self, a: System, b: System) -> bool:
        """The interval of a minus b lies wholly on one side of zero."""
        d = self.difference(a, b)
        return d.low is not None and d.high is not None and (d.low > 0 or d.high < 0)

    def detectable(self, a: System, b: System) -> float | None:
        """Smallest true difference that the test would show in POWER of cases, as a share of `unit`.

        As measured, else (z_confidence + z_power) / z_confidence times the half-width of the interval of a minus b.
        """
        evaluation = self.facts.evaluation
        measured = evaluation.minimum_detectable_effect.get(self.metric) if evaluation else None
        d = self.difference(a, b)
        if measured is None and evaluation is not None and d.low is not None and d.high is not None:
            z = NormalDist().inv_cdf(0.5 + evaluation.confidence / 2)
            measured = (z + NormalDist().inv_cdf(POWER)) / z * (d.high - d.low) / 2
        return None if measured is None or not self.unit else measured / self.unit


def paired(differences: Sequence[Difference], a: str, b: str, metric: str) -> Difference | None:
    """`a` minus `b` on a metric as it was measured, in either order; None if it was not."""
    for d in differences:
        if d.metric == metric and (d.a, d.b) == (a, b):
            return d
        if d.metric == metric and (d.a, d.b) == (b, a):
            return _turned(d)
    return None


def _turned(d: Difference) -> Difference:
    def negative(value: float | None) -> float | None:
        return None if value is None else -value

    turned = {
        "a": d.b,
        "b": d.a,
        "difference": negative(d.difference),
        "low": negative(d.high),
        "high": negative(d.low),
    }
    return d.model_copy(update=turned)


def failure_share(system: System) -> float:
    """Largest share of answers that lack the wanted form, over the metrics that count failures; 0 if none does."""
    return max((f.per_million / 1e6 for f in system.failures.values()), default=0.0)


def is_reliable(system: System) -> bool:
    """At most MOST_FAILURES of its answers lack the wanted form."""
    return failure_share(system) <= MOST_FAILURES
