"""Money before a run: the same prices as after it, for tokens and seconds that were counted ahead.

A line for every entry of the price book that could train the rows, and for those that the recipe compares with.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from luthier.prices import Book, Machine
from luthier.prices.book import hosted_names
from luthier.recipe import CostSettings
from luthier.report.schema import System
from luthier.report.text import usd
from luthier.report.ways import Priced, Way, trained_at, ways_of


@dataclass(frozen=True)
class Offer:
    """What one entry of the book would ask."""

    name: str
    training_usd: float | None
    """None: it does not train, or for how long it would is not known."""
    usd_per_thousand: Mapping[str, float]
    """A thousand answers at the recipe's volume, by system; without those that have no price there."""
    age: str
    """Of its oldest price."""
    old: bool
    notes: tuple[str, ...]

    def line(self) -> str:
        """The same as text."""
        training = "no training" if self.training_usd is None else f"training {usd(self.training_usd)}"
        answers = ", ".join(f"{system} {usd(amount)}" for system, amount in self.usd_per_thousand.items())
        parts = [training, f"1,000 answers: {answers}" if answers else "no price for answers"]
        mark = "OLD, look it up again: " if self.old else ""
        return f"{self.name}: {'; '.join(parts)} ({'; '.join([mark + self.age, *self.notes])})"


def offers(
    settings: CostSettings,
    book: Book,
    machine: Machine,
    systems: Sequence[System],
    work: tuple[int, float],
    today: date,
) -> list[Offer]:
    """Every offer, those that the recipe names first.

    `work` is the tokens of all rows of all steps, and the seconds of the whole run here.
    """
    named = hosted_names(settings, book)
    others = [name for name in book.names() if name not in named and book.find(name, "training") is not None]
    priced = Priced(settings, book, machine, [*named, *others])
    trained = trained_at(priced, work[0], None, work[1])
    ways = [way for system in systems if system.tokens for way in ways_of(system, priced, trained)]
    return [
        _offer(name, priced, [way for way in ways if way.place == name], trained.get(name), today)
        for name in priced.places
    ]


def _offer(name: str, priced: Priced, ways: Sequence[Way], training: float | None, today: date) -> Offer:
    prices = list(priced.book.of(name).values())
    oldest = min(prices, key=lambda price: price.read or date.max)
    volume = priced.settings.answers_per_month
    notes = [price.note for price in prices if price.note] + [way.note for way in ways if way.note]
    return Offer(
        name=name,
        training_usd=training,
        usd_per_thousand={way.system: way.month.usd(volume) / volume * 1000 for way in ways if way.month is not None},
        age=oldest.age(today),
        old=any(price.is_old(today) for price in prices),
        notes=tuple(dict.fromkeys(notes)),
    )
