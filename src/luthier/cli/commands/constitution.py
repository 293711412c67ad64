"""Constitutional AI: a critic revises replies by principles and compares them, and the model learns from both.

The recipe has a table [constitution] (docs/constitution.md). A run that was stopped goes on where it was when the same
command is given again; every critique, revision and comparison is a record that the report shows.

examples:
  luthier constitution recipes/constitution.toml --out runs/constitution
  luthier constitution --show > mine.toml          the principles that ship, to be changed
"""

import argparse

from luthier.errors import RecipeError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `luthier constitution`."""
    from luthier.cli.run_arguments import add_run_arguments

    add_run_arguments(parser, recipe_needed=False)
    parser.add_argument("--show", action="store_true", help="print the principles that ship, and do nothing else")


def run(args: argparse.Namespace) -> int:
    """Do every stage, and print what came of it and the path of the page.

    Raises:
        RecipeError: neither a recipe nor `--show` is given, or both.
    """
    if args.show == (args.recipe is not None):
        raise RecipeError("luthier constitution: expected a recipe, or --show alone")
    from luthier.constitution import run_constitution, shipped

    if args.show:
        print(shipped().read_text(encoding="utf-8"), end="")
        return 0
    from luthier.cli.run_arguments import begin
    from luthier.constitution import require_fit
    from luthier.recipe import load

    require_fit(load(args.recipe, args.set))
    with begin(args) as (recipe, folder, progress):
        path = run_constitution(recipe, folder, progress)
        print(folder.read("constitution.json")["sentence"])
    print(path)
    return 0
