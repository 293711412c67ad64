"""What a run cost and what its answers will cost, from measured seconds and tokens, the recipe, and the price book.

    here    = seconds / 3600 * price of an hour of this machine
    hosted  = (prompt tokens * input price + completion tokens * output price) / 1,000,000

Nothing is fetched, and nothing assumed that the recipe does not say: an amount whose inputs were not measured is null.
`ways.py` prices a month of answers, `break_even.py` and `sensitivity.py` compare them. Left out: people's time for
labeling the first rows, storage, and taxes.
"""

from collections.abc import Mapping, Sequence
from datetime import date

from luthier.energy import JOULES_PER_KWH
from luthier.evaluation.rungs import RUNGS, UNTRAINED
from luthier.prices import Book, Machine, own_machine
from luthier.prices.book import Price, hosted_names
from luthier.recipe import CostSettings
from luthier.report.break_even import break_evens, repeats, repeats_usd
from luthier.report.cost_schema import (
    Cost,
    Energy,
    Expense,
    HostedCost,
    MachineCost,
    PriceUsed,
    PromptSaving,
    SystemCost,
    price_of,
)
from luthier.report.ladder import Facts, Ladder, rung
from luthier.report.schema import Run, System, Training
from luthier.report.sensitivity import choices, month_usd, sensitivities
from luthier.report.text import count, duration, usd
from luthier.report.ways import HERE, MILLION, Priced, Way, is_tuned, trained_at, ways_of

WHOLE_PROGRAM = "the whole program: its start, and its training if it trains itself"


def build_cost(settings: CostSettings, book: Book, facts: Facts, run: Run, today: date) -> Cost:
    """Cost of a run; `today` is the day that the age of a price is counted to.

    Raises:
        RecipeError: the machine is priced by an entry that the book does not have.
    """
    machine = machine_of(settings, book, run)
    priced = Priced(settings, book, machine, hosted_names(settings, book))
    expenses = (*run_expenses(machine, facts.systems, facts.training, run.stages), *paid_expenses(facts.systems))
    run_usd = sum(e.usd for e in expenses) if expenses else None
    seconds = run_seconds(facts.systems, facts.training, run.stages)
    tokens = facts.training.tokens if facts.training else None
    trained = trained_at(priced, tokens, run_usd, seconds)
    ways = {system.name: ways_of(system, priced, trained) for system in facts.systems}
    ladder = Ladder(facts)
    tuned, rivals = ladder.fine_tuned, cheaper_systems(ladder)
    ordered = choices([way for system in contenders(ladder) for way in ways[system.name]], priced)
    return Cost(
        machine=MachineCost(
            usd_per_hour=machine.usd_per_hour,
            formula=machine.formula,
            kept_hours_per_month=machine.kept_hours,
            watts=machine.watts,
            watts_from=machine.watts_from,
        ),
        prices=tuple(used(price, today) for price in prices_used(priced)),
        warnings=tuple(warnings(priced, facts.training, today)),
        answers_per_month=settings.answers_per_month,
        run=expenses,
        run_usd=run_usd,
        energy=energy_of(machine, run, seconds),
        hosted_training=hosted_training(priced, tokens),
        systems=tuple(system_cost(priced, system, ways[system.name]) for system in facts.systems),
        savings=prompt_savings(priced, tuned, rivals) if tuned else (),
        break_even=break_evens(settings, ways[tuned.name], [ways[s.name] for s in rivals]) if tuned else (),
        quarterly=repeats(settings, trained),
        choices=tuple(f"{way.name}: {usd(month_usd(way, priced))} a month" for way in ordered),
        sensitivity=sensitivities(ordered, _seconds_of(ordered, facts.systems), priced),
    )


def monthly(cost: Cost, settings: CostSettings, systems: Sequence[System]) -> dict[str, float]:
    """A month of each system's answers, here or where they are not given here at their endpoint; a trained one pays its
    share of the runs and the new rows of a year."""
    again = repeats_usd(settings, cost.run_usd or 0.0) / 12
    trained = {system.name for system in systems if is_tuned(system)}
    found = {}
    for paid in cost.systems:
        thousand = price_of(paid)
        if thousand is not None:
            runs = again if paid.system in trained else 0.0
            found[paid.system] = thousand * cost.answers_per_month / 1000 + runs
    return found


