"""From measurements to one recommendation: the rules, in the order they are asked. The first that speaks decides.

1. unmeasured    nothing, or no held-out comparison, was measured                                  -> not_yet
2. blocked       the data has errors, or a pre-flight gate failed                                  -> not_yet
3. few_rows      fewer than FEWEST_ROWS different test rows: no interval can be trusted            -> not_yet
4. unfit         every eligible system has an obstacle: format, time, forgetting, changing facts   -> not_yet
5. external      a program beats or ties both what was trained and the best without training       -> external
6. fine_tune     the cheapest trained system that clearly beats the best fit without training and a
                 program that no other beats, and holds up against the other trained ones          -> fine_tune,
                                                                                                      fine_tune+rag
7. stale         clearly best is a model that was taught facts which change, and no retrieval was
                 measured                                                                          -> not_yet
8. cheaper_model what was trained clearly beats the run's own model without training, and ties with
                 another model that costs more a month at the recipe's volume                      -> fine_tune,
                                                                                                      fine_tune+rag
9. cheaper_rung  the cheapest without training that beats or ties the best without training, what
                 was trained and the program; not of heads that judge                              -> prompt,
                                                                                                      few_shot, rag
10. coarse       nothing was chosen, because the test could not have seen `coarsest_effect`        -> not_yet
11. left_over    nothing fit for use is good enough                                                -> not_yet

Only systems without an obstacle are weighed and chosen. A system that is not held out (it may have seen the test rows)
is shown, never chosen, and never a baseline. What is clearly better, what is a tie and what is an obstacle, `ladder.py`
says; where two systems are neither, nothing is known, and nothing rests on it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

from luthier.evaluation.rungs import RUNGS, TRAINED, UNTRAINED, Rung
from luthier.report.ladder import FAST_CHANGES, FEWEST_ROWS, Ladder, failure_share, rung
from luthier.report.phrases import (
    difference_text,
    enough,
    judges,
    ladder_text,
    plural,
    reaches,
    share_of_scale,
    spoken,
    test_rows,
)
from luthier.report.schema import Recommendation, System
from luthier.report.text import count, first_line, label, number, percent, usd


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
            f"{ladder_text(ladder, ladder.fine_tuned)}, and nothing held out stands beside it.",
            "Evaluate a prompt baseline (zero_shot, few_shot) on the same rows.",
        )
    return None


def blocked(ladder: Ladder) -> Outcome | None:
    """Errors in the data, or a gate that did not pass."""
    errors = [f for f in ladder.facts.findings if f.severity == "error"]
    if errors:
        return _not_yet(
            f"the data has {plural(len(errors), 'blocking finding')}, so no number here can be trusted; "
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
        f"{test_rows(ladder, *ladder.eligible)} cannot tell the systems apart, whatever the scores say.",
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
            MORE_RELIABLE,
        )
    said = "; ".join(f"{name} {why}" for name, why in obstacles.items())
    return _not_yet(f"no system is fit for use: {said}.", *_ways_round(ladder))


MORE_RELIABLE = "More training rows, a stronger base model, or decoding that is bound to the schema."
RETRIEVE = "Measure retrieval (evaluation.systems.rag and fine_tuned_rag, with a [retrieval] corpus)."


def _needs_retrieval(ladder: Ladder) -> bool:
    """Facts change faster than models are trained again, and nothing that looks them up was measured."""
    has_retrieval = any(rung(s) in ("rag", "fine_tune+rag") for s in ladder.eligible)
    return ladder.facts.assumptions.facts_change in FAST_CHANGES and not has_retrieval


def _ways_round(ladder: Ladder) -> Iterator[str]:
    """What would take away the obstacles that there are."""
    there = {kind for system in ladder.eligible for kind, _ in ladder.obstacles(system)}
    if "format" in there:
        yield MORE_RELIABLE
    if "facts" in there and _needs_retrieval(ladder):
        yield RETRIEVE
    if "time" in there:
        yield "A smaller or quantized model, shorter prompts, or a faster machine."
    if "forgetting" in there:
        yield "A training that forgets less: `luthier train --remember` tries remedies (docs/forgetting.md)."


def external(ladder: Ladder) -> Outcome | None:
    """A program that is no language model is as good as the best of them."""
    program, tuned = ladder.best("external", fit=True), ladder.best(*TRAINED, fit=True)
    prompt = ladder.best(*UNTRAINED, fit=True)
    if program is None or not ladder.holds_up(program, (*_cheapest_first(ladder, TRAINED), prompt)):
        return None
    against = ""
    if tuned is None and ladder.fine_tuned is not None:
        against = f"; {_why_not(ladder, ladder.fine_tuned, program)}"
    elif tuned is not None:
        verb = "beats" if ladder.clearly_better(program, tuned) else "ties with"
        against = f" and {verb} {spoken(tuned)} ({difference_text(ladder, program, tuned)})"
    return Outcome(
        "external",
        f"No language model is needed: the program {reaches(ladder, program)}{against}.",
        program,
        (
            *_unless_unfit(ladder, program),
            f"Rows unlike these, on which {program.name} is clearly worse than a language model.",
            f"A fine-tuned model {enough(ladder)} better, with an interval clear of zero.",
        ),
    )


def fine_tune(ladder: Ladder) -> Outcome | None:
    """The cheapest trained system that is clearly better than everything without training."""
    program, prompt = ladder.best("external", fit=True), ladder.best(*UNTRAINED, fit=True)
    rival = prompt or program
    trained = _cheapest_first(ladder, TRAINED)
    for tuned in trained:
        if (rival is not None and not ladder.clearly_better(tuned, rival)) or not ladder.holds_up(tuned, trained):
            continue
        if program is not None and not any(s and ladder.clearly_better(s, program) for s in (tuned, prompt)):
            continue
        return Outcome(
            RECOMMENDED[rung(tuned)],
            f"{WORDS[rung(tuned)]}: {reaches(ladder, tuned)}{_over_trained(ladder, tuned, trained)}"
            f"{_over_untrained(ladder, tuned, rival)}.",
            tuned,
            (
                f"A prompt that comes within {share_of_scale(ladder)} of {spoken(tuned)} on the same rows.",
                "Test rows from another time or source on which the gain is gone.",
            ),
        )
    return None


def _over_untrained(ladder: Ladder, tuned: System, rival: System | None) -> str:
    """What training gains over the best without it that is fit for use, and why a better one is not."""
    unfit = ladder.best(*UNTRAINED, "external")
    against = "" if unfit is None or ladder.is_fit(unfit) else f"{spoken(unfit)} {ladder.obstacle(unfit)}"
    if rival is None:
        return f"; nothing without training is fit for use: {against}"
    gain = f", {difference_text(ladder, tuned, rival)} over {spoken(rival)}, the best without training"
    return f"{gain} that is fit for use: {against}" if against else gain


def _over_trained(ladder: Ladder, tuned: System, trained: Sequence[System]) -> str:
    """What the dearest choice gains over the best trained system of a cheaper rung; nothing for the others."""
    plain = [s for s in trained if rung(s) == "fine_tune"]
    if rung(tuned) != "fine_tune+rag" or not plain:
        return ""
    best = max(plain, key=ladder.goodness)
    return f", {difference_text(ladder, tuned, best)} over {spoken(best)}"


LASTING = {"facts_change": "unknown"}
"""With these assumptions no facts change."""


def stale(ladder: Ladder) -> Outcome | None:
    """What clearly wins knows facts that will have changed, and a lookup was not measured."""
    settled = Ladder(replace(ladder.facts, assumptions=ladder.facts.assumptions.model_copy(update=LASTING)))
    taught, rival = settled.best("fine_tune", fit=True), ladder.best(*UNTRAINED, "external", fit=True)
    if taught is None or not _needs_retrieval(ladder) or (rival and not ladder.clearly_better(taught, rival)):
        return None
    return _not_yet(f"{ladder_text(ladder, taught)}, but {ladder.obstacle(taught)}.", RETRIEVE)


def cheaper_model(ladder: Ladder) -> Outcome | None:
    """Another model is as good as what was trained, and dearer."""
    other, program = ladder.best("other_model", fit=True), ladder.best("external", fit=True)
    own = ladder.best(*(r for r in UNTRAINED if r != "other_model"), fit=True)
    theirs = ladder.facts.monthly_usd.get(other.name) if other is not None else None
    trained = _cheapest_first(ladder, TRAINED)
    for tuned in trained:
        mine = ladder.facts.monthly_usd.get(tuned.name)
        if other is None or mine is None or theirs is None or mine >= theirs or not ladder.tie(tuned, other):
            continue
        if any(not ladder.clearly_better(tuned, model) for model in _models_not_dearer(ladder, mine)):
            continue
        if (own is not None and not ladder.clearly_better(tuned, own)) or not ladder.holds_up(
            tuned, (program, *trained)
        ):
            continue
        return Outcome(
            RECOMMENDED[rung(tuned)],
            f"{WORDS[rung(tuned)]}: {reaches(ladder, tuned)}; {spoken(other)} is no better "
            f"({difference_text(ladder, other, tuned)}) and costs {usd(theirs)} a month beside {usd(mine)}.",
            tuned,
            (f"A volume at which {spoken(other)} costs less than {spoken(tuned)} with its trainings.",),
        )
    return None


def _models_not_dearer(ladder: Ladder, monthly_usd: float) -> list[System]:
    """Other models that are fit for use and cost no more, or nobody knows what."""
    others = (s for s in ladder.eligible if rung(s) == "other_model" and ladder.is_fit(s))
    return [s for s in others if ladder.facts.monthly_usd.get(s.name, 0.0) <= monthly_usd]


def cheaper_rung(ladder: Ladder) -> Outcome | None:
    """Training is not clearly better: the cheapest system without it that holds up against everything fit for use. None
    is where a head judges: untrained, it says nothing."""
    if judges(ladder):
        return None
    rivals = tuple(ladder.best(*rungs, fit=True) for rungs in (UNTRAINED, TRAINED, ("external",)))
    chosen = next((s for s in _cheapest_first(ladder, UNTRAINED) if ladder.holds_up(s, rivals)), None)
    if chosen is None:
        return None
    tuned, best = ladder.fine_tuned, rivals[0] or chosen
    against = f"; {_why_not(ladder, tuned, chosen)}" if tuned else ""
    return Outcome(
        RECOMMENDED[rung(chosen)],
        f"{WORDS[rung(chosen)]}: {reaches(ladder, chosen)}{against}.",
        chosen,
        (
            *_unless_unfit(ladder, chosen),
            f"A fine-tuned model that is {enough(ladder)} better than {spoken(best)}, "
            "with an interval clear of zero: more or cleaner training rows, more steps, a larger base model.",
        ),
    )


def _unless_unfit(ladder: Ladder, chosen: System) -> Iterator[str]:
    """What would have been chosen but for what stands against it."""
    best = max(ladder.eligible, key=ladder.goodness)
    if not ladder.is_fit(best) and ladder.clearly_better(best, chosen):
        yield f"{spoken(best).capitalize()} without what stands against it: it {ladder.obstacle(best)}."


def _cheapest_first(ladder: Ladder, rungs: Sequence[Rung]) -> list[System]:
    """The systems of these rungs that are fit for use, by rung and then the best first."""
    found = [s for s in ladder.eligible if rung(s) in rungs and ladder.is_fit(s)]
    return sorted(found, key=lambda s: (RUNGS.index(rung(s)), -ladder.goodness(s)))


def _why_not(ladder: Ladder, tuned: System, chosen: System) -> str:
    shown = difference_text(ladder, tuned, chosen)
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
        else f"{test_rows(ladder, a, b)} would show only differences of {number(detectable * ladder.unit, 2)} or more"
    )
    return _not_yet(
        f"{spoken(a)} against {spoken(b)} is {difference_text(ladder, a, b)} on {label(ladder.metric)}, and {shown}.",
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
    cheaper_model,
    cheaper_rung,
    coarse,
    left_over,
)


def first_rule(ladder: Ladder) -> tuple[str, Outcome]:
    """The name of the first rule that speaks, and what it says."""
    spoken_first = ((rule.__name__, rule(ladder)) for rule in RULES)
    return next((name, outcome) for name, outcome in spoken_first if outcome is not None)
