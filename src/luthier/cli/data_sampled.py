"""What `luthier data preferences` and `luthier data replies` have in common: a recipe is asked, and rows come of it."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from luthier.progress import Progress
    from luthier.recipe import Recipe
    from luthier.run_folder import RunFolder

Choices = TypeVar("Choices")


class Fate(Protocol):
    """What became of a row."""

    def values(self) -> dict[str, Any]:
        """As a report has it."""


class Outcome(Protocol):
    """What came of all rows."""

    @property
    def unseen(self) -> Mapping[str, int]:
        """Rows by split that nobody was asked."""

    @property
    def fates(self) -> Sequence[Fate]:
        """In the order of the rows."""

    def reasons(self) -> dict[str, int]:
        """How often nothing was made, by the reason."""


Made = TypeVar("Made", bound=Outcome)


def made(
    args: argparse.Namespace,
    choices: Choices,
    require_fit: Callable[["Recipe", Choices], object],
    make: Callable[["Recipe", "RunFolder", Choices, "Progress"], Made],
) -> Made:
    """What `make` makes of the recipe, in a folder of its own; every row's fate goes to `--report`.

    Raises:
        DataError: `--report` is of no ending that figures have.
        LuthierError: as `require_fit` and `make`.
    """
    from luthier.cli.data_quality import require_ending, require_places, write_figures
    from luthier.models.catalog import source_of
    from luthier.models.load import choose_device
    from luthier.progress import Terminal
    from luthier.recipe import load
    from luthier.run_folder import RunFolder

    require_places(args.file, {"--report": args.report})
    require_ending(args.report)
    recipe = load(args.file, args.set or ())
    require_fit(recipe, choices)
    source_of(recipe.model.name)
    choose_device(recipe.model.device)
    folder = RunFolder(args.out or Path("runs") / f"{args.file.stem}-{args.example}", listed=False)
    with folder.locked():
        folder.open(recipe, args.file)
        outcome = make(recipe, folder, choices, Terminal())
    if args.report is not None:
        write_figures(args.report, [fate.values() for fate in outcome.fates])
    return outcome


def without(outcome: Outcome, what: str) -> list[str]:
    """Lines that say why rows gave none."""
    return [f"  {count:,} without a {what}: {reason}" for reason, count in outcome.reasons().items()]


def unseen(outcome: Outcome) -> str:
    """The rows that nobody was asked."""
    return " and ".join(f"{count:,} {split}" for split, count in outcome.unseen.items())
