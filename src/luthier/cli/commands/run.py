"""The whole job: check the data, measure the baselines, train, compare, and write the report.

A run that was stopped, by ctrl-C or by a crash, goes on where it was when the same command is given again.

examples:
  luthier run recipe.toml                                runs into runs/recipe
  luthier run recipe.toml --out runs/hot --set optimizer.learning_rate=1e-3
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `luthier run`."""
    from luthier.cli.run_arguments import add_run_arguments

    add_run_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Do every stage, and print the verdict and the path of the page."""
    from luthier.cli.commands.report import summary
    from luthier.cli.run_arguments import begin
    from luthier.estimate import plan
    from luthier.evaluate import measure_base, measure_tuned, question_of
    from luthier.remember import require_no_choice
    from luthier.report import build_report, write_report
    from luthier.stages import open_run, prepare_data, prepare_training, train_stage, training_line

    with begin(args) as (recipe, folder, progress):
        require_no_choice(folder)
        opened = open_run(recipe, folder, prepare_data(recipe, folder, progress), progress)
        question = question_of(opened)  # what cannot be evaluated is said before hours of training
        progress.plan = dict(plan(opened))
        prepared = prepare_training(opened, progress)  # and what cannot be trained, before the baselines
        base = measure_base(opened, question, progress, prepared.base)
        trained = train_stage(prepared, progress)
        progress.say("  " + training_line(folder.read("training.json")))
        measure_tuned(opened, question, trained.injected, progress, base)
        report = build_report(folder.path)
        print(summary(report, write_report(report, folder.path)[1]))
    return 0
