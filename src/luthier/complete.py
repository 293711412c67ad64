"""The whole job over a run's folder, once its rows are there: prove, measure the base, train, compare, report."""

from luthier.data_stage import Data
from luthier.estimate import plan
from luthier.evaluate import Question, measure_base, measure_tuned, question_of
from luthier.evaluation.harness import Evaluation
from luthier.passages import is_wanted, measure_with_passages, planned, train_with_passages
from luthier.progress import Terminal
from luthier.recipe import Recipe
from luthier.report import Report, build_report, figures, write_report
from luthier.run_folder import RunFolder
from luthier.stages import open_run, prepare_training, train_stage, training_line
from luthier.tracking import tracked


def complete(recipe: Recipe, folder: RunFolder, data: Data, progress: Terminal) -> Report:
    """Do every stage that is not done yet, and write the report.

    Raises:
        LuthierError: as each stage does; what was made is kept, and the same call goes on.
        KeyboardInterrupt: ctrl-C; the same.
    """
    question, measured = _train_on_rows(recipe, folder, data, progress)
    if is_wanted(recipe):
        second = train_with_passages(recipe, folder, data, progress)
        measure_with_passages(second, question, measured, folder, progress)
    report = build_report(folder.path)
    page = write_report(report, folder.path)[1]
    with tracked(recipe, folder, progress) as tracking:
        tracking.conclude(figures(report), {"verdict": report.verdict.sentence, "report": str(page.resolve())})
    return report


def _train_on_rows(recipe: Recipe, folder: RunFolder, data: Data, progress: Terminal) -> tuple[Question, Evaluation]:
    """The baselines, the training on the rows as they are, and what came of it; the model is let go at the end."""
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
