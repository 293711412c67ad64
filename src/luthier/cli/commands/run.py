"""The whole job: check the data, measure the baselines, train, compare, and write the report.

A run that was stopped, by ctrl-C or by a crash, goes on where it was when the same command is given again.

examples:
  luthier run recipe.toml                                runs into runs/recipe
  luthier run recipe.toml --out runs/hot --set optimizer.learning_rate=1e-3
  luthier run recipes/embedder.toml                      an embedder or reranker: trained, and retrieval compared
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
    from luthier.complete import complete
    from luthier.data_stage import prepare_data
    from luthier.remember import require_no_choice
    from luthier.retrievers import train as retrievers
    from luthier.retrievers.measure import measure
    from luthier.stages import training_line

    with begin(args) as (recipe, folder, progress):
        require_no_choice(folder)
        data = prepare_data(recipe, folder, progress)
        if retrievers.is_wanted(recipe):
            retrievers.train(recipe, folder, data, progress)
            progress.say(training_line(folder.read("training.json")))
            print(measure(recipe, folder, data, progress))
            return 0
        report = complete(recipe, folder, data, progress)
    print(summary(report, folder / "report.html"))
    return 0
