"""Train only: check the data, prove the run, train; no baselines and no evaluation.

A run that was stopped goes on where it was when the same command is given again.

examples:
  luthier train recipe.toml --out runs/first
  luthier train recipe.toml --out runs/second --set optimizer.learning_rate=1e-4
  luthier train recipe.toml --out runs/third --remember --budget 30      and half an hour of remedies against forgetting
"""

import argparse

from luthier.errors import RecipeError

BUDGET_MINUTES = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `luthier train`."""
    from luthier.cli.run_arguments import add_run_arguments

    add_run_arguments(parser)
    parser.add_argument(
        "--remember",
        action="store_true",
        help="then try remedies against forgetting, and keep the training that does best (docs/forgetting.md)",
    )
    parser.add_argument(
        "--budget",
        type=float,
        metavar="MINUTES",
        help=f"for all remedies together (default: {BUDGET_MINUTES:g})",
    )


def run(args: argparse.Namespace) -> int:
    """Train, and print where the artifact is."""
    from luthier.cli.run_arguments import begin
    from luthier.data_stage import prepare_data
    from luthier.passages import is_wanted, require_readable, train_with_passages
    from luthier.remember import require_no_choice
    from luthier.retrievers import train as retrievers
    from luthier.stages import open_run, prepare_training, train_stage, training_line

    if args.budget is not None and not (args.remember and args.budget >= 0):
        raise RecipeError(f"--budget {args.budget:g}: expected minutes, 0 or more, beside --remember")
    if args.remember:
        return _remember(args)
    with begin(args) as (recipe, folder, progress):
        require_no_choice(folder)
        data = prepare_data(recipe, folder, progress)
        if retrievers.is_wanted(recipe):
            retrievers.train(recipe, folder, data, progress)
            progress.say(training_line(folder.read("training.json")))
            print(folder / "adapter")
            return 0
        require_readable(recipe, data)
        train_stage(prepare_training(open_run(recipe, folder, data, progress), progress), progress)
        progress.say(training_line(folder.read("training.json")))
        print(folder / "adapter")
        if is_wanted(recipe):
            print(train_with_passages(recipe, folder, data, progress).opened.folder / "adapter")
    return 0


def _remember(args: argparse.Namespace) -> int:
    """Train, try remedies, and print where the artifact and the plot of them are."""
    from luthier.cli.run_arguments import begin
    from luthier.data_stage import prepare_data
    from luthier.evaluate import question_of
    from luthier.remember import Plain, begin_search, remember
    from luthier.retrievers import train as retrievers
    from luthier.stages import open_run, prepare_training, train_stage, training_line

    with begin(args) as (recipe, folder, progress):
        if retrievers.is_wanted(recipe):
            raise RecipeError("--remember: an embedder or a reranker has no general ability that could be forgotten")
        begin_search(recipe, folder)
        opened = open_run(recipe, folder, prepare_data(recipe, folder, progress), progress)
        question = question_of(opened)
        trained = train_stage(prepare_training(opened, progress), progress)
        progress.say(training_line(folder.read("training.json")))
        plain = Plain.of(opened, question, trained, args.recipe)
        del opened, trained  # each candidate is opened by itself, and memory holds one model
        remember(plain, BUDGET_MINUTES if args.budget is None else args.budget, progress)
        print(folder / "remember.html")
        print(folder / "adapter")
    return 0
