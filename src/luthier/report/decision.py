"""From measurements to one recommendation: the rules, in the order they are asked. The first that speaks decides.

1. unmeasured    nothing, or no held-out comparison, was measured                                  -> not_yet
2. blocked       the data has errors, or a pre-flight gate failed                                  -> not_yet
3. few_rows      fewer than FEWEST_ROWS different test rows: no interval can be trusted            -> not_yet
4. unfit         every eligible system has an obstacle: format, time, forgetting, changing facts   -> not_yet
5. external      a program beats or ties both what was trained and the best without training       -> external
6. fine_tune     the cheapest trained system that clearly beats the best without training and a
                 program that no other beats, and holds up against the other trained ones          -> fine_tune,
                                                                                                      fine_tune+rag
7. stale         clearly best is a model that was taught facts which change, and no retrieval was
                 measured                                                                          -> not_yet
8. cheaper_rung  the cheapest without training that beats or ties the best without training, what
                 was trained and the program                                                       -> prompt,
                                                                                                      few_shot, rag
9. coarse        nothing was chosen, because the test could not have seen `coarsest_effect`        -> not_yet
10. left_over    nothing fit for use is good enough                                                -> not_yet

Only systems without an obstacle are chosen. A system that is not held out (it may have seen the test rows) is shown,
never chosen, and never a baseline. What is clearly better, what is a tie and what is an obstacle, `ladder.py` says;
where two systems are neither, nothing is known, and nothing rests on it.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from luthier.evaluation.rungs import RUNGS, TRAINED, UNTRAINED, Rung
from luthier.report.cost_schema import price_of
from luthier.report.ladder import (
    FAST_CHANGES,
    FEWEST_ROWS,
    MOST_CUT_OFF,
    Facts,
    Ladder,
    cut_share,
    failure_share,
    is_loss,
    rung,
)
from luthier.report.schema import (
    Cost,
    Evidence,
    Finding,
    Forgetting,
    Promise,
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


RECOMMENDED: Mapping[Rung, Recommendation] = {
    "external": "external",
    "prompt": "prompt",
    "few_shot": "few_shot",
    "rag": "rag",
    "other_model": "prompt",
    "fine_tune": "fine_tune",
    "fine_tune+rag": "fine_tune+rag",
}
"""What is recommended with a system of each rung; another model is asked with a prompt."""
WORDS: Mapping[Rung, str] = {
    "prompt": "Use a plain prompt",
    "few_shot": "Use a prompt with examples",
    "rag": "Retrieve, and do not train",
    "other_model": "Use another model with a prompt",
    "fine_tune": "Fine-tune",
    "fine_tune+rag": "Fine-tune on retrieved passages",
}


def _not_yet(sentence: str, *would_change: str) -> Outcome:
    return Outcome("not_yet", f"Not yet: {sentence}", None, would_change)


def unmeasured(ladder: Ladder) -> Outcome | None:
    """No evaluation, or nothing held out to compare."""
    if ladder.facts.evaluation is None:
        return _not_yet("nothing has been measured on held-out rows.", "Run `luthier evaluate`, then `luthier report`.")
    if ladder.fine_tuned is None:
        best = ladder.best(*RUNGS)
        so_far = f"; the best so far: {ladder_text(ladder, best)}" if best else ""
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
    if ladder.groups(*ladder.eligible) >= FEWEST_ROWS:
        return None
    return _not_yet(
        f"{_test_rows(ladder, *ladder.eligible)} cannot tell the systems apart, whatever the scores say.",
        f"Measure on at least {FEWEST_ROWS} different test rows; a hundred or more tell differences worth having.",
    )


def unfit(ladder: Ladder) -> Outcome | None:
    """Every eligible system has an obstacle."""
    obstacles = {s.name: ladder.obstacle(s) for s in ladder.eligible}
    if not all(obstacles.values()):
        return None
    best = min(ladder.eligible, key=lambda s: (failure_share(s), -ladder.goodness(s)))
    if all(failure_share(s) > ladder.facts.assumptions.most_failures for s in ladder.eligible):
        return _not_yet(
            f"even the most reliable system, {best.name}, {obstacles[best.name]}; "
            f"more than {percent(ladder.facts.assumptions.most_failures)} is not fit for use.",
            "More training rows, a stronger base model, or decoding that is bound to the schema.",
        )
    said = "; ".join(f"{name} {why}" for name, why in obstacles.items())
    return _not_yet(f"no system is fit for use: {said}.", *_ways_round(ladder))


RETRIEVE = "Measure retrieval (evaluation.systems.rag and fine_tuned_rag, with a [retrieval] corpus)."


def _needs_retrieval(ladder: Ladder) -> bool:
    """Facts change faster than models are trained again, and nothing that looks them up was measured."""
    has_retrieval = any(rung(s) in ("rag", "fine_tune+rag") for s in ladder.eligible)
    return ladder.facts.assumptions.facts_change in FAST_CHANGES and not has_retrieval


def _ways_round(ladder: Ladder) -> Iterator[str]:
    """What would take the obstacles away that the recipe's assumptions made."""
    assumed = ladder.facts.assumptions
    if _needs_retrieval(ladder):
        yield RETRIEVE
    if assumed.most_seconds is not None:
        yield "A smaller or quantized model, shorter prompts, or a faster machine."
    if assumed.most_forgetting is not None:
        yield "A training that forgets less: `luthier train --remember` tries remedies (docs/forgetting.md)."


