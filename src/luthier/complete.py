"""The whole job over a run's folder, once its rows are there: prove, measure the base, train, compare, report."""

from luthier.estimate import plan
from luthier.evaluate import measure_base, measure_tuned, question_of
from luthier.progress import Terminal
from luthier.recipe import Recipe
from luthier.report import Report, build_report, write_report
from luthier.run_folder import RunFolder
from luthier.stages import Data, open_run, prepare_training, train_stage, training_line


def complete(recipe: Recipe, folder: RunFolder, data: Data, progress: Terminal) -> Report:
    """Do every stage that is not done yet, and write the report.

    Raises:
        LuthierError: as each stage does; what was made is kept, and the same call goes on.
        KeyboardInterrupt: ctrl-C; the same.
    """
    opened = open_run(recipe, folder, data, progress)
    question = question_of(opened)  # what cannot be evaluated is said before hours of training
    progress.plan = dict(plan(opened))
    prepared = prepare_training(opened, progress)  # and what cannot be trained, before the baselines
    measure_base(opened, question, progress, prepared.base)
    trained = train_stage(prepared, progress)
    progress.say("  " + training_line(folder.read("training.json")))
    measure_tuned(opened, question, trained.injected, progress)
    report = build_report(folder.path)
    write_report(report, folder.path)
    return report
