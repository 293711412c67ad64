"""What a run cost and what its answers will cost, from measured seconds and tokens and the recipe's prices.

    here    = seconds / 3600 * machine_usd_per_hour
    hosted  = (prompt tokens * input price + completion tokens * output price) / 1,000,000
    break-even answers = paid once / (baseline's cost of an answer - fine-tuned model's cost of an answer)

Nothing is fetched and nothing is assumed: an amount whose inputs were not measured is null. Left out: people's time for
labeling rows, storage, and the idle hours of a machine that waits for questions.
"""

import math
from collections.abc import Mapping, Sequence

from luthier.recipe import CostSettings
from luthier.report.schema import BreakEven, Cost, Expense, System, SystemCost, Training
from luthier.report.text import count, duration, usd

MILLION = 1_000_000
QUARTERS = 4
WHOLE_PROGRAM = "the whole program: its start, and its training if it trains itself"


def build_cost(
    prices: CostSettings,
    systems: Sequence[System],
    training: Training | None,
    stages: Mapping[str, float],
    contest: tuple[str | None, str | None],
) -> Cost:
    """Cost of a run.

    `stages` are measured seconds by stage; `contest` names the fine-tuned system and the best baseline.
    """
    run = run_expenses(prices, systems, training, stages)
    run_usd = sum(e.usd for e in run) if run else None
    hosted = hosted_training(prices, training)
    answers = tuple(system_cost(prices, system) for system in systems)
    by_name = {cost.system: cost for cost in answers}
    fine_tuned, baseline = by_name.get(contest[0] or ""), by_name.get(contest[1] or "")
    pair = (fine_tuned, baseline) if fine_tuned and baseline else None
    return Cost(
        prices={k: float(v) for k, v in prices.model_dump().items() if k.endswith(("_tokens", "_hour"))},
        answers_per_month=prices.answers_per_month,
        run=run,
        run_usd=run_usd,
        hosted_training=hosted,
        systems=answers,
        break_even=break_evens(prices, pair, run_usd, hosted) if pair else (),
        quarterly=quarterly(run_usd, hosted),
    )


def _here(prices: CostSettings, name: str, seconds: float) -> Expense:
    """seconds / 3600 * machine_usd_per_hour."""
    amount = seconds / 3600 * prices.machine_usd_per_hour
    return Expense(name=name, usd=amount, formula=f"{duration(seconds)} × {usd(prices.machine_usd_per_hour)} an hour")


def run_expenses(
    prices: CostSettings, systems: Sequence[System], training: Training | None, stages: Mapping[str, float]
) -> tuple[Expense, ...]:
    """This run on this machine: training, evaluation of each system, and every other stage with a measured time.

    Training seconds are those of the stage, with the validation before the first step and the writing of checkpoints,
    or those of the steps alone (`training.json`) where they are more. Evaluation seconds are those of the stage
    `evaluate:<system>`, which hold more than answering; else of the stage `evaluate`, which is then all systems at
    once; else the system's own. Each second is counted once.
    """
    measured_twice = (training.seconds if training is not None else None, stages.get("train"))
    trained = max((seconds for seconds in measured_twice if seconds is not None), default=None)
    expenses = [] if trained is None else [_here(prices, "Training", trained)]
    for system in systems:
        seconds = stages.get(f"evaluate:{system.name}", None if "evaluate" in stages else system.seconds)
        if seconds is not None:
            expenses.append(_here(prices, f"Evaluating {system.name}", seconds))
        if system.details.usd_paid is not None:
            formula = "tokens × the endpoint's own prices"
            expenses.append(Expense(name=f"Paid for {system.name}", usd=system.details.usd_paid, formula=formula))
    measured = {"train", *(f"evaluate:{system.name}" for system in systems)}
    rest = sum(seconds for stage, seconds in stages.items() if stage not in measured)
    if rest:
        others = ", ".join(stage for stage in stages if stage not in measured)
        expenses.append(_here(prices, f"Everything else ({others})", rest))
    return tuple(expenses)


def hosted_training(prices: CostSettings, training: Training | None) -> Expense | None:
    """tokens / 1,000,000 * hosted_training price; tokens are those of all rows of all steps, prompts included."""
    if training is None or training.tokens is None:
        return None
    price = prices.hosted_training_usd_per_million_tokens
    formula = f"{count(training.tokens)} tokens × {usd(price)} a million"
    return Expense(name="The same training, hosted", usd=training.tokens / MILLION * price, formula=formula)


