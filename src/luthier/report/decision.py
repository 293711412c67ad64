"""From measurements to one recommendation: the rules, in the order in which they are asked. The first that speaks decides.

1. unmeasured    nothing, or no held-out comparison, was measured                                  -> not_yet
2. blocked       the data has errors, or a pre-flight gate failed                                  -> not_yet
3. few rows      fewer than FEWEST_ROWS test rows: no interval can be trusted                      -> not_yet
4. unreliable    no eligible system keeps its format failures under MOST_FAILURES                  -> not_yet
5. coarse        fine-tuned and best rival tie, but the test could not have seen COARSEST_EFFECT   -> not_yet
6. external      an external program beats or ties the fine-tuned model and no prompt beats it     -> external
7. fine_tune     clearly better than the best baseline: interval clear of zero, and >= SMALL_EFFECT -> fine_tune
8. cheaper rung  otherwise the cheapest prompt that is not clearly worse than the best prompt      -> prompt, few_shot
9. left over     only an unreliable system is good enough                                          -> not_yet

A system that is not held out (it may have seen the test rows) is shown, never chosen, and never a baseline. "Clearly"
means both that the paired interval leaves zero out and that the difference matters in practice.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

from luthier.report.schema import (
    Cost,
    Difference,
    Evaluation,
    Evidence,
    Finding,
    Forgetting,
    Gate,
    Measure,
    Recommendation,
    Split,
    System,
    Training,
    Verdict,
)
from luthier.report.text import count, difference, interval, label, number, percent, usd

SMALL_EFFECT = 0.02
"""Least difference worth acting on: two points of a score from 0 to 1, or 2 % of the baseline's value on another scale."""
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
    """The rung of the ladder that a system stands on, by its type; what is trained and no external program is fine-tuned."""
    if system.type == "command":
        return "external"
    if not system.baseline:
        return "fine_tune"
    return "few_shot" if system.type == "few_shot" else "prompt"


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
        for d in self.facts.differences:
            if d.metric == self.metric and (d.a, d.b) == (a.name, b.name):
                return d
            if d.metric == self.metric and (d.a, d.b) == (b.name, a.name):
                return _turned(d)
        mine, theirs = a.metrics[self.metric], b.metrics[self.metric]
        if mine.value is None or theirs.value is None:
            return Difference(a=a.name, b=b.name, metric=self.metric)
        center, low, high = mine.value - theirs.value, None, None
        if None not in (mine.low, mine.high, theirs.low, theirs.high):
            half = (((mine.high or 0) - (mine.low or 0)) ** 2 + ((theirs.high or 0) - (theirs.low or 0)) ** 2) ** 0.5 / 2
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


def _turned(d: Difference) -> Difference:
    def negative(value: float | None) -> float | None:
        return None if value is None else -value

    turned = {"a": d.b, "b": d.a, "difference": negative(d.difference), "low": negative(d.high), "high": negative(d.low)}
    return d.model_copy(update=turned)


def failure_share(system: System) -> float:
    """Largest share of answers that lack the wanted form, over the metrics that count failures; 0 if none does."""
    return max((f.per_million / 1e6 for f in system.failures.values()), default=0.0)


def is_reliable(system: System) -> bool:
    """At most MOST_FAILURES of its answers lack the wanted form."""
    return failure_share(system) <= MOST_FAILURES


@dataclass(frozen=True)
class Outcome:
    """What a rule says when it speaks."""

    recommendation: Recommendation
    sentence: str
    system: System | None = None
    would_change: tuple[str, ...] = field(default=())


def _not_yet(sentence: str, *would_change: str) -> Outcome:
    return Outcome("not_yet", f"Not yet: {sentence}", None, would_change)


def unmeasured(ladder: Ladder) -> Outcome | None:
    """No evaluation, or nothing held out to compare."""
    if ladder.facts.evaluation is None:
        return _not_yet("nothing has been measured on held-out rows.", "Run `luthier evaluate`, then `luthier report`.")
    if ladder.fine_tuned is None:
        best = ladder.best(*RUNGS)
        so_far = f"; the best so far is {ladder_text(ladder, best)}" if best else ""
        return _not_yet(f"no held-out fine-tuned model was measured{so_far}.", "Train, and evaluate the fine-tuned model.")
    if ladder.baseline is None and ladder.external is None:
        return _not_yet(
            f"{ladder_text(ladder, ladder.fine_tuned)} has nothing held out to be compared with.",
            "Evaluate a prompt baseline (zero_shot, few_shot) on the same rows.",
        )
    return None