def machine_of(settings: CostSettings, book: Book, run: Run) -> Machine:
    """This machine; its draw is the mean over the stages that were measured.

    RAPL does not see a GPU, so where there is one, the watts of the recipe go before what was measured.

    Raises:
        RecipeError: the machine is priced by an entry that the book does not have.
    """
    if settings.machine.price is not None:
        book.require(settings.machine.price, "cost.machine.price", "hour")
    known = {stage: run.stages[stage] for stage in run.joules if run.stages.get(stage)}
    has_better = run.machine.get("gpu") is not None and settings.machine.watts is not None
    if not known or has_better:
        return own_machine(settings, book)
    return own_machine(settings, book, sum(run.joules[stage] for stage in known) / sum(known.values()))


def run_expenses(
    machine: Machine, systems: Sequence[System], training: Training | None, stages: Mapping[str, float]
) -> tuple[Expense, ...]:
    """This run on this machine: training, evaluation of each system, and every other stage with a measured time."""
    price = usd(machine.usd_per_hour)
    return tuple(
        Expense(name=name, usd=machine.usd(seconds), formula=f"{duration(seconds)} × {price} an hour")
        for name, seconds in _parts(systems, training, stages)
    )


def paid_expenses(systems: Sequence[System]) -> tuple[Expense, ...]:
    """What endpoints were paid for answers of this run."""
    formula = "tokens × the endpoint's own prices"
    return tuple(
        Expense(name=f"Paid for {system.name}", usd=system.details.usd_paid, formula=formula)
        for system in systems
        if system.details.usd_paid is not None
    )


def run_seconds(systems: Sequence[System], training: Training | None, stages: Mapping[str, float]) -> float | None:
    """All seconds of a run that are paid for; None: none was measured."""
    parts = _parts(systems, training, stages)
    return sum(seconds for _, seconds in parts) if parts else None


def _parts(
    systems: Sequence[System], training: Training | None, stages: Mapping[str, float]
) -> list[tuple[str, float]]:
    """What a run did, and for how many seconds.

    Training seconds are those of the stage, with the validation before the first step and the writing of checkpoints,
    or those of the steps alone (`training.json`) where they are more. Evaluation seconds are those of the stage
    `evaluate:<system>`, which hold more than answering; else of the stage `evaluate`, which is then all systems at
    once; else the system's own. Each second is counted once.
    """
    measured_twice = (training.seconds if training is not None else None, stages.get("train"))
    trained = max((seconds for seconds in measured_twice if seconds is not None), default=None)
    parts = [] if trained is None else [("Training", trained)]
    for system in systems:
        seconds = stages.get(f"evaluate:{system.name}", None if "evaluate" in stages else system.seconds)
        if seconds is not None:
            parts.append((f"Evaluating {system.name}", seconds))
    measured = {"train", *(f"evaluate:{system.name}" for system in systems)}
    rest = sum(seconds for stage, seconds in stages.items() if stage not in measured)
    if rest:
        others = ", ".join(stage for stage in stages if stage not in measured)
        parts.append((f"Everything else ({others})", rest))
    return parts


def energy_of(machine: Machine, run: Run, seconds: float | None) -> Energy | None:
    """Energy of the run: counted by the processor where that was possible, else watts times seconds, else unknown."""
    price = f"{usd(machine.usd_per_kwh)} a kWh, which the hour holds already"
    if run.joules:
        kwh = sum(run.joules.values()) / JOULES_PER_KWH
        over = f"{len(run.joules)} of {len(run.stages)} stages"
        text = f"{kwh:.3g} kWh measured over {over} (processor and memory, no GPU) × {price}"
        return Energy(kwh=kwh, usd=kwh * machine.usd_per_kwh, formula=text)
    if machine.watts is None or seconds is None:
        return None
    kwh = machine.watts * seconds / JOULES_PER_KWH
    text = f"{machine.watts:g} W ({machine.watts_from}) × {duration(seconds)} × {price}"
    return Energy(kwh=kwh, usd=kwh * machine.usd_per_kwh, formula=text)


def hosted_training(priced: Priced, tokens: int | None) -> tuple[Expense, ...]:
    """tokens / 1,000,000 * price of training, at each place that sells it; tokens of all rows of all steps."""
    if tokens is None:
        return ()
    prices = [price for place in priced.places if (price := priced.book.find(place, "training")) is not None]
    return tuple(
        Expense(
            name=f"The same training at {price.name}",
            usd=tokens / MILLION * price.usd,
            formula=f"{count(tokens)} tokens × {usd(price.usd)} a million",
        )
        for price in prices
    )


