"""The systems as the rules of `decision.py` see them: who may be chosen, who is best, who is clearly better than whom.

A system that is not held out (it may have seen the test rows) is not on the ladder at all. One that has an *obstacle*
(it fails the wanted format, is too slow, forgets too much, or knows facts that will have changed) is on it and never
chosen. "Clearly better" means that the paired interval leaves zero out and that the difference matters in practice. Two
systems of which neither is clearly better "tie" only if the test could have seen a difference of
`decision.coarsest_effect`; else nothing is known of the two. What counts as small, slow or failing are the assumptions
of the recipe's `[decision]`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist, median
from typing import Literal, TypeAlias

from luthier.evaluation.rungs import RUNGS, TRAINED, UNTRAINED, Rung
from luthier.recipe import DecisionSettings
from luthier.report.schema import (
    Difference,
    Evaluation,
    Finding,
    Forgetting,
    Gate,
    LearningCurve,
    Measure,
    Split,
    System,
    Training,
)
from luthier.report.text import label, number, percent

FEWEST_ROWS = 20
"""Below this many different test rows a bootstrap interval is not to be trusted, whatever it says."""
MOST_REPEATED = 0.05
"""More test rows that repeat others than this share are a doubt: what they ask counts more than it should."""
MOST_CUT_OFF = 0.05
"""A baseline of which more than one answer in twenty was cut off may have been beaten by the limit."""
POWER = 0.8
"""Share of true effects of the minimum detectable size that a test of this size shows."""

Obstacle: TypeAlias = Literal["format", "time", "facts", "forgetting"]
FAST_CHANGES = ("monthly", "weekly", "daily")
"""Facts that change more often than a model is usually trained again, which is each quarter."""


def rung(system: System) -> Rung:
    """The rung of the ladder that a system stands on; of a run that did not note it, what its type tells."""
    known: dict[str, Rung] = {"command": "external", "zero_shot": "prompt", "few_shot": "few_shot"}
    return system.rung or known.get(system.type, "prompt" if system.baseline else "fine_tune")


def cut_share(system: System) -> float:
    """Share of its answers that ran into the longest answer allowed."""
    return system.details.answers_cut_off / system.n if system.n else 0.0


@dataclass(frozen=True)
class Facts:
    """What a verdict is made of: the measured parts of a report."""

    evaluation: Evaluation | None = None
    systems: tuple[System, ...] = ()
    differences: tuple[Difference, ...] = ()
    forgetting: Forgetting | None = None
    """Of the training on the rows as they are."""
    forgetting_with_passages: Forgetting | None = None
    """Of the second training, on rows with retrieved passages in their prompts."""
    findings: tuple[Finding, ...] = ()
    split: Split | None = None
    preflight: tuple[Gate, ...] = ()
    training: Training | None = None
    curve: LearningCurve | None = None
    monthly_usd: Mapping[str, float] = field(default_factory=dict)
    """By system, a month of its answers at the recipe's volume, and of a trained one its share of the trainings of a
    year; without those whose price is not known."""
    assumptions: DecisionSettings = field(default_factory=DecisionSettings)


class Ladder:
    """The systems as the rules see them: who may be chosen, who is best, and who is clearly better than whom.

    `fine_tuned` is the best that was trained, `baseline` the best language model that was not; a program is `external`
    and never a baseline.
    """

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.metric = facts.evaluation.primary_metric if facts.evaluation else ""
        self.sign = -1 if facts.evaluation and self.metric in facts.evaluation.lower_is_better else 1
        self.eligible = tuple(s for s in facts.systems if s.held_out and self.value(s) is not None)
        self.fine_tuned = self.best(*TRAINED)
        self.baseline = self.best(*UNTRAINED)
        self.external = self.best("external")

    def value(self, system: System) -> float | None:
        """Value on the primary metric; None if it was not measured."""
        return system.metrics[self.metric].value if self.metric in system.metrics else None

    def goodness(self, system: System) -> float:
        """Value with the sign that makes more better."""
        return self.sign * (self.value(system) or 0.0)

    def best(self, *rungs: Rung, fit: bool = False) -> System | None:
        """The best eligible system of these rungs; of equals, the cheaper."""
        among = [s for s in self.eligible if rung(s) in rungs and (not fit or self.is_fit(s))]
        return max(among, key=lambda s: (self.goodness(s), -RUNGS.index(rung(s))), default=None)

    def is_fit(self, system: System) -> bool:
        """Whether nothing stands against choosing it."""
        return self.obstacle(system) is None

    def obstacle(self, system: System) -> str | None:
        """What stands against choosing a system, as the end of a sentence that begins with its name; None: nothing."""
        return next((text for _, text in self.obstacles(system)), None)

    def obstacles(self, system: System) -> Iterator[tuple[Obstacle, str]]:
        """All that stands against choosing a system, each as a kind and as the end of a sentence."""
        assumptions = self.facts.assumptions
        if failure_share(system) > assumptions.most_failures:
            yield "format", f"fails the wanted format in {percent(failure_share(system))} of its answers"
        seconds = seconds_of_one(system)
        if assumptions.most_seconds is not None and seconds is not None and seconds > assumptions.most_seconds:
            yield "time", f"takes {number(seconds, 2)} s for an answer, more than decision.most_seconds"
        if rung(system) == "fine_tune" and assumptions.facts_change in FAST_CHANGES:
            yield "facts", f"was taught its facts, which change {assumptions.facts_change}"
        lost = self.largest_loss(system)
        if assumptions.most_forgetting is not None and lost is not None and lost[1] > assumptions.most_forgetting:
            text = f"lost {percent(lost[1])} of {label(lost[0].name)}, more than decision.most_forgetting"
            yield "forgetting", text

    def largest_loss(self, system: System) -> tuple[Measure, float] | None:
        """Of the training that the system needed: the measure of general ability that lost the largest share."""
        forgetting = self.forgetting_of(system)
        certain = [m for m in (forgetting.measures if forgetting else ()) if is_loss(m)]
        shares = [(m, abs(m.difference.value or 0.0) / abs(m.before.value)) for m in certain if m.before.value]
        return max(shares, key=lambda found: found[1], default=None)

    def forgetting_of(self, system: System) -> Forgetting | None:
        """What the training that the system needed made the model forget; None: it needed none, or nobody knows."""
        of_training: Mapping[Rung, Forgetting | None] = {
            "fine_tune": self.facts.forgetting,
            "fine_tune+rag": self.facts.forgetting_with_passages,
        }
        return of_training.get(rung(system))

    def groups(self, *systems: System) -> int:
        """Test rows that these systems answered and that ask something different: what a test counts."""
        found = self.facts.evaluation.groups if self.facts.evaluation else None
        rows = min(system.n for system in systems)
        return rows if found is None else min(rows, found)

    def repeats(self, *systems: System) -> bool:
        """So many of the rows that these systems answered ask the same that it is a doubt."""
        rows = min((system.n for system in systems), default=0)
        return rows > 0 and rows - self.groups(*systems) > MOST_REPEATED * rows

    @property
    def unit(self) -> float:
        """What effects are a share of: from the worst to the best value; without bounds the best baseline's value."""
        bounds = self.facts.evaluation.bounds.get(self.metric) if self.facts.evaluation else None
        if bounds is not None:
            return abs(bounds[1] - bounds[0])
        if self.baseline is not None:
            return abs(self.value(self.baseline) or 0.0)
        return max((abs(self.value(s) or 0.0) for s in self.eligible), default=0.0)

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
        gain = self.sign * (self.difference(a, b).difference or 0.0)
        return self.excludes_zero(a, b) and gain >= self.facts.assumptions.smallest_gain * self.unit and gain > 0

    def tie(self, a: System, b: System) -> bool:
        """Neither is clearly better, and a difference of `coarsest_effect` would have been seen."""
        detectable = self.detectable(a, b)
        is_clear = self.clearly_better(a, b) or self.clearly_better(b, a)
        return not is_clear and detectable is not None and detectable <= self.facts.assumptions.coarsest_effect

    def is_settled(self, a: System, b: System) -> bool:
        """The test tells which of the two is clearly better, or that they tie."""
        return self.clearly_better(a, b) or self.clearly_better(b, a) or self.tie(a, b)

    def holds_up(self, system: System, rivals: Iterable[System | None]) -> bool:
        """Each of the rivals that there are is clearly worse than the system, or ties with it."""
        others = (rival for rival in rivals if rival is not None and rival is not system)
        return all(self.clearly_better(system, rival) or self.tie(system, rival) for rival in others)

    def excludes_zero(self, a: System, b: System) -> bool:
        """The interval of a minus b lies wholly on one side of zero, and the test of the two says the same."""
        d = self.difference(a, b)
        alpha = 1 - (self.facts.evaluation.confidence if self.facts.evaluation else 0.95)
        is_significant = d.p_value is None or d.p_value <= alpha
        return is_significant and d.low is not None and d.high is not None and (d.low > 0 or d.high < 0)

    def detectable(self, a: System, b: System) -> float | None:
        """Smallest true difference of a and b that the test would show in POWER of cases, as a share of `unit`.

        As measured, else (z_confidence + z_power) / z_confidence times the half-width of the interval of a minus b.
        None: nothing is known of it.
        """
        evaluation = self.facts.evaluation
        d = self.difference(a, b)
        measured = d.minimum_detectable_effect
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


def seconds_of_one(system: System) -> float | None:
    """Seconds of one answer: the median of those given alone, else the mean over a batch; None: not measured."""
    if system.alone_seconds:
        return median(system.alone_seconds)
    return None if system.seconds is None or not system.n else system.seconds / system.n


def is_loss(measure: Measure) -> bool:
    """General ability clearly fell: the interval of the change lies wholly on the bad side of zero."""
    change = measure.difference
    if change.low is None or change.high is None:
        return False
    return change.high < 0 if measure.higher_is_better else change.low > 0