def external(ladder: Ladder) -> Outcome | None:
    """A program that is no language model is as good as the best of them."""
    program, tuned = ladder.best("external", fit=True), ladder.fine_tuned
    prompt = ladder.best(*UNTRAINED, fit=True)
    if program is None or not ladder.holds_up(program, (tuned, prompt)):
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
    """The cheapest trained system that is clearly better than everything without training."""
    rival = ladder.baseline or ladder.external
    program, prompt = ladder.best("external", fit=True), ladder.best(*UNTRAINED, fit=True)
    trained = _cheapest_first(ladder, TRAINED)
    for tuned in trained:
        if rival is None or not ladder.clearly_better(tuned, rival) or not ladder.holds_up(tuned, trained):
            continue
        if program is not None and not any(s and ladder.clearly_better(s, program) for s in (tuned, prompt)):
            continue
        gain = f"{_difference_text(ladder, tuned, rival)} over {spoken(rival)}, the best without training"
        return Outcome(
            RECOMMENDED[rung(tuned)],
            f"{WORDS[rung(tuned)]}: {_reaches(ladder, tuned)}, {gain}{_over_trained(ladder, tuned, trained)}.",
            tuned,
            (
                f"A prompt that comes within {_share_of_scale(ladder)} of {spoken(tuned)} on the same rows.",
                "Test rows from another time or source on which the gain is gone.",
            ),
        )
    return None


def _over_trained(ladder: Ladder, tuned: System, trained: Sequence[System]) -> str:
    """What the dearest choice gains over the best trained system of a cheaper rung; nothing for the others."""
    plain = [s for s in trained if rung(s) == "fine_tune"]
    if rung(tuned) != "fine_tune+rag" or not plain:
        return ""
    best = max(plain, key=ladder.goodness)
    return f", and {_difference_text(ladder, tuned, best)} over {spoken(best)}"


def stale(ladder: Ladder) -> Outcome | None:
    """What clearly wins knows facts that will have changed, and a lookup was not measured."""
    taught, rival = ladder.best("fine_tune"), ladder.best(*UNTRAINED, "external", fit=True)
    if taught is None or not _needs_retrieval(ladder) or (rival and not ladder.clearly_better(taught, rival)):
        return None
    return _not_yet(f"{ladder_text(ladder, taught)}, but {ladder.obstacle(taught)}.", RETRIEVE)