def system_cost(priced: Priced, system: System, ways: Sequence[Way]) -> SystemCost:
    """Cost of a thousand answers and of a month, from the averages over the n test rows.

    A few-shot prompt is longer, so it costs more. The seconds of a program are those from its start to its end, so a
    program that trains itself seems dearer than its answers are.
    """
    n, volume = system.n, priced.settings.answers_per_month
    seconds = system.seconds / n if system.seconds is not None and n else None
    tokens = system.tokens if n and system.tokens is not None and system.tokens.prompt else None
    here = next(way.month for way in ways if way.place == HERE)
    return SystemCost(
        system=system.name,
        seconds_per_answer=seconds,
        seconds_include=WHOLE_PROGRAM if system.type == "command" and seconds is not None else None,
        prompt_tokens_per_answer=tokens.prompt / n if tokens else None,
        completion_tokens_per_answer=tokens.completion / n if tokens else None,
        busy_usd_per_thousand=None if here is None else here.rate * 1000,
        hours_per_month=None if seconds is None else seconds / 3600 * volume,
        here_usd_per_thousand=None if here is None else here.usd(volume) / volume * 1000,
        here_usd_per_month=None if here is None else here.usd(volume),
        hosted=tuple(_hosted_cost(way, volume) for way in ways if way.place != HERE),
    )


def _hosted_cost(way: Way, volume: int) -> HostedCost:
    month = None if way.month is None else way.month.usd(volume)
    thousand = None if month is None else month / volume * 1000
    return HostedCost(name=way.place, usd_per_thousand=thousand, usd_per_month=month, note=way.note)


def cheaper_systems(ladder: Ladder) -> list[System]:
    """The best system of each rung below fine-tuning, programs apart: the best baseline first."""
    found = [system for system in (ladder.best(r) for r in UNTRAINED) if system is not None]
    return sorted(found, key=ladder.goodness, reverse=True)


def contenders(ladder: Ladder) -> list[System]:
    """The model's systems that are reliable and that none of them clearly beats, from the cheapest rung."""
    known = [s for s in ladder.eligible if rung(s) != "external" and ladder.is_fit(s)]
    left = [s for s in known if not any(ladder.clearly_better(other, s) for other in known)]
    return sorted(left, key=lambda s: RUNGS.index(rung(s)))


def _seconds_of(ordered: Sequence[Way], systems: Sequence[System]) -> float | None:
    """Seconds of an answer of the cheapest way's system."""
    system = next((s for s in systems if ordered and s.name == ordered[0].system), None)
    return system.seconds / system.n if system is not None and system.seconds is not None and system.n else None


def prompt_savings(priced: Priced, tuned: System, rivals: Sequence[System]) -> tuple[PromptSaving, ...]:
    """Prompt tokens that the fine-tuned model needs fewer than each cheaper system, at each price for reading them."""
    found = []
    mine = tuned.tokens.prompt / tuned.n if tuned.tokens is not None and tuned.n else None
    for rival in rivals:
        theirs = rival.tokens.prompt / rival.n if rival.tokens is not None and rival.n else None
        if mine is None or theirs is None or theirs <= mine:
            continue
        for place in priced.places:
            price = priced.book.find(place, "input")
            if price is not None:
                month = (theirs - mine) * priced.settings.answers_per_month / MILLION * price.usd
                found.append(
                    PromptSaving(baseline=rival.name, name=place, tokens_per_answer=theirs - mine, usd_per_month=month)
                )
    return tuple(found)


def prices_used(priced: Priced) -> list[Price]:
    """Every price that an amount may rest on: of the places, of a rented machine, and of energy where it is known."""
    names = list(priced.places)
    own = priced.settings.machine
    if own.price is not None and own.price not in names:
        names.append(own.price)
    if priced.machine.watts is not None:
        names.append(own.energy)
    return [price for name in names for price in priced.book.of(name).values()]


def used(price: Price, today: date) -> PriceUsed:
    """A price with its age."""
    return PriceUsed(
        name=price.name,
        what=price.what,
        usd=price.usd,
        unit=price.unit,
        read=price.read.isoformat() if price.read is not None else None,
        age=price.age(today),
        old=price.is_old(today),
        source=price.source,
        note=price.note,
    )


def warnings(priced: Priced, training: Training | None, today: date) -> list[str]:
    """Old prices, entries that are gone, and training seconds that look like a stopped process."""
    old = dict.fromkeys(price.name for price in prices_used(priced) if price.is_old(today))
    found = [f"The prices of {name} were read more than a year ago; look them up again." for name in old]
    gone = [place for place in priced.places if not priced.book.of(place)]
    found += [f"{name} is not in the price book any more, so nothing is priced there." for name in gone]
    if training is not None and training.slow_seconds >= 1:
        found.append(
            f"{duration(training.slow_seconds)} of the training are steps that took over ten times the usual: the "
            "process was stopped, or the machine was busy. They are counted as training."
        )
    return found