def system_cost(prices: CostSettings, system: System) -> SystemCost:
    """Cost of a thousand answers, from the averages over the n test rows.

    here   = seconds / n / 3600 * machine price * 1000
    hosted = (prompt / n * input price + completion / n * output price) / 1,000,000 * 1000

    A few-shot prompt is longer, so it costs more. A system without tokens has no hosted price. The seconds of a program
    are those from its start to its end, so a program that trains itself seems dearer than its answers are. A remote
    model has no price here, and hosted its own one where its settings name prices.
    """
    n = system.n
    seconds = system.seconds / n if system.seconds is not None and n else None
    tokens = system.tokens if n and system.tokens is not None and system.tokens.prompt else None
    prompt, completion = (tokens.prompt / n, tokens.completion / n) if tokens else (None, None)
    is_remote = system.type == "remote"
    here = None if seconds is None or is_remote else seconds / 3600 * prices.machine_usd_per_hour * 1000
    hosted = None
    if n and system.details.usd is not None:
        hosted = system.details.usd / n * 1000
    elif prompt is not None and completion is not None:
        paid = (
            prompt * prices.hosted_input_usd_per_million_tokens
            + completion * prices.hosted_output_usd_per_million_tokens
        )
        hosted = paid / MILLION * 1000
    months = prices.answers_per_month / 1000
    return SystemCost(
        system=system.name,
        seconds_per_answer=seconds,
        seconds_include=WHOLE_PROGRAM if system.type == "command" and seconds is not None else None,
        prompt_tokens_per_answer=prompt,
        completion_tokens_per_answer=completion,
        here_usd_per_thousand=here,
        hosted_usd_per_thousand=hosted,
        here_usd_per_month=None if here is None else here * months,
        hosted_usd_per_month=None if hosted is None else hosted * months,
    )


def break_evens(
    prices: CostSettings, pair: tuple[SystemCost, SystemCost], run_usd: float | None, hosted: Expense | None
) -> tuple[BreakEven, ...]:
    """Fine-tuned against the best baseline, three ways: both here, both hosted, and moving from hosted to here."""
    tuned, base = pair
    ways = (
        ("Fine-tuned here against the baseline here", run_usd, tuned.here_usd_per_thousand, base.here_usd_per_thousand),
        (
            "Fine-tuned hosted against the baseline hosted",
            hosted.usd if hosted else None,
            tuned.hosted_usd_per_thousand,
            base.hosted_usd_per_thousand,
        ),
        (
            "Fine-tuned here against the baseline hosted",
            run_usd,
            tuned.here_usd_per_thousand,
            base.hosted_usd_per_thousand,
        ),
    )
    return tuple(
        break_even(name, once, mine, theirs, prices.answers_per_month)
        for name, once, mine, theirs in ways
        if once is not None and mine is not None and theirs is not None
    )


def break_even(name: str, once_usd: float, mine: float, theirs: float, answers_per_month: int) -> BreakEven:
    """answers = once / ((theirs - mine) / 1000), rounded up; never, if an answer costs no less than the baseline's.

    `mine` and `theirs` are dollars for a thousand answers of the fine-tuned model and of the baseline.
    """
    saving = (theirs - mine) / 1000
    # rounded first: 10 / 0.0004 is 25000.000000000004 in binary
    answers = math.ceil(round(once_usd / saving, 6)) if saving > 0 else None
    if answers is None:
        more = "as much as" if theirs == mine else f"{usd(mine - theirs)} more than"
        explanation = f"never on cost alone: a thousand answers cost {more} the baseline's."
        months = None
    else:
        months = answers / answers_per_month
        explanation = f"after {count(answers)} answers, which is {_span(months)} at {count(answers_per_month)} a month."
    return BreakEven(
        name=name,
        once_usd=once_usd,
        fine_tuned_usd_per_thousand=mine,
        baseline_usd_per_thousand=theirs,
        answers=answers,
        months=months,
        explanation=explanation,
    )


def _span(months: float) -> str:
    """Months as minutes to years, for reading; a month has 30.4 days."""
    hours = months * 30.4 * 24
    for size, unit in ((24 * 365.25, "years"), (24 * 30.4, "months"), (24.0, "days"), (1.0, "hours")):
        if hours >= size * 1.5:
            return f"{hours / size:,.1f} {unit}"
    return f"{max(1, round(hours * 60))} minutes" if hours * 60 >= 1.5 else "a minute"


def quarterly(run_usd: float | None, hosted: Expense | None) -> tuple[Expense, ...]:
    """Four runs a year, each at the price of this one: when data or base model change, the whole run is done again."""
    amounts = (("here", run_usd), ("training hosted", hosted.usd if hosted else None))
    return tuple(
        Expense(
            name=f"Again each quarter, {where}", usd=QUARTERS * amount, formula=f"{QUARTERS} × {usd(amount)} a year"
        )
        for where, amount in amounts
        if amount is not None
    )