def cheaper_rung(ladder: Ladder) -> Outcome | None:
    """Training is not clearly better: the cheapest system without it that holds up against everything fit for use."""
    rivals = tuple(ladder.best(*rungs, fit=True) for rungs in (UNTRAINED, TRAINED, ("external",)))
    chosen = next((s for s in _cheapest_first(ladder, UNTRAINED) if ladder.holds_up(s, rivals)), None)
    if chosen is None:
        return None
    tuned = ladder.fine_tuned
    against = f"; {_why_not(ladder, tuned, chosen)}" if tuned else ""
    return Outcome(
        RECOMMENDED[rung(chosen)],
        f"{WORDS[rung(chosen)]}: {_reaches(ladder, chosen)}{against}.",
        chosen,
        (
            f"A fine-tuned model that is {_enough(ladder)} better than {spoken(ladder.baseline or chosen)}, "
            "with an interval clear of zero: more or cleaner training rows, more steps, a larger base model.",
        ),
    )


def _cheapest_first(ladder: Ladder, rungs: Sequence[Rung]) -> list[System]:
    """The systems of these rungs that are fit for use, by rung and then the best first."""
    found = [s for s in ladder.eligible if rung(s) in rungs and ladder.is_fit(s)]
    return sorted(found, key=lambda s: (RUNGS.index(rung(s)), -ladder.goodness(s)))


def _why_not(ladder: Ladder, tuned: System, chosen: System) -> str:
    shown = _difference_text(ladder, tuned, chosen)
    if (obstacle := ladder.obstacle(tuned)) is not None:
        return f"{spoken(tuned)} ({shown}) {obstacle}"
    if ladder.clearly_better(chosen, tuned):
        return f"{spoken(tuned)} is worse ({shown})"
    if ladder.excludes_zero(tuned, chosen):
        return f"the difference to {spoken(tuned)} is too small to matter ({shown})"
    return f"training brought no clear gain ({shown})"


def coarse(ladder: Ladder) -> Outcome | None:
    """Two systems that could be chosen, neither clearly better, on a test too small to call that a tie."""
    tuned, coarsest = ladder.best(*TRAINED, fit=True), ladder.facts.assumptions.coarsest_effect
    others = (ladder.best(*UNTRAINED, fit=True), ladder.best("external", fit=True))
    known = sorted((s for s in others if s is not None), key=ladder.goodness, reverse=True)
    pairs = combinations([*([tuned] if tuned else []), *known], 2)
    unsettled = next((pair for pair in pairs if not ladder.is_settled(*pair)), None)
    if unsettled is None:
        return None
    a, b = unsettled
    detectable, n = ladder.detectable(a, b), ladder.groups(a, b)
    needed = "more" if detectable is None else f"about {count(n * (detectable / coarsest) ** 2)}"
    shown = (
        "no interval was measured"
        if detectable is None
        else f"{_test_rows(ladder, a, b)} would show only differences of {number(detectable * ladder.unit, 2)} or more"
    )
    return _not_yet(
        f"{spoken(a)} against {spoken(b)} is {_difference_text(ladder, a, b)} on {label(ladder.metric)}, and {shown}.",
        f"Measure on {needed} test rows.",
    )


def left_over(ladder: Ladder) -> Outcome:
    """What is best is not fit for use, or the comparisons do not add up to a choice."""
    best = max(ladder.eligible, key=ladder.goodness)
    obstacle = ladder.obstacle(best)
    if obstacle is None:
        return _not_yet(
            f"{ladder_text(ladder, best)}, without being clearly better than every cheaper system.",
            "Measure on more test rows.",
        )
    mend = (
        f"Bring the format failures of {best.name} under {percent(ladder.facts.assumptions.most_failures)}."
        if failure_share(best) > ladder.facts.assumptions.most_failures
        else f"What stands against {best.name}: it {obstacle}."
    )
    return _not_yet(
        f"{ladder_text(ladder, best)}, but {obstacle}, and no system that is fit for use clearly beats it.", mend
    )


