"""Search settings of a recipe on its validation rows; count luck with fresh seeds; run the winner and test it once.

Bad trials are ended early. The test rows are asked once, by the winner in OUT/best. A search that was stopped, by
ctrl-C or by a crash, goes on where it was when the same command is given again; more --trials go on, too.

examples:
  luthier search recipe.toml --try optimizer.learning_rate=1e-4..1e-2:log --try adapter.rank=4,8,16
  luthier search recipe.toml --try adapter.type=lora,dora --try training.epochs=1..4 --trials 30 --seeds 5
  luthier search recipe.toml --space space.toml --by metric --prune hyperband

space.toml holds the same as tables:
  optimizer.learning_rate = { low = 1e-4, high = 1e-2, log = true }
  adapter.rank = [4, 8, 16]
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.errors import RecipeError

if TYPE_CHECKING:
    from luthier.config import Tree
    from luthier.search.study import Plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `luthier search`."""
    from luthier.cli.run_arguments import add_recipe_arguments

    add_recipe_arguments(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="the search's folder (default: runs/<recipe>-search)")
    parser.add_argument(
        "--try",
        action="append",
        default=[],
        dest="tries",
        metavar="KEY=SPEC",
        help="LOW..HIGH, LOW..HIGH:log, or A,B,C",
    )
    parser.add_argument("--space", type=Path, metavar="FILE", help="a TOML file of keys to try")
    parser.add_argument("--trials", type=int, default=20, metavar="N", help="settings that are tried (default 20)")
    parser.add_argument(
        "--seeds", type=int, default=3, metavar="N", help="fresh seeds on which the advantage is measured (default 3)"
    )
    parser.add_argument(
        "--by", choices=("loss", "metric"), default="loss", help="validation loss, or the metric on validation rows"
    )
    parser.add_argument(
        "--prune", choices=("median", "hyperband", "none"), default="median", help="what ends bad trials early"
    )


def run(args: argparse.Namespace) -> int:
    """Search, run the winner, and print the trials, the luck and the winner's verdict.

    Raises:
        RecipeError: the space is empty or wrong, the folder holds another search, or Optuna is not installed.
        LuthierError: the recipe as given cannot be trained, or a stage of the winner's run failed.
    """
    from importlib.util import find_spec

    from luthier.config import build, override, read_toml
    from luthier.models.catalog import source_of
    from luthier.models.load import choose_device
    from luthier.recipe import Recipe, absolute_paths
    from luthier.search.space import ordered, parse_try, read_space, require_space

    if find_spec("optuna") is None:
        raise RecipeError("a search needs Optuna: pip install 'luthier[hpo]'")
    if args.trials < 1 or args.seeds < 0:
        raise RecipeError(f"--trials {args.trials} --seeds {args.seeds}: expected at least 1 trial and 0 seeds")
    home = args.recipe.resolve().parent
    tree = absolute_paths(override(read_toml(args.recipe), args.set), home)
    recipe = build(Recipe, tree)
    given = read_space(args.space) if args.space else []
    dimensions = ordered([*given, *map(parse_try, args.tries)])
    require_space(tree, dimensions, args.by == "loss")
    source_of(recipe.model.name)
    choose_device(recipe.model.device)
    from luthier.search.study import Plan

    plan = Plan(dimensions, args.trials, args.seeds, args.prune)
    return _search(tree, home, args.out or Path("runs") / f"{args.recipe.stem}-search", plan, args.by == "loss")


def _search(tree: "Tree", home: Path, out: Path, plan: "Plan", by_loss: bool) -> int:
    from luthier.cli.commands.report import summary
    from luthier.comparison import require_same_rows
    from luthier.complete import complete
    from luthier.config import build, write_toml
    from luthier.data_stage import prepare_data
    from luthier.progress import Terminal
    from luthier.recipe import Recipe
    from luthier.report.text import visible
    from luthier.run_folder import RunFolder
    from luthier.search.study import (
        best_folder,
        is_open,
        open_search,
        outcome_lines,
        require_rows,
        search,
        winner_tree,
    )
    from luthier.search.trial import prepare_ground
    from luthier.tracking import require_answers, require_trackers

    folder, progress = RunFolder(out, listed=False), Terminal()
    with folder.locked():
        given = build(Recipe, tree)
        if is_open(folder):  # one that goes on waits for no server
            require_trackers(given)
        else:
            require_answers(given, folder)
        search_id = open_search(folder, plan.dump(given, by_loss), progress.say)
        ground = prepare_ground(tree, home, folder, search_id, by_loss, progress)
        require_rows(folder)
        outcome = search(ground, plan, progress)
        print(visible("\n".join(outcome_lines(outcome, ground))), flush=True)
        won = winner_tree(ground, plan, outcome)
        recipe, best = build(Recipe, won), RunFolder(best_folder(out))
        with best.locked():
            best.begin(recipe, write_toml(won), home, ground.parent("winner of"))
            best.record(held=ground.held)
            data = prepare_data(recipe, best, progress)
            require_same_rows(out / "rows", best.path)
            report = complete(recipe, best, data, progress)
    print(summary(report, best / "report.html"))
    return 0
