"""The price book: who asks how much for what, read on which day, and where that stands.

A book is a TOML file of `[[prices]]` entries. `prices.toml` beside this file ships; a user's own (`cost.prices`) adds
entries to it, and a price that both have is the user's. A price is looked up by the name of its entry,
`provider/model`, and by what is paid for:

    training                    USD for a million tokens of all rows of all epochs, prompts included
    input, output               USD for a million tokens read and written by the model as it is offered
    tuned_input, tuned_output   the same of a model that the user fine-tuned there
    hour                        USD for an hour of one rented GPU, or of the endpoint that serves a model tuned there
    kwh                         USD for a kilowatt hour

A price without the day on which it was read, or without a source, is refused: it could not be checked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field

from luthier.config import Settings, Tree, build, did_you_mean, read_toml
from luthier.errors import RecipeError
from luthier.recipe import CostSettings

What = Literal["training", "input", "output", "tuned_input", "tuned_output", "hour", "kwh"]

UNITS: Mapping[str, str] = {
    "training": "per million tokens",
    "input": "per million tokens",
    "output": "per million tokens",
    "tuned_input": "per million tokens",
    "tuned_output": "per million tokens",
    "hour": "an hour",
    "kwh": "a kWh",
}
SHIPPED = Path(__file__).with_name("prices.toml")
OWN_HOSTED = "recipe"
"""The entry that `cost.hosted_*_usd_per_million_tokens` make."""
OLD_DAYS = 365
"""A price read longer ago than this is warned of."""
_NAME = r"^[a-z0-9][a-z0-9._-]*$"


class TokenPrices(Settings):
    """USD per million tokens; what is absent is not sold, or not known."""

    training: float | None = Field(None, ge=0)
    """Of all rows of all epochs, prompts included."""
    input: float | None = Field(None, ge=0)
    """Read by the model as it is offered."""
    output: float | None = Field(None, ge=0)
    """Written by it."""
    tuned_input: float | None = Field(None, ge=0)
    """Read by a model that was fine-tuned there."""
    tuned_output: float | None = Field(None, ge=0)
    """Written by it."""


class Entry(Settings):
    """One `[[prices]]` of a book: what one page said on one day."""

    provider: str = Field(pattern=_NAME)
    """Who asks, in lower case."""
    model: str = Field(pattern=_NAME)
    """What for: a model, a GPU, a tariff."""
    read: date
    """The day on which the source said so."""
    source: str = Field(min_length=1)
    """Where: an address, or the name of a document."""
    note: str = ""
    """What a reader must know of it."""
    usd_per_million_tokens: TokenPrices = TokenPrices()
    """Prices by token."""
    usd_per_hour: float | None = Field(None, ge=0)
    """One rented GPU, or the endpoint that a model tuned there needs."""
    usd_per_kwh: float | None = Field(None, ge=0)
    """Electricity."""

    @property
    def name(self) -> str:
        """`provider/model`."""
        return f"{self.provider}/{self.model}"

    def amounts(self) -> dict[str, float]:
        """USD by what is paid for."""
        token_prices = self.usd_per_million_tokens
        given = {
            "training": token_prices.training,
            "input": token_prices.input,
            "output": token_prices.output,
            "tuned_input": token_prices.tuned_input,
            "tuned_output": token_prices.tuned_output,
            "hour": self.usd_per_hour,
            "kwh": self.usd_per_kwh,
        }
        return {what: usd for what, usd in given.items() if usd is not None}


@dataclass(frozen=True)
class Price:
    """One amount of the book."""

    name: str
    what: str
    usd: float
    read: date | None
    """None: the recipe says the price, and no day."""
    source: str
    note: str = ""

    @property
    def unit(self) -> str:
        """Such as `per million tokens`."""
        return UNITS[self.what]

    def is_old(self, today: date) -> bool:
        """Read more than a year ago."""
        return self.read is not None and (today - self.read).days > OLD_DAYS

    def age(self, today: date) -> str:
        """`read 2026-05, 6 months old`; months are whole ones."""
        if self.read is None:
            return "undated: from the recipe"
        months = (today.year - self.read.year) * 12 + today.month - self.read.month - (today.day < self.read.day)
        old = "this month" if months <= 0 else "a month old" if months == 1 else f"{months} months old"
        return f"read {self.read:%Y-%m}, {old}"


class Book:
    """Prices by entry and by what is paid for."""

    def __init__(self, prices: Mapping[tuple[str, str], Price], place: str) -> None:
        self._prices = prices
        self._place = place

    def names(self) -> list[str]:
        """Every entry, sorted."""
        return sorted({name for name, _ in self._prices})

    def find(self, name: str, what: What) -> Price | None:
        """A price, or None where the entry does not have it."""
        return self._prices.get((name, what))

    def of(self, name: str) -> dict[str, Price]:
        """Every price of an entry, by what is paid for."""
        return {what: self._prices[name, what] for what in UNITS if (name, what) in self._prices}

    def require(self, name: str, key: str, *whats: What) -> None:
        """Check that the entry `name`, which the recipe's `key` gives, has one of these prices; any, if none is named.

        Raises:
            RecipeError: no such entry, or it has none of them.
        """
        if name not in self.names():
            known = did_you_mean(name, self.names())
            raise RecipeError(f"{key} = {name!r}: no such entry in {self._place}{known}")
        if whats and not any(self.find(name, what) for what in whats):
            has = ", ".join(self.of(name))
            raise RecipeError(
                f"{key} = {name!r}: expected an entry with a price for {' or '.join(whats)}; it has {has}"
            )


def read_book(path: Path, today: date | None = None) -> dict[tuple[str, str], Price]:
    """The prices of one file.

    Raises:
        RecipeError: the file is not there or no TOML; an entry has an unknown key, a price below zero, a day in the
            future, or nothing priced; or a price stands twice. The message names file, entry and key.
    """
    if not path.is_file():
        raise RecipeError(f"{path}: no such file; cost.prices is a TOML file of [[prices]], see docs/cost.md")
    tree = read_toml(path)
    entries = tree.pop("prices", None)
    if tree or not isinstance(entries, list):
        found = ", ".join(map(repr, tree)) or "none"
        raise RecipeError(f"{path}: a price book is a list of [[prices]] and nothing else; other keys found: {found}")
    prices: dict[tuple[str, str], Price] = {}
    for number, values in enumerate(entries, start=1):
        place = f"{path}: entry {number}"
        entry = _entry(values, place, today or date.today())
        for what, usd in entry.amounts().items():
            if (entry.name, what) in prices:
                raise RecipeError(f"{place} ({entry.name}): the price for {what} stands in this book twice; keep one")
            prices[entry.name, what] = Price(entry.name, what, usd, entry.read, entry.source, entry.note)
    return prices


def _entry(values: Tree, place: str, today: date) -> Entry:
    if not isinstance(values, Mapping):
        raise RecipeError(f"{place}: expected a table of keys, such as [[prices]], found {values!r}")
    place += f" ({values.get('provider', '?')}/{values.get('model', '?')})"
    entry = build(Entry, values, [place])
    if entry.read > today:
        raise RecipeError(
            f"{place}: read = {entry.read} lies in the future (today is {today}); give the day it was read"
        )
    if not entry.amounts():
        raise RecipeError(f"{place}: nothing is priced; give usd_per_million_tokens, usd_per_hour or usd_per_kwh")
    return entry


@cache
def _shipped() -> Mapping[tuple[str, str], Price]:
    # the day is not held against the clock: a book that ships is older than the program that reads it
    return read_book(SHIPPED, date.max)


def open_book(settings: CostSettings, own: Path | None = None) -> Book:
    """The book that ships, with the user's own over it, and the prices that stand in the recipe itself.

    `own` is read in place of `cost.prices`: the copy in a run's folder.

    Raises:
        RecipeError: the user's book cannot be used.
    """
    path = own if own is not None else Path(settings.prices) if settings.prices is not None else None
    prices = {**_shipped(), **(read_book(path) if path is not None else {}), **_of_recipe(settings)}
    return Book(prices, "the price book" if path is None else f"the price book and {path}")


def _of_recipe(settings: CostSettings) -> dict[tuple[str, str], Price]:
    """The one hosted model that the recipe prices itself: tuned or not, its tokens cost the same."""
    read, written = settings.hosted_input_usd_per_million_tokens, settings.hosted_output_usd_per_million_tokens
    given = {
        "training": settings.hosted_training_usd_per_million_tokens,
        "input": read,
        "output": written,
        "tuned_input": read,
        "tuned_output": written,
    }
    return {
        (OWN_HOSTED, what): Price(OWN_HOSTED, what, usd, None, "the recipe")
        for what, usd in given.items()
        if usd is not None
    }


def hosted_names(settings: CostSettings, book: Book) -> Sequence[str]:
    """The entries that answers and training are priced at: those of `cost.hosted`, and the recipe's own."""
    own = [OWN_HOSTED] if OWN_HOSTED in book.names() else []
    return tuple(dict.fromkeys([*settings.hosted, *own]))


def require_prices(settings: CostSettings) -> None:
    """Check that every price that the recipe names is there, before anything long begins.

    Raises:
        RecipeError: the user's book cannot be used, or an entry that the recipe names is not in it.
    """
    book = open_book(settings)
    for name in settings.hosted:
        book.require(name, "cost.hosted", "training", "input", "output", "tuned_input", "tuned_output", "hour")
    for name in settings.rented_speed:
        book.require(name, "cost.rented_speed", "hour")
        if name not in settings.hosted:
            raise RecipeError(f"cost.rented_speed.{name!r}: it is not listed in cost.hosted; add it there")
    book.require(settings.machine.energy, "cost.machine.energy", "kwh")
    if settings.machine.price is not None:
        book.require(settings.machine.price, "cost.machine.price", "hour")