RULES: tuple[Callable[[Ladder], Outcome | None], ...] = (
    unmeasured,
    blocked,
    few_rows,
    unfit,
    external,
    fine_tune,
    stale,
    cheaper_rung,
    coarse,
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
    rule, outcome = first_rule(ladder)
    return _verdict(ladder, rule, outcome, cost)


def first_rule(ladder: Ladder) -> tuple[str, Outcome]:
    """The name of the first rule that speaks, and what it says."""
    spoken_first = ((rule.__name__, rule(ladder)) for rule in RULES)
    return next((name, outcome) for name, outcome in spoken_first if outcome is not None)


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
            *_cheapest_way(cost),
            *_still_falling(ladder.facts.training),
            *_more_rows(ladder),
        ),
        assumptions=ladder.facts.assumptions.model_dump(),
    )


def _plural(n: int, noun: str) -> str:
    return f"{count(n)} {noun}" if n == 1 else f"{count(n)} {noun}s"


def ladder_text(ladder: Ladder, system: System) -> str:
    """`fine_tuned reaches field F1 0.912 [0.894, 0.929] on 150 unseen rows`."""
    m = system.metrics[ladder.metric]
    value = interval(m.value, m.low, m.high)
    return f"{system.name} reaches {label(ladder.metric)} {value} on {_unseen_rows(ladder, system)}"


def _unseen_rows(ladder: Ladder, system: System) -> str:
    """`200 unseen rows`, or `200 unseen rows (40 of them different)` where many repeat."""
    repeated = f" ({count(ladder.groups(system))} of them different)" if ladder.repeats(system) else ""
    return f"{count(system.n)} unseen rows{repeated}"


def _test_rows(ladder: Ladder, *systems: System) -> str:
    """`150 test rows`, or `40 different test rows` where some repeat."""
    different = ladder.groups(*systems)
    return _plural(different, "different test row" if different < min(s.n for s in systems) else "test row")


def spoken(system: System) -> str:
    """A system in a sentence: a plain phrase for those of the usual ladder, else its name."""
    usual = {
        "zero_shot": "the plain prompt",
        "few_shot": "few-shot prompting",
        "rag": "retrieval",
        "fine_tuned": "the fine-tuned model",
        "fine_tuned_rag": "the model fine-tuned on retrieved passages",
    }
    return usual.get(system.name, system.name) if system.name == system.type else system.name


def _reaches(ladder: Ladder, system: System) -> str:
    """`the fine-tuned model reaches field F1 0.912 on 150 unseen rows`."""
    value = number(ladder.value(system))
    return f"{spoken(system)} reaches {label(ladder.metric)} {value} on {_unseen_rows(ladder, system)}"


def _enough(ladder: Ladder) -> str:
    """`at least 0.02`: the least difference worth acting on, on the scale of the metric."""
    return f"at least {_share_of_scale(ladder)}"


def _share_of_scale(ladder: Ladder) -> str:
    return number(ladder.facts.assumptions.smallest_gain * ladder.unit, 2)


def _difference_text(ladder: Ladder, a: System, b: System) -> str:
    d = ladder.difference(a, b)
    return difference(d.difference, d.low, d.high)


def _cost_text(outcome: Outcome, cost: Cost | None) -> str:
    """What the recommended system costs, as far as it was measured."""
    if outcome.system is None or cost is None:
        return ""
    paid = next((c for c in cost.systems if c.system == outcome.system.name), None)
    price = None if paid is None else price_of(paid)
    where = "here" if paid is not None and paid.here_usd_per_thousand is not None else "there"
    answers = None if price is None else f"{usd(price)} {where}, at {count(cost.answers_per_month)} a month"
    if rung(outcome.system) in TRAINED and cost.run_usd is not None:
        per = f"; a thousand answers cost {answers}" if answers else ""
        return f" The run cost {usd(cost.run_usd)}{per}."
    return f" A thousand answers cost {answers}." if answers else ""


def _cheaper_by_volume(outcome: Outcome, cost: Cost | None) -> tuple[str, ...]:
    """When a prompt wins but a fine-tuned answer is cheaper, volume may change the verdict."""
    if cost is None or outcome.system is None or rung(outcome.system) not in UNTRAINED:
        return ()
    paying = [b for b in cost.break_even if b.answers is not None]
    return tuple(f"Volume: {b.name[0].lower()}{b.name[1:]} pays after {count(b.answers)} answers." for b in paying[:1])


