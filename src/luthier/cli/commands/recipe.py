"""Check a recipe and print it in full; or print the reference of all keys, or their JSON schema.

Printed recipes are TOML and read back to an equal recipe. Nothing is run and no data file is opened.
"""

import argparse
import json
from pathlib import Path

from luthier.errors import RecipeError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `luthier recipe` takes."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("recipe", nargs="?", type=Path, help="a recipe file to check and print")
    what.add_argument("--reference", action="store_true", help="print every key there is, as Markdown")
    what.add_argument("--schema", action="store_true", help="print the JSON schema of a recipe")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one key; repeatable")


def run(options: argparse.Namespace) -> int:
    """Print what was asked for.

    Raises:
        RecipeError: the recipe, or a `--set`, is wrong; or `--set` was given without a recipe.
    """
    from luthier import recipe as recipes  # here, so that --help waits for nothing
    from luthier.cli.reference import reference, schema
    from luthier.config import write_toml

    if options.recipe is None and options.set:
        raise RecipeError("--set changes a recipe: name the recipe file too")
    if options.reference:
        print(reference(), end="")
    elif options.schema:
        print(json.dumps(schema(), indent=2, ensure_ascii=False))
    else:
        recipe = recipes.load(options.recipe, options.set)
        print(f"# {options.recipe} with every default; sha256 {recipe.hash()}")
        print(write_toml(recipe.dump()), end="")
    return 0
