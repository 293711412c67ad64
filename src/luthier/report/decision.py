"""From measurements to one recommendation: the rules, in the order they are asked. The first that speaks decides.

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

from luthier.report.ladder import (
    COARSEST_EFFECT,
    FEWEST_ROWS,
    MOST_FAILURES,
    RUNGS,
    SMALL_EFFECT,
    Facts,
    Ladder,
    failure_share,
    is_reliable,
    rung,
)
from luthier.report.schema import (
    Cost,
    Evidence,
    Finding,
    Forgetting,
    Measure,
    Recommendation,
    System,
    Training,
    Verdict,
)
from luthier.report.text import count, difference, first_line, interval, label, number, percent, usd


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
        return _not_yet(
            f"no held-out fine-tuned model was measured{so_far}.", "Train, and evaluate the fine-tuned model."
        )
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
            f"the first: {first_line(errors[0].message).rstrip('.')}.",
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
        f"even the most reliable system, {best.name}, fails the wanted format in {percent(failure_share(best))} "
        f"of its answers; more than {percent(MOST_FAILURES)} is not fit for use.",
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
    shown = (
        "no interval was measured"
        if detectable is None
        else (f"{_plural(n, 'test row')} would show only differences of {number(detectable * ladder.unit, 2)} or more")
    )
    return _not_yet(
        f"{spoken(tuned)} against {spoken(rival)} is {_difference_text(ladder, tuned, rival)} "
        f"on {label(ladder.metric)}, and {shown}.",
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
        against = f" and {verb} {spoken(tuned)} ({_difference_text(ladder, program, tuned)})"
    return Outcome(
        "external",
        f"No language model is needed: the program {_reaches(ladder, program)}{against}.",
        program,
        (
            f"Rows unlike these, on which {program.name} is clearly worse than a language model.",
            f"A fine-tuned model {_enough(ladder)} better, with an interval clear of zero.",
        ),
    )


def fine_tune(ladder: Ladder) -> Outcome | None:
    """Clearly better than the best baseline, and reliable."""
    tuned, baseline = ladder.best("fine_tune", reliable=True), ladder.baseline
    rival = baseline or ladder.external
    if tuned is None or rival is None or not ladder.clearly_better(tuned, rival):
        return None
    gain = f"{_difference_text(ladder, tuned, rival)} over {spoken(rival)}, the best without training"
    return Outcome(
        "fine_tune",
        f"Fine-tune: {_reaches(ladder, tuned)}, {gain}.",
        tuned,
        (
            f"A prompt that comes within {number(SMALL_EFFECT * ladder.unit, 2)} of {spoken(tuned)} on the same rows.",
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
    how = "Use a plain prompt" if rung(chosen) == "prompt" else "Use a prompt with examples"
    tuned = ladder.fine_tuned
    against = f"; {_why_not(ladder, tuned, chosen)}" if tuned else ""
    return Outcome(
        rung(chosen),
        f"{how}: {_reaches(ladder, chosen)}{against}.",
        chosen,
        (
            f"A fine-tuned model that is {_enough(ladder)} better than {spoken(ladder.baseline or best)}, "
            "with an interval clear of zero: more or cleaner training rows, more steps, a larger base model.",
        ),
    )


def _why_not(ladder: Ladder, tuned: System, chosen: System) -> str:
    shown = _difference_text(ladder, tuned, chosen)
    if not is_reliable(tuned):
        return f"{spoken(tuned)} ({shown}) fails the wanted format in {percent(failure_share(tuned))} of its answers"
    if ladder.clearly_better(chosen, tuned):
        return f"{spoken(tuned)} is worse ({shown})"
    if ladder.excludes_zero(tuned, chosen):
        return f"the difference to {spoken(tuned)} is too small to matter ({shown})"
    return f"training brought no clear gain ({shown})"


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
    """The recommendation of the first rule that speaks, with sentence, evidence, warnings and what would change it."""
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
        sentence += f" Mind: {'; '.join(dict.fromkeys(w.short for w in warnings))}."
    return Verdict(
        recommendation=outcome.recommendation,
        sentence=sentence,
        headline=outcome.sentence,
        rule=rule,
        system=outcome.system.name if outcome.system else None,
        fine_tuned=tuned.name if tuned else None,
        baseline=baseline.name if baseline else None,
        difference=ladder.difference(tuned, baseline) if tuned and baseline else None,
        warnings=tuple(w.text for w in warnings),
        evidence=_evidence(ladder, cost),
        would_change=(
            *outcome.would_change,
            *_cheaper_by_volume(outcome, cost),
            *_still_falling(ladder.facts.training),
        ),
    )


def _plural(n: int, noun: str) -> str:
    return f"{count(n)} {noun}" if n == 1 else f"{count(n)} {noun}s"


def ladder_text(ladder: Ladder, system: System) -> str:
    """`fine_tuned reaches field F1 0.912 [0.894, 0.929] on 150 unseen rows`."""
    m = system.metrics[ladder.metric]
    value = interval(m.value, m.low, m.high)
    return f"{system.name} reaches {label(ladder.metric)} {value} on {count(system.n)} unseen rows"


def spoken(system: System) -> str:
    """A system in a sentence: a plain phrase for the three of the usual ladder, else its name."""
    usual = {"zero_shot": "the plain prompt", "few_shot": "few-shot prompting", "fine_tuned": "the fine-tuned model"}
    return usual.get(system.name, system.name) if system.name == system.type else system.name


def _reaches(ladder: Ladder, system: System) -> str:
    """`the fine-tuned model reaches field F1 0.912 on 150 unseen rows`."""
    value = number(ladder.value(system))
    return f"{spoken(system)} reaches {label(ladder.metric)} {value} on {count(system.n)} unseen rows"


def _enough(ladder: Ladder) -> str:
    """The least difference worth acting on, on the scale of the metric."""
    return f"at least {number(SMALL_EFFECT * ladder.unit, 2)}"


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
        per = f"; a thousand answers cost {answers}" if answers else ""
        return f" The run cost {usd(cost.run_usd)}{per}."
    return f" A thousand answers cost {answers}." if answers else ""


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


FORGETTING = {
    "none measured": ("one measure of general ability fell", "No loss of general ability was measured."),
    "slight": ("a little general ability was lost", "General ability fell slightly, and certainly."),
    "clear": ("general ability was lost", "General ability fell clearly."),
}
"""What `forgetting.json` calls its result: a few words for a warning, and a sentence."""


def forgetting_sentence(forgetting: Forgetting) -> str:
    """The result of the forgetting measures as a sentence."""
    return FORGETTING.get(forgetting.verdict, ("", forgetting.verdict))[1]


@dataclass(frozen=True)
class _Warning:
    """A doubt: a few words for the sentence, and the whole of it."""

    short: str
    text: str


def _warnings(ladder: Ladder) -> tuple[_Warning, ...]:
    facts = ladder.facts
    found = []
    for m in facts.forgetting.measures if facts.forgetting else ():
        if is_loss(m):
            change = difference(m.difference.value, m.difference.low, m.difference.high)
            short = FORGETTING.get(facts.forgetting.verdict if facts.forgetting else "", FORGETTING["clear"])[0]
            found.append(_Warning(short, f"General ability fell: {label(m.name)} changed by {change}."))
    if facts.split is not None and facts.split.leaks:
        leaks = f"{_plural(facts.split.leaks, 'row')} stood on both sides of the split, so the scores may flatter."
        found.append(_Warning("some test rows leaked into training", leaks))
    for f in _doubts(facts.findings):
        text = f"The data checks warn of {f.check.replace('_', ' ')}: {first_line(f.message).rstrip('.')}."
        found.append(_Warning("the data checks doubt some labels or rows", text))
    if facts.training is not None and facts.training.stopped == "interrupted":
        text = "The training was interrupted; the model is its best checkpoint so far."
        found.append(_Warning("the training was interrupted", text))
    best = ladder.best(*RUNGS)
    for system in facts.systems:
        if (
            not system.held_out
            and ladder.value(system) is not None
            and best
            and ladder.goodness(system) > ladder.goodness(best)
        ):
            text = f"{system.name} scores higher, but it may have seen the test rows, so it does not count."
            found.append(_Warning(f"{system.name} scores higher, but may have seen the test rows", text))
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
    for a, b in ((ladder.fine_tuned, ladder.baseline), (ladder.fine_tuned, ladder.external)):
        if a and b:
            d = ladder.difference(a, b)
            how = f" ({d.test})" if d.test else ""
            text = f"{a.name} minus {b.name}: {_difference_text(ladder, a, b)}{how}."
            found.append(Evidence(text=text, source="evaluation.json"))
    for system in sorted(ladder.eligible, key=ladder.goodness, reverse=True):
        failing = (
            ""
            if is_reliable(system)
            else f", but fails the wanted format in {percent(failure_share(system))} of its answers"
        )
        found.append(Evidence(text=f"{ladder_text(ladder, system)}{failing}.", source="evaluation.json"))
    for system in facts.systems:
        if not system.held_out:
            note = f" Its note: {system.note.rstrip('.')}." if system.note else ""
            text = f"{system.name} is left out of the decision, because it may have seen the test rows.{note}"
            found.append(Evidence(text=text, source="evaluation.json"))
    if facts.forgetting is not None and facts.forgetting.measures:
        found.append(Evidence(text=forgetting_sentence(facts.forgetting), source="forgetting.json"))
    for paid in cost.break_even[:1] if cost is not None else ():
        found.append(
            Evidence(
                text=f"Break-even. {paid.name}: {paid.explanation}",
                source="recipe.json, manifest.json, evaluation.json",
            )
        )
    return tuple(found)