def _cheapest_way(cost: Cost | None) -> tuple[str, ...]:
    """The assumption that must change least until another way to answer is the cheapest."""
    known = [s for s in cost.sensitivity if s.factor] if cost is not None else []
    if not known:
        return ()
    near = min(known, key=lambda s: abs(math.log(s.factor or 1.0)))
    change = f"{near.assumption} at {near.then} instead of {near.now}"
    return (f"Cost: with {change}, the cheapest way to answer is {near.cheapest}.",)


def _still_falling(training: Training | None) -> tuple[str, ...]:
    """The last validation was the best one, and the steps ran out: longer training may still help."""
    if training is None or training.stopped != "finished" or len(training.validation) < 2:
        return ()
    last = training.validation[-1].step
    if training.best_step is None or training.best_step < last:
        return ()
    return ("Longer training: the validation loss was still falling at the last step.",)


def _more_rows(ladder: Ladder) -> tuple[str, ...]:
    """What the learning curve promises for more rows."""
    curve = ladder.facts.curve
    return tuple(f"More rows: {promise_text(p, curve.metric)}." for p in curve.promises) if curve else ()


def promise_text(promise: Promise, metric: str) -> str:
    """`500 more training rows would bring +0.012 [0.004, 0.029] of field F1`."""
    gain = difference(promise.gain, promise.low, promise.high)
    return f"{_plural(promise.more_rows, 'more training row')} would bring {gain} of {label(metric)}"


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
    return (
        *_forgetting_warnings(ladder.facts.forgetting),
        *_data_warnings(ladder),
        *_system_warnings(ladder),
    )


def _forgetting_warnings(forgetting: Forgetting | None) -> Iterator[_Warning]:
    for m in forgetting.measures if forgetting else ():
        if forgetting and is_loss(m):
            change = difference(m.difference.value, m.difference.low, m.difference.high)
            short = FORGETTING.get(forgetting.verdict, FORGETTING["clear"])[0]
            yield _Warning(short, f"General ability fell: {label(m.name)} changed by {change}.")


def _data_warnings(ladder: Ladder) -> Iterator[_Warning]:
    facts = ladder.facts
    if ladder.repeats(*facts.systems):
        rows, different = min(s.n for s in facts.systems), ladder.groups(*facts.systems)
        text = (
            f"Of the {count(rows)} test rows only {count(different)} are different; intervals and tests count those, "
            "but what is asked often weighs more in every score."
        )
        yield _Warning("test rows repeat each other", text)
    if facts.split is not None and facts.split.leaks:
        leaks = f"{_plural(facts.split.leaks, 'row')} stood on both sides of the split, so the scores may flatter."
        yield _Warning("some test rows leaked into training", leaks)
    for f in _doubts(facts.findings):
        text = f"The data checks warn of {f.check.replace('_', ' ')}: {first_line(f.message).rstrip('.')}."
        yield _Warning("the data checks doubt some labels or rows", text)
    if facts.training is not None and facts.training.stopped == "interrupted":
        text = "The training was interrupted; the model is its best checkpoint so far."
        yield _Warning("the training was interrupted", text)


def _system_warnings(ladder: Ladder) -> Iterator[_Warning]:
    baseline, best = ladder.baseline, ladder.best(*RUNGS)
    if baseline is not None and cut_share(baseline) > MOST_CUT_OFF:
        cut = f"{count(baseline.details.answers_cut_off)} of the {count(baseline.n)} answers of {baseline.name}"
        text = (
            f"{cut}, the best without training, were cut off at the longest answer allowed; it may do better with more."
        )
        yield _Warning(f"answers of {spoken(baseline)} were cut off", text)
    for system in ladder.facts.systems:
        if (
            not system.held_out
            and ladder.value(system) is not None
            and best
            and ladder.goodness(system) > ladder.goodness(best)
        ):
            text = f"{system.name} scores higher, but it may have seen the test rows, so it does not count."
            yield _Warning(f"{system.name} scores higher, but may have seen the test rows", text)


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
        obstacle = ladder.obstacle(system)
        failing = f", but {obstacle}" if obstacle else ""
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
