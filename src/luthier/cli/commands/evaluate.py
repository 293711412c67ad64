"""Measure a run's systems again: what is on disk and still true is kept.

example:
  luthier evaluate runs/demo
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `luthier evaluate`."""
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder, trained or not")


def run(args: argparse.Namespace) -> int:
    """Evaluate the baselines and, if the run has been trained, the trained model; print where the table is."""
    from luthier import assemble
    from luthier.data_stage import prepare_data
    from luthier.evaluate import measure_base, measure_tuned, question_of, reopen
    from luthier.passages import is_wanted, measure_with_passages, reopen_with_passages
    from luthier.progress import Terminal
    from luthier.run_folder import RunFolder, recipe_of

    folder, progress = RunFolder(args.run), Terminal()
    recipe = recipe_of(args.run)
    with folder.locked():
        data = prepare_data(recipe, folder, progress)
        opened = reopen(folder, recipe, data, progress)
        question = question_of(opened)
        measured = measure_base(opened, question, progress)
        if (folder / "adapter").is_dir():
            assemble.require_same_base(assemble.artifact_record(folder / "adapter"), opened.loaded)
            injected = assemble.restore(opened.recipe, opened.loaded.model, folder / "adapter")
            measured = measure_tuned(opened, question, injected, progress, measured)
            del opened, injected  # its memory is needed for the second training's model
            second = reopen_with_passages(recipe, folder, data, progress) if is_wanted(recipe) else None
            if second is not None:
                measure_with_passages(second, question, measured, folder, progress)
            elif is_wanted(recipe):
                progress.say("  not trained on passages yet: `luthier train` or `luthier run` does that")
        else:
            progress.say("  not trained yet: `luthier train` or `luthier run` does that")
    print(folder / "evaluation.json")
    return 0