def blocked(ladder: Ladder) -> Outcome | None:
    """Errors in the data, or a gate that did not pass."""
    errors = [f for f in ladder.facts.findings if f.severity == "error"]
    if errors:
        return _not_yet(
            f"the data has {_plural(len(errors), 'blocking finding')}, so no number here can be trusted; "
            f"the first: {errors[0].message.rstrip('.')}.",
            "Mend the data (see the data findings) and run again.",
        )
    failed = [g for g in ladder.facts.preflight if not g.passed]
    if failed:
        return _not_yet(
            f"the pre-flight gate {failed[0].gate} failed, so the run may have trained the wrong thing.",
            "Mend what the failed gates name and train again.",
        )
    return None


def few_rows(ladder: Ladder) -> Outcome | None:
    """Too few test rows for any interval."""
    n = min(s.n for s in ladder.eligible)
    if n >= FEWEST_ROWS:
        return None
    return _not_yet(
        f"{_plural(n, 'test row')} cannot tell the systems apart, whatever the scores say.",
        f"Measure on at least {FEWEST_ROWS} test rows; a hundred or more tell differences worth having.",
    )


def unreliable(ladder: Ladder) -> Outcome | None:
    """Even the most reliable eligible system fails the format too often."""
    if any(is_reliable(s) for s in ladder.eligible):
        return None
    best = min(ladder.eligible, key=failure_share)
    return _not_yet(
        f"even the most reliable system, {best.name}, fails the wanted format in {percent(failure_share(best))} of its answers; "
        f"more than {percent(MOST_FAILURES)} is not fit for use.",
        "More training rows, a stronger base model, or decoding that is bound to the schema.",
    )


def coarse(ladder: Ladder) -> Outcome | None:
    """A tie that the test was too small to make meaningful."""
    tuned = ladder.fine_tuned
    rival = ladder.best("external", "prompt", "few_shot")
    if tuned is None or rival is None or not is_reliable(tuned) or ladder.excludes_zero(tuned, rival):
        return None
    detectable = ladder.detectable(tuned, rival)
    if detectable is not None and detectable <= COARSEST_EFFECT:
        return None
    n = min(tuned.n, rival.n)
    needed = "more" if detectable is None else f"about {count(n * (detectable / COARSEST_EFFECT) ** 2)}"
    shown = "no interval was measured" if detectable is None else (
        f"{_plural(n, 'test row')} would show only differences of {number(detectable * ladder.unit, 2)} or more"
    )
    return _not_yet(
        f"{tuned.name} against {rival.name} is {_difference_text(ladder, tuned, rival)} on {label(ladder.metric)}, and {shown}.",
        f"Measure on {needed} test rows.",
    )


def external(ladder: Ladder) -> Outcome | None:
    """A program that is no language model is as good."""
    program, tuned = ladder.best("external", reliable=True), ladder.fine_tuned
    if program is None or (tuned is not None and ladder.clearly_better(tuned, program)):
        return None
    prompt = ladder.best("prompt", "few_shot", reliable=True)
    if prompt is not None and ladder.clearly_better(prompt, program):
        return None
    against = ""
    if tuned is not None:
        verb = "beats" if ladder.clearly_better(program, tuned) else "ties with"
        against = f" and {verb} {tuned.name} ({_difference_text(ladder, program, tuned)})"
    return Outcome(
        "external",
        f"No language model is needed: the external program {ladder_text(ladder, program)}{against}.",
        program,
        (
            f"Rows unlike these, on which {program.name} is clearly worse than a language model.",
            f"A fine-tuned model at least {number(SMALL_EFFECT * ladder.unit, 2)} better, with an interval clear of zero.",
        ),
    )


def fine_tune(ladder: Ladder) -> Outcome | None:
    """Clearly better than the best baseline, and reliable."""
    tuned, baseline = ladder.best("fine_tune", reliable=True), ladder.baseline
    rival = baseline or ladder.external
    if tuned is None or rival is None or not ladder.clearly_better(tuned, rival):
        return None
    gain = f"{_difference_text(ladder, tuned, rival)} over {rival.name}, the best without training"
    return Outcome(
        "fine_tune",
        f"Fine-tune: {ladder_text(ladder, tuned)}, {gain}.",
        tuned,
        (
            f"A prompt that comes within {number(SMALL_EFFECT * ladder.unit, 2)} of {tuned.name} on the same rows.",
            "Test rows from another time or source on which the gain is gone.",
        ),
    )


