"""The whole job: check the data, measure the baselines, train, compare, and write the report.

A run that was stopped, by ctrl-C or by a crash, goes on where it was when the same command is given again.

examples:
  luthier run recipe.toml                                runs into runs/recipe
  luthier run recipe.toml --out runs/hot --set optimizer.learning_rate=1e-3
"""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from luthier.evaluate import Question
    from luthier.evaluation.harness import Evaluation
    from luthier.progress import Terminal
    from luthier.recipe import Recipe
    from luthier.run_folder import RunFolder
    from luthier.stages import Data


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `luthier run`."""
    from luthier.cli.run_arguments import add_run_arguments

    add_run_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Do every stage, and print the verdict and the path of the page."""
    from luthier.cli.commands.report import summary
    from luthier.cli.run_arguments import begin
    from luthier.passages import is_wanted, measure_with_passages, train_with_passages
    from luthier.report import build_report, write_report
    from luthier.stages import prepare_data

    with begin(args) as (recipe, folder, progress):
        data = prepare_data(recipe, folder, progress)
        question, measured = _train_on_rows(recipe, folder, data, progress)
        if is_wanted(recipe):
            second = train_with_passages(recipe, folder, data, progress)
            measure_with_passages(second, question, measured, folder, progress)
        report = build_report(folder.path)
        print(summary(report, write_report(report, folder.path)[1]))
    return 0


def _train_on_rows(
    recipe: "Recipe", folder: "RunFolder", data: "Data", progress: "Terminal"
) -> "tuple[Question, Evaluation]":
    """The baselines, the training on the rows as they are, and what came of it; the model is let go at the end."""
    from luthier.estimate import plan
    from luthier.evaluate import measure_base, measure_tuned, question_of
    from luthier.passages import is_wanted, planned
    from luthier.stages import open_run, prepare_training, train_stage, training_line

    opened = open_run(recipe, folder, data, progress)
    question = question_of(opened)  # what cannot be evaluated is said before hours of training
    progress.plan = dict(plan(opened))
    if is_wanted(recipe):
        progress.plan |= planned(progress.plan)
    prepared = prepare_training(opened, progress)  # and what cannot be trained, before the baselines
    base = measure_base(opened, question, progress, prepared.base)
    trained = train_stage(prepared, progress)
    progress.say("  " + training_line(folder.read("training.json")))
    return question, measure_tuned(opened, question, trained.injected, progress, base)
