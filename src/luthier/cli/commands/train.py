"""Train only: check the data, prove the run, train; no baselines and no evaluation.

A run that was stopped goes on where it was when the same command is given again.

examples:
  luthier train recipe.toml --out runs/first
  luthier train recipe.toml --out runs/second --set optimizer.learning_rate=1e-4
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `luthier train`."""
    from luthier.cli.run_arguments import add_run_arguments

    add_run_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Train, and print where the artifact is."""
    from luthier.cli.run_arguments import begin
    from luthier.passages import is_wanted, train_with_passages
    from luthier.stages import open_run, prepare_data, prepare_training, train_stage, training_line

    with begin(args) as (recipe, folder, progress):
        data = prepare_data(recipe, folder, progress)
        train_stage(prepare_training(open_run(recipe, folder, data, progress), progress), progress)
        progress.say(training_line(folder.read("training.json")))
        print(folder / "adapter")
        if is_wanted(recipe):
            print(train_with_passages(recipe, folder, data, progress).opened.folder / "adapter")
    return 0