def cheaper_rung(ladder: Ladder) -> Outcome | None:
    """Training is not clearly better: the cheapest prompt that holds up against the best prompt."""
    prompts = sorted(
        (s for s in ladder.eligible if rung(s) in ("prompt", "few_shot") and is_reliable(s)),
        key=lambda s: (RUNGS.index(rung(s)), -ladder.goodness(s)),
    )
    best = ladder.best("prompt", "few_shot", reliable=True)
    if best is None:
        return None
    chosen = next(s for s in prompts if s is best or not ladder.clearly_better(best, s))
    how = "A plain prompt is enough" if rung(chosen) == "prompt" else "A prompt with examples is enough"
    tuned = ladder.fine_tuned
    against = f"; {_why_not(ladder, tuned, chosen)}" if tuned else ""
    return Outcome(
        rung(chosen),
        f"{how}: {ladder_text(ladder, chosen)}{against}.",
        chosen,
        (
            f"A fine-tuned model that is at least {number(SMALL_EFFECT * ladder.unit, 2)} better than {(ladder.baseline or best).name}, "
            "with an interval clear of zero: more or cleaner training rows, more steps, a larger base model.",
        ),
    )


def _why_not(ladder: Ladder, tuned: System, chosen: System) -> str:
    shown = _difference_text(ladder, tuned, chosen)
    if not is_reliable(tuned):
        return f"{tuned.name} ({shown}) fails the wanted format in {percent(failure_share(tuned))} of its answers"
    if ladder.clearly_better(chosen, tuned):
        return f"training made it worse ({tuned.name}: {shown})"
    if ladder.excludes_zero(tuned, chosen):
        return f"the difference of {tuned.name} is real but too small to matter ({shown})"
    return f"training brought no clear gain ({tuned.name}: {shown})"


def left_over(ladder: Ladder) -> Outcome:
    """What is good enough is not reliable, and what is reliable is not good enough."""
    best = ladder.best(*RUNGS)
    name = "the best system" if best is None else ladder_text(ladder, best)
    share = percent(failure_share(best)) if best else "some"
    return _not_yet(
        f"{name}, but fails the wanted format in {share} of its answers, and nothing reliable comes near it.",
        f"Bring the format failures of {best.name if best else 'it'} under {percent(MOST_FAILURES)}.",
    )


RULES: tuple[Callable[[Ladder], Outcome | None], ...] = (
    unmeasured,
    blocked,
    few_rows,
    unreliable,
    coarse,
    external,
    fine_tune,
    cheaper_rung,
    left_over,
)


def contest(facts: Facts) -> tuple[str | None, str | None]:
    """Names of the best fine-tuned system that counts and of the best baseline."""
    ladder = Ladder(facts)
    return (
        ladder.fine_tuned.name if ladder.fine_tuned else None,
        ladder.baseline.name if ladder.baseline else None,
    )


def decide(facts: Facts, cost: Cost | None = None) -> Verdict:
    """The recommendation by the first rule that speaks, with its sentence, evidence, warnings and what would change it."""
    ladder = Ladder(facts)
    for rule in RULES:
        outcome = rule(ladder)
        if outcome is not None:
            return _verdict(ladder, rule.__name__, outcome, cost)
    raise AssertionError("the last rule always speaks")


def _verdict(ladder: Ladder, rule: str, outcome: Outcome, cost: Cost | None) -> Verdict:
    warnings = _warnings(ladder)
    tuned, baseline = ladder.fine_tuned, ladder.baseline
    sentence = outcome.sentence + _cost_text(outcome, cost)
    if warnings and outcome.recommendation != "not_yet":
        sentence += f" Mind: {warnings[0][0].lower()}{warnings[0][1:]}"
    return Verdict(
        recommendation=outcome.recommendation,
        sentence=sentence,
        rule=rule,
        system=outcome.system.name if outcome.system else None,
        fine_tuned=tuned.name if tuned else None,
        baseline=baseline.name if baseline else None,
        difference=ladder.difference(tuned, baseline) if tuned and baseline else None,
        warnings=warnings,
        evidence=_evidence(ladder, cost),
        would_change=(*outcome.would_change, *_cheaper_by_volume(outcome, cost), *_still_falling(ladder.facts.training)),
    )


def _plural(n: int, noun: str) -> str:
    return f"{count(n)} {noun}" if n == 1 else f"{count(n)} {noun}s"


def ladder_text(ladder: Ladder, system: System) -> str:
    """`fine_tuned reaches field F1 0.912 [0.894, 0.929] on 150 unseen rows`."""
    m = system.metrics[ladder.metric]
    return f"{system.name} reaches {label(ladder.metric)} {interval(m.value, m.low, m.high)} on {count(system.n)} unseen rows"


def _difference_text(ladder: Ladder, a: System, b: System) -> str:
    d = ladder.difference(a, b)
    return difference(d.difference, d.low, d.high)


