"""By how much one assumption must change, alone, until another way to answer is the cheapest.

Compared are the ways of the model's systems that no other clearly beats: where quality differs, price does not choose.
What a way costs a month is its answers, and for a fine-tuned one a twelfth of a year of repeats. Each assumption
multiplies a part of that by a factor; the factors nearest to 1 on either side at which the cheapest way changes are
found exactly (`prices/ramp.py`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from luthier.prices.ramp import Ramp, cheapest, switch
from luthier.recipe import HOURS_PER_MONTH
from luthier.report.break_even import repeats_usd
from luthier.report.cost_schema import Sensitivity
from luthier.report.text import count, usd
from luthier.report.ways import HERE, Priced, Way


@dataclass(frozen=True)
class _Assumption:
    name: str
    now: float
    show: Callable[[float], str]
    cost: Callable[[Way], Ramp]
    """Of a month, by the factor."""
    most: float = float("inf")
    """The largest value that makes sense."""


def choices(ways: Sequence[Way], priced: Priced) -> list[Way]:
    """The ways whose month is known, repeats included, the cheapest first; equal ones in the order given."""
    known = [way for way in ways if way.month is not None and way.once_usd is not None]
    return sorted(known, key=lambda way: month_usd(way, priced))


def month_usd(way: Way, priced: Priced) -> float:
    """What a month of a way of known cost costs: answers and, for a fine-tuned one, repeats."""
    return _serving(way, priced) + _again(way, priced)


def _serving(way: Way, priced: Priced) -> float:
    assert way.month is not None
    return way.month.usd(priced.settings.answers_per_month)


def _again(way: Way, priced: Priced) -> float:
    return repeats_usd(priced.settings, way.once_usd or 0.0) / 12 if way.is_tuned else 0.0


def sensitivities(ordered: Sequence[Way], seconds: float | None, priced: Priced) -> tuple[Sensitivity, ...]:
    """Every assumption with the factors that change the cheapest of the ways; `ordered` is what `choices` gave.

    `seconds` are those of an answer of the cheapest way's system.
    """
    if len(ordered) < 2:
        return ()
    found: list[Sensitivity] = []
    for a in _assumptions(ordered, seconds, priced):
        costs = [a.cost(way) for way in ordered]
        assert cheapest(costs, 1.0) == 0, "every assumption leaves the costs as they are at a factor of 1"
        rows = []
        for upward in (False, True):
            changed = switch(costs, upward=upward)
            if changed is not None and changed.factor > 0 and a.now * changed.factor <= a.most * (1 + 1e-9):
                then, name = a.show(a.now * changed.factor), ordered[changed.cheapest].name
                rows.append(_row(a, changed.factor, then, name))
        found += rows or [_row(a, None, None, None)]
    return tuple(found)


def _row(a: _Assumption, factor: float | None, then: str | None, name: str | None) -> Sensitivity:
    return Sensitivity(assumption=a.name, now=a.show(a.now), factor=factor, then=then, cheapest=name)


def _assumptions(ways: Sequence[Way], seconds: float | None, priced: Priced) -> list[_Assumption]:
    settings, machine = priced.settings, priced.machine

    def by_volume(way: Way, *, only_here: bool = False) -> Ramp:
        """The factor multiplies answers, or with `only_here` the seconds of each, on which rented ones rest, too."""
        assert way.month is not None
        if only_here and way.place != HERE and way.place not in settings.rented_speed:
            return Ramp(month_usd(way, priced), 0.0)
        return Ramp(way.month.floor, way.month.rate * settings.answers_per_month, way.month.fixed + _again(way, priced))

    def by_place(place: str) -> Callable[[Way], Ramp]:
        """The factor multiplies every price of the place; new rows cost what they do."""

        def cost(way: Way) -> Ramp:
            rows = settings.repeats_per_year / 12 * settings.refresh_usd if way.is_tuned else 0.0
            return (
                Ramp(0.0, month_usd(way, priced) - rows, rows)
                if way.place == place
                else Ramp(month_usd(way, priced), 0.0)
            )

        return cost

    def by_repeats(way: Way) -> Ramp:
        return Ramp(0.0, _again(way, priced), _serving(way, priced))

    def by_hours(way: Way) -> Ramp:
        assert way.month is not None
        if not (way.month.floor and way.month.rate):  # tokens, and an endpoint that is always on
            return Ramp(month_usd(way, priced), 0.0)
        return Ramp(way.month.rate * settings.answers_per_month, way.month.floor, _again(way, priced))

    found = [
        _Assumption("answers a month", settings.answers_per_month, count, by_volume),
        _Assumption("an hour of this machine", machine.usd_per_hour, usd, by_place(HERE)),
        _Assumption("hours a month it is kept", machine.kept_hours, lambda x: f"{x:,.4g}", by_hours, HOURS_PER_MONTH),
        _Assumption("repeats a year", settings.repeats_per_year, lambda x: f"{x:,.4g}", by_repeats),
    ]
    if seconds is not None:
        found.append(
            _Assumption(
                "seconds an answer here", seconds, lambda x: f"{x:.2g} s", lambda way: by_volume(way, only_here=True)
            )
        )
    places = dict.fromkeys(way.place for way in ways if way.place != HERE)
    found += [_Assumption(f"prices of {place}", 1.0, lambda x: f"{x:.0%}", by_place(place)) for place in places]
    return [a for a in found if a.now]
