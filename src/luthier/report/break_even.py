"""From which volume fine-tuning pays, against each cheaper rung, once and if it is done again all the time.

    answers until paid   = paid once / (month of the baseline - month of the fine-tuned model) * answers of a month
    volume that pays for repeats:   the smallest at which
        month of the baseline - month of the fine-tuned model >= repeats a year / 12 * (paid once + new rows)

The months are those of `ways.py`. A machine that is kept costs the same for a fast system and a slow one until the slow
one needs more hours than it is kept: then a faster answer saves nothing, and the break-even says "never".
"""

import math
from collections.abc import Mapping, Sequence

from luthier.prices.ramp import TOLERANCE, first_above
from luthier.recipe import CostSettings
from luthier.report.cost_schema import BreakEven, Expense
from luthier.report.text import count, usd
from luthier.report.ways import HERE, Way


def break_evens(settings: CostSettings, tuned: Sequence[Way], rivals: Sequence[Sequence[Way]]) -> tuple[BreakEven, ...]:
    """The fine-tuned system against each rival: both here, both at each place, and moving from each place to here.

    `tuned` are its ways, `rivals` those of each cheaper system, the best first.
    """
    own = {way.place: way for way in tuned}
    found = []
    for ways in rivals:
        # a remote model answers at a place of its own, where nothing was tuned
        pairs = [(own[rival.place], rival) for rival in ways if rival.place in own]
        pairs += [(own[HERE], rival) for rival in ways if rival.place != HERE]
        found += [break_even(settings, mine, theirs) for mine, theirs in pairs if _is_known(mine, theirs)]
    return tuple(found)


def _is_known(mine: Way, theirs: Way) -> bool:
    return mine.once_usd is not None and mine.month is not None and theirs.month is not None


def break_even(settings: CostSettings, mine: Way, theirs: Way) -> BreakEven:
    """One fine-tuned way against one way without training; both have known costs."""
    assert mine.month is not None and theirs.month is not None and mine.once_usd is not None
    volume = settings.answers_per_month
    tuned, base = mine.month.usd(volume), theirs.month.usd(volume)
    saving = base - tuned if abs(base - tuned) > TOLERANCE * max(base, tuned) else 0.0
    months = mine.once_usd / saving if saving > 0 else None
    # rounded first: 10 / 0.0004 is 25000.000000000004 in binary
    answers = None if months is None else math.ceil(round(months * volume, 6))
    again = first_above(theirs.month, mine.month, repeats_usd(settings, mine.once_usd) / 12)
    return BreakEven(
        name=f"{mine.name} against {theirs.name}",
        baseline=theirs.system,
        fine_tuned_at=mine.place,
        baseline_at=theirs.place,
        once_usd=mine.once_usd,
        fine_tuned_usd_per_thousand=tuned / volume * 1000,
        baseline_usd_per_thousand=base / volume * 1000,
        answers=answers,
        months=months,
        explanation=_explanation(answers, months, saving, volume, mine.place == theirs.place == HERE),
        again_answers_per_month=None if again is None else math.ceil(round(again, 6)),
    )


def _explanation(answers: int | None, months: float | None, saving: float, volume: int, here: bool) -> str:
    if answers is not None and months is not None:
        return f"after {count(answers)} answers, which is {_span(months)} at {count(volume)} a month."
    if saving < 0:
        more = usd(-saving / volume * 1000)
        return f"never at {count(volume)} a month: a thousand answers cost {more} more than the baseline's."
    same = "both fit into the hours that the machine is paid for" if here else "they cost as much"
    return f"never at {count(volume)} a month: {same}."


def _span(months: float) -> str:
    """Months as minutes to years, for reading; a month has 30.4 days."""
    hours = months * 30.4 * 24
    for size, unit in ((24 * 365.25, "years"), (24 * 30.4, "months"), (24.0, "days"), (1.0, "hours")):
        if hours >= size * 1.5:
            return f"{hours / size:,.1f} {unit}"
    return f"{max(1, round(hours * 60))} minutes" if hours * 60 >= 1.5 else "a minute"


def repeats_usd(settings: CostSettings, once_usd: float) -> float:
    """A year of doing it again: each time a whole run and its new rows."""
    return settings.repeats_per_year * (once_usd + settings.refresh_usd)


def repeats(settings: CostSettings, trained: Mapping[str, float]) -> tuple[Expense, ...]:
    """The same as amounts, for each place that can train."""
    if not trained or not settings.repeats_per_year:
        return ()
    often = "each quarter" if settings.repeats_per_year == 4 else f"{settings.repeats_per_year:g} times a year"
    rows = f" + {usd(settings.refresh_usd)} of new rows" if settings.refresh_usd else ""
    return tuple(
        Expense(
            name=f"Again {often}, {'here' if place == HERE else f'at {place}'}",
            usd=repeats_usd(settings, once),
            formula=f"{settings.repeats_per_year:g} × {f'({usd(once)}{rows})' if rows else usd(once)} a year",
        )
        for place, once in trained.items()
    )
