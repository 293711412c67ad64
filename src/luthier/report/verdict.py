"""The verdict as the report says it: what the rules of `decision.py` recommend, with its evidence, its doubts, and what
would change it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from luthier.evaluation.rungs import RUNGS, TRAINED, UNTRAINED
from luthier.report.cost_schema import price_of
from luthier.report.decision import Outcome, first_rule
from luthier.report.ladder import MOST_CUT_OFF, Facts, Ladder, cut_share, is_loss, rung
from luthier.report.phrases import difference_text, ladder_text, plural, promise_text, spoken
from luthier.report.schema import Cost, Evidence, Finding, Forgetting, Training, Verdict
from luthier.report.text import count, difference, first_line, label, usd


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


def _verdict(ladder: Ladder, rule: str, outcome: Outcome, cost: Cost | None) -> Verdict:
    tuned, baseline = ladder.fine_tuned, ladder.baseline
    chosen = outcome.system if outcome.system and rung(outcome.system) in TRAINED else tuned
    forgetting = ladder.forgetting_of(chosen) if chosen else ladder.facts.forgetting
    warnings = _warnings(ladder, forgetting)
    sentence = outcome.sentence + _cost_text(outcome, cost)
    doubts = warnings if chosen is outcome.system else _warnings(ladder, None)  # what no one will use forgot nothing
    if doubts and outcome.recommendation != "not_yet":
        sentence += f" Mind: {'; '.join(dict.fromkeys(w.short for w in doubts))}."
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
        evidence=_evidence(ladder, forgetting, cost),
        would_change=(
            *outcome.would_change,
            *_cheaper_by_volume(outcome, cost),
            *_cheapest_way(cost),
            *_still_falling(ladder.facts.training),
            *_more_rows(ladder),
        ),
        assumptions=ladder.facts.assumptions.model_dump(),
    )


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


def _warnings(ladder: Ladder, forgetting: Forgetting | None) -> tuple[_Warning, ...]:
    return (
        *_forgetting_warnings(forgetting),
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
        leaks = f"{plural(facts.split.leaks, 'row')} stood on both sides of the split, so the scores may flatter."
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
    """Warnings that touch what the scores mean: wrong labels, leaks, and values that training never shows."""
    words = ("label", "contradict", "leak", "unseen")
    return [f for f in findings if f.severity == "warning" and any(word in f.check for word in words)]


def _evidence(ladder: Ladder, forgetting: Forgetting | None, cost: Cost | None) -> tuple[Evidence, ...]:
    facts, found = ladder.facts, []
    for a, b in ((ladder.fine_tuned, ladder.baseline), (ladder.fine_tuned, ladder.external)):
        if a and b:
            d = ladder.difference(a, b)
            how = f" ({d.test})" if d.test else ""
            text = f"{a.name} minus {b.name}: {difference_text(ladder, a, b)}{how}."
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
    if forgetting is not None and forgetting.measures:
        source = "forgetting.json" if forgetting is facts.forgetting else "with_passages/forgetting.json"
        found.append(Evidence(text=forgetting_sentence(forgetting), source=source))
    for paid in cost.break_even[:1] if cost is not None else ():
        found.append(
            Evidence(
                text=f"Break-even. {paid.name}: {paid.explanation}",
                source="recipe.json, manifest.json, evaluation.json",
            )
        )
    return tuple(found)
