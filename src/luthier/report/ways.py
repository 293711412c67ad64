"""Ways to answer: a system at a place, and what a month of it costs at any volume.

    here     max(hours kept, seconds an answer / 3600 * answers) * hour of the machine
    rented   the same with the hour of a GPU, and seconds divided by the speed that the recipe assumes of it; kept for
             hours_per_month, or always on
    hosted   (prompt tokens * input price + completion tokens * output price) / 1,000,000 * answers

A tuned model has prices of its own (`tuned_input`, `tuned_output`); where a provider serves it from an endpoint by the
hour, the endpoint is paid for all of the month. What a hosted model would answer was not measured: its prices are those
of as many tokens as this run's model read and wrote.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from luthier.evaluation.rungs import TRAINED
from luthier.prices import Book, Machine
from luthier.prices.ramp import Ramp
from luthier.recipe import HOURS_PER_MONTH, CostSettings
from luthier.report.ladder import rung
from luthier.report.schema import System

MILLION = 1_000_000
HERE, ENDPOINT = "here", "its endpoint"


@dataclass(frozen=True)
class Priced:
    """What prices a run: the recipe, the book, the machine, and the places to compare."""

    settings: CostSettings
    book: Book
    machine: Machine
    places: Sequence[str]
    """Entries of the book."""


@dataclass(frozen=True)
class Way:
    """A system at a place."""

    system: str
    place: str
    """`here`, or an entry of the book."""
    is_tuned: bool
    month: Ramp | None
    """USD by the answers of a month; None: not known, and `note` says why."""
    once_usd: float | None
    """Paid once for its training there; 0 for a system without; None: not known."""
    note: str = ""

    @property
    def name(self) -> str:
        """`fine_tuned here`, `few_shot at openai/gpt-4o-mini`."""
        return f"{self.system} {HERE}" if self.place == HERE else f"{self.system} at {self.place}"


def is_tuned(system: System) -> bool:
    """Whether training made it."""
    return rung(system) in TRAINED


def ways_of(system: System, priced: Priced, trained: Mapping[str, float]) -> list[Way]:
    """The system here, then at each place of the recipe; `trained` is what `trained_at` gives."""
    if system.type == "remote":
        return _elsewhere(system)
    tuned = is_tuned(system)
    found = []
    for place in (HERE, *priced.places):
        month, note = _month(system, place, priced)
        once = trained.get(place) if tuned else 0.0
        found.append(Way(system.name, place, tuned, month, once, note))
    return found


def _elsewhere(system: System) -> list[Way]:
    """A remote model has no price here, and there its own, where its settings name it."""
    usd = system.details.usd
    there = None if usd is None or not system.n else Ramp(0.0, usd / system.n)
    note = "" if there else "its settings name no prices"
    return [
        Way(system.name, HERE, False, None, 0.0, "it is asked elsewhere"),
        Way(system.name, ENDPOINT, False, there, 0.0, note),
    ]


def _month(system: System, place: str, priced: Priced) -> tuple[Ramp | None, str]:
    seconds = system.seconds / system.n if system.seconds is not None and system.n else None
    if place == HERE:
        if seconds is None:
            return None, "no seconds were measured"
        hour = priced.machine.usd_per_hour
        return Ramp(priced.machine.kept_hours * hour, seconds / 3600 * hour), ""
    if system.type == "command":
        return None, "a program of your own is not hosted"
    prices = priced.book.of(place)
    if set(prices) == {"hour"}:
        speed, hour = priced.settings.rented_speed.get(place), prices["hour"].usd
        if speed is None:
            return None, f"${hour:,.2f} an hour; the time there was not measured, and cost.rented_speed assumes none"
        if seconds is None:
            return None, f"${hour:,.2f} an hour; seconds an answer are not known"
        own = priced.settings.machine.hours_per_month
        kept = HOURS_PER_MONTH if own is None else own  # use by other work does not pay for what is rented
        note = f"assumed to be {speed:g} times as fast as this machine"
        return Ramp(kept * hour, seconds / speed / 3600 * hour), note
    return _hosted(system, place, priced)


def _hosted(system: System, place: str, priced: Priced) -> tuple[Ramp | None, str]:
    prices = priced.book.of(place)
    if not prices:
        return None, "not in the price book"
    tokens = system.tokens if system.n and system.tokens is not None and system.tokens.prompt else None
    if tokens is None:
        return None, "it has no tokens"
    kind = "tuned_" if is_tuned(system) else ""
    read, written = prices.get(f"{kind}input"), prices.get(f"{kind}output")
    if read is not None and written is not None:
        usd = (tokens.prompt * read.usd + tokens.completion * written.usd) / MILLION / system.n
        return Ramp(0.0, usd), ""
    if kind and "hour" in prices:
        endpoint = prices["hour"].usd * HOURS_PER_MONTH
        return Ramp(endpoint, 0.0), "at least: one endpoint, always on; how much it can answer was not measured"
    return None, f"no price for {'a tuned model' if kind else 'answers'}"


def trained_at(
    priced: Priced, tokens: int | None, run_usd: float | None, run_seconds: float | None
) -> dict[str, float]:
    """What the training cost or would have cost, by place; without those where it is not known.

    Here it is the whole run. Hosted it is `tokens`, those of all rows of all steps with their prompts, at the price of
    training. On a rented GPU it is the seconds of the run over the speed that the recipe assumes.
    """
    usd = {} if run_usd is None else {HERE: run_usd}
    for place in priced.places:
        prices, speed = priced.book.of(place), priced.settings.rented_speed.get(place)
        if "training" in prices and tokens is not None:
            usd[place] = tokens / MILLION * prices["training"].usd
        elif set(prices) == {"hour"} and speed is not None and run_seconds is not None:
            usd[place] = run_seconds / speed / 3600 * prices["hour"].usd
    return usd
