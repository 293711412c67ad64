"""What the verbs that work on a recipe and a run's folder have in common."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from luthier.progress import Terminal
    from luthier.recipe import Recipe
    from luthier.run_folder import RunFolder


def add_run_arguments(parser: argparse.ArgumentParser, recipe_needed: bool = True) -> None:
    """RECIPE, --set and --out."""
    add_recipe_arguments(parser, recipe_needed)
    parser.add_argument("--out", type=Path, metavar="DIR", help="the run's folder (default: runs/<name of the recipe>)")


def add_recipe_arguments(parser: argparse.ArgumentParser, recipe_needed: bool = True) -> None:
    """RECIPE and --set."""
    count = None if recipe_needed else "?"
    parser.add_argument(
        "recipe", type=Path, metavar="RECIPE", nargs=count, help="a recipe file; `luthier init` writes one"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting, such as training.steps=100"
    )


@contextmanager
def begin(args: argparse.Namespace) -> "Iterator[tuple[Recipe, RunFolder, Terminal]]":
    """Read the recipe, open and lock the run's folder; a wrong name is told before anything is read or written.

    Raises:
        RecipeError: a setting is wrong, or the folder belongs to another recipe.
        ModelError: there can be no such model or device.
        TrackingError: a tracker lacks something, or does not answer.
        StorageError: the folder cannot be made.
    """
    from luthier.models.catalog import source_of
    from luthier.models.load import choose_device
    from luthier.progress import Terminal
    from luthier.recipe import load
    from luthier.run_folder import RunFolder
    from luthier.tracking import require_answers

    recipe = load(args.recipe, args.set)
    source_of(recipe.model.name)
    choose_device(recipe.model.device)
    folder = RunFolder(args.out or Path("runs") / args.recipe.stem)
    with folder.locked():
        folder.open(recipe, args.recipe)
        require_answers(recipe, folder)
        yield recipe, folder, Terminal()