def _cost_text(outcome: Outcome, cost: Cost | None) -> str:
    """What the recommended system costs, as far as it was measured."""
    if outcome.system is None or cost is None:
        return ""
    paid = next((c for c in cost.systems if c.system == outcome.system.name), None)
    answers = usd(paid.here_usd_per_thousand) if paid and paid.here_usd_per_thousand is not None else None
    if outcome.recommendation == "fine_tune" and cost.run_usd is not None:
        per = f", and a thousand answers cost {answers} here" if answers else ""
        return f" The whole run cost {usd(cost.run_usd)}{per}."
    return f" A thousand answers cost {answers} here." if answers else ""


def _cheaper_by_volume(outcome: Outcome, cost: Cost | None) -> tuple[str, ...]:
    """When a prompt wins but a fine-tuned answer is cheaper, volume may change the verdict."""
    if cost is None or outcome.recommendation not in ("prompt", "few_shot"):
        return ()
    paying = [b for b in cost.break_even if b.answers is not None]
    return tuple(f"Volume: {b.name[0].lower()}{b.name[1:]} pays after {count(b.answers)} answers." for b in paying[:1])


def _still_falling(training: Training | None) -> tuple[str, ...]:
    """The last validation was the best one, and the steps ran out: longer training may still help."""
    if training is None or training.stopped != "finished" or len(training.validation) < 2:
        return ()
    last = training.validation[-1].step
    if training.best_step is None or training.best_step < last:
        return ()
    return ("Longer training: the validation loss was still falling at the last step.",)


def _warnings(ladder: Ladder) -> tuple[str, ...]:
    facts = ladder.facts
    lost = [m for m in facts.forgetting.measures if is_loss(m)] if facts.forgetting else []
    found = [
        f"General ability fell: {label(m.name)} changed by {difference(m.difference.value, m.difference.low, m.difference.high)}."
        for m in lost
    ]
    if facts.split is not None and facts.split.leaks:
        found.append(f"{_plural(facts.split.leaks, 'row')} stood on both sides of the split.")
    found += [f"The data checks warn of {f.check.replace('_', ' ')} ({_plural(f.count, 'place')})." for f in _doubts(facts.findings)]
    if facts.training is not None and facts.training.stopped == "interrupted":
        found.append("The training was interrupted; the model is its best checkpoint so far.")
    best = ladder.best(*RUNGS)
    for system in facts.systems:
        if not system.held_out and ladder.value(system) is not None and best and ladder.goodness(system) > ladder.goodness(best):
            found.append(f"{system.name} scores higher, but it may have seen the test rows, so it does not count.")
    return tuple(found)


def is_loss(measure: Measure) -> bool:
    """General ability clearly fell: the interval of the change lies wholly on the bad side of zero."""
    change = measure.difference
    if change.low is None or change.high is None:
        return False
    return change.high < 0 if measure.higher_is_better else change.low > 0


def _doubts(findings: Sequence[Finding]) -> list[Finding]:
    """Warnings that touch what the scores mean: wrong labels and leaks."""
    words = ("label", "contradict", "leak")
    return [f for f in findings if f.severity == "warning" and any(word in f.check for word in words)]


def _evidence(ladder: Ladder, cost: Cost | None) -> tuple[Evidence, ...]:
    facts, found = ladder.facts, []
    for system in sorted(ladder.eligible, key=ladder.goodness, reverse=True):
        failing = "" if is_reliable(system) else f", but fails the wanted format in {percent(failure_share(system))} of its answers"
        found.append(Evidence(text=f"{ladder_text(ladder, system)}{failing}.", source="evaluation.json"))
    for a, b in ((ladder.fine_tuned, ladder.baseline), (ladder.fine_tuned, ladder.external)):
        if a and b:
            d = ladder.difference(a, b)
            how = f" ({d.test})" if d.test else ""
            text = f"{a.name} minus {b.name}: {_difference_text(ladder, a, b)}{how}."
            found.append(Evidence(text=text, source="evaluation.json"))
    for system in facts.systems:
        if not system.held_out:
            text = f"{system.name} is left out of the decision: it is not held out. {system.note or ''}".strip()
            found.append(Evidence(text=text, source="evaluation.json"))
    if facts.forgetting is not None and facts.forgetting.verdict:
        found.append(Evidence(text=facts.forgetting.verdict, source="forgetting.json"))
    if cost is not None:
        found += [Evidence(text=f"{b.name}: {b.explanation}", source="recipe.json, manifest.json, evaluation.json") for b in cost.break_even]
    return tuple(found)
