"""What an hour of the own machine costs, and for how many hours of a month it is paid.

    hour = machine_usd_per_hour                                        a number, power and depreciation included
         | price an hour of cost.machine.price                         rented
         | purchase_usd / (lifetime_years * 8766 * utilization) + watts / 1000 * price of a kWh        bought

`utilization` is the share of its hours in which the machine does paid work of any kind; the others are paid by those. A
machine that answers is paid for while it waits, too: `kept_hours` a month, or as many as answering takes if those are
more. A year has 8,766 hours, a month a twelfth of them.
"""

from dataclasses import dataclass

from luthier.prices.book import Book
from luthier.recipe import HOURS_PER_MONTH, CostSettings

HOURS_PER_YEAR = 12 * HOURS_PER_MONTH
DEFAULT_USD_PER_HOUR = 0.10


@dataclass(frozen=True)
class Machine:
    """An hour of it, and the hours that are paid in any case."""

    usd_per_hour: float
    formula: str
    """How the hour was worked out, in words."""
    kept_hours: float
    """Hours a month that are paid for, whether it answers or waits."""
    watts: float | None
    """While at work; None: neither measured nor set."""
    watts_from: str
    """Where that comes from, in words."""
    usd_per_kwh: float
    """What its energy costs."""

    def usd(self, seconds: float) -> float:
        """Of so many seconds of work."""
        return seconds / 3600 * self.usd_per_hour


def own_machine(settings: CostSettings, book: Book, measured_watts: float | None = None) -> Machine:
    """The machine of a recipe; `measured_watts` is the mean draw that was measured while the run was at work.

    A measured draw goes before `cost.machine.watts`.
    """
    own = settings.machine
    kwh = book.find(own.energy, "kwh")
    usd_per_kwh = 0.0 if kwh is None else kwh.usd
    if measured_watts is not None:
        watts, source = measured_watts, "measured: processor and memory by RAPL, without a GPU or the power supply"
    elif own.watts is not None:
        watts, source = own.watts, "cost.machine.watts, not measured"
    else:
        watts, source = None, "neither measured nor set"
    usd, formula = _hour(settings, book, watts, usd_per_kwh)
    kept = HOURS_PER_MONTH * own.utilization if own.hours_per_month is None else own.hours_per_month
    return Machine(usd, formula, kept, watts, source, usd_per_kwh)


def _hour(settings: CostSettings, book: Book, watts: float | None, usd_per_kwh: float) -> tuple[float, str]:
    own = settings.machine
    if own.price is not None and (rented := book.find(own.price, "hour")) is not None:
        return rented.usd, f"rented, {own.price}"
    if own.purchase_usd is None or own.lifetime_years is None:
        given = settings.machine_usd_per_hour
        return (DEFAULT_USD_PER_HOUR, "the default") if given is None else (given, "cost.machine_usd_per_hour")
    hours = own.lifetime_years * HOURS_PER_YEAR * own.utilization
    power = (watts or 0.0) / 1000 * usd_per_kwh
    drawn = f"{watts:,.0f} W × ${usd_per_kwh:g} a kWh" if watts is not None else "power left out, as no watts are known"
    text = f"${own.purchase_usd:,.0f} / ({own.lifetime_years:g} years × {own.utilization:.0%} in use) + {drawn}"
    return own.purchase_usd / hours + power, text
