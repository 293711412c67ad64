"""The learning curve of a run: the same training on fewer of its rows, and what more rows would bring.

Each smaller training takes as many steps as the run itself planned, sees its rows more often instead, and keeps its
best checkpoint: with as many passes it would take fewer steps, and what looks like a lack of rows would be a lack of
steps. Rows are left out in whole groups, by a hash, so that a smaller set is part of each larger one; shares that come
to the same rows are one training. All answer the run's test rows, nothing is chosen on them, and the run's own answers
are the last point.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from luthier import assemble
from luthier.data.split import group_keys
from luthier.data_stage import Data, prepare_data
from luthier.errors import EvaluationError
from luthier.evaluate import REMEMBER, Question, measure_fine_tuned, question_of, reopen
from luthier.evaluation.learning_curve import Curve, Size, fit_curve, require_sizes
from luthier.evaluation.metrics.base import Array
from luthier.evaluation.significance import number_groups
from luthier.examples import Example
from luthier.progress import Progress, Within
from luthier.recipe import Recipe
from luthier.run_folder import RunFolder, recipe_of
from luthier.settling import settled
from luthier.stages import open_run, prepare_training, train_stage

FOLDER, FILE = "curve", "curve.json"


def learn_curve(folder: RunFolder, shares: Sequence[float], more_rows: Sequence[int], progress: Progress) -> Curve:
    """Train on each share of a run's rows, and write `curve.json`; what was trained before is used again.

    Args:
        folder: a trained run, locked.
        shares: of the training rows, between 0 and 1; their order does not matter.
        more_rows: of how many further rows to speak.
        progress: told what comes out.

    Raises:
        EvaluationError: the run has no trained model, a share leaves no rows or all of them, or the shares come to too
            few different numbers of rows.
    """
    recipe = recipe_of(folder.path)
    steps = _steps_of(folder)
    data = prepare_data(recipe, folder, progress)
    recipe = settled(recipe, data.train)  # fewer rows may not have all labels
    parts = _parts(data.train, shares, recipe.seed, progress)
    require_sizes([*map(len, parts), len(data.train)])  # before anything is trained
    question, statistics = _of_the_run(folder, recipe, data, progress)
    sizes = []
    for part in parts:
        within = Within(progress, f"{len(part):,} rows")
        smaller = replace(data, train=part)
        sizes.append(Size(len(part), _trained_on(smaller, folder, recipe, steps, question, within)))
    sizes.append(Size(len(data.train), statistics))
    metric, groups_N = question.metrics[question.primary], number_groups(group_keys(question.test))
    confidence = recipe.evaluation.confidence
    curve = fit_curve(question.primary, metric, sizes, groups_N, more_rows, confidence, recipe.seed)
    folder.write(FILE, curve.dump())
    return curve


def _parts(examples: Sequence[Example], shares: Sequence[float], seed: int, progress: Progress) -> list[list[Example]]:
    """The different parts that the shares come to, the smallest first.

    Raises:
        EvaluationError: one is no row, or all of them.
    """
    ascending = sorted(set(shares))
    by_rows = {len(part): part for share in ascending for part in [_part(examples, share, seed)]}
    if len(by_rows) < len(ascending):
        progress.say(
            f"  {len(ascending)} shares come to {len(by_rows)} different numbers of rows, since whole groups of rows "
            "are left out; the same rows are trained on once"
        )
    return list(by_rows.values())


def _part(examples: Sequence[Example], share: float, seed: int) -> list[Example]:
    """About this share of the rows, whole groups of them, in their order; a smaller share is part of a larger one.

    Raises:
        EvaluationError: that is no row, or all of them.
    """
    keys = group_keys(examples)
    order = sorted(set(keys), key=lambda key: hashlib.sha256(f"{seed} {key}".encode()).digest())
    rows_of = {key: 0 for key in order}
    for key in keys:
        rows_of[key] += 1
    taken: set[str] = set()
    count = 0
    for key in order:
        if count >= round(share * len(examples)):
            break
        taken.add(key)
        count += rows_of[key]
    if not 0 < count < len(examples):
        raise EvaluationError(
            f"a share of {share:g} of the {len(examples):,} training rows is {count:,} rows; give shares between 0 and "
            "1 that leave some rows and leave some out"
        )
    return [example for example, key in zip(examples, keys, strict=True) if key in taken]


def _steps_of(folder: RunFolder) -> int:
    """How many steps the run planned, replayed rows and all.

    Raises:
        EvaluationError: it has no trained model.
    """
    training = folder.read("training.json")
    if training is None or not (folder / "adapter").is_dir():
        raise EvaluationError(f"{folder.path} has no trained model, whose training could be repeated: `luthier run`")
    return int(training["planned_steps"])


def _of_the_run(folder: RunFolder, recipe: Recipe, data: Data, progress: Progress) -> tuple[Question, Array]:
    """What the run asks its systems, and how its own trained model answered."""
    if (folder / REMEMBER).is_file():
        raise EvaluationError(
            f"{folder.path}: `luthier train --remember` put another training in place than the recipe's, which "
            "fewer rows could not be compared with; run the recipe in a folder of its own"
        )
    opened = reopen(folder, recipe, data, progress)
    assemble.require_same_base(assemble.artifact_record(folder / "adapter"), opened.loaded)
    injected = assemble.restore(opened.recipe, opened.loaded.model, folder / "adapter")
    question = question_of(opened)
    return question, _primary(measure_fine_tuned(opened, question, injected, progress).statistics, question)


def _trained_on(
    data: Data, folder: RunFolder, recipe: Recipe, steps: int, question: Question, progress: Progress
) -> Array:
    """Statistics of the primary metric of a training on fewer rows, with as many steps as on the whole."""
    smaller = recipe.model_copy(update={"training": recipe.training.model_copy(update={"steps": steps})})
    inner = RunFolder(folder / FOLDER / f"{len(data.train)}", listed=False)
    inner.open(smaller, folder / "recipe.toml")
    replay = folder.read("data/split.json").get("replay", {})  # beside which the training notes what it replays
    inner.write("data/split.json", {"train": len(data.train), "replay": replay})
    opened = open_run(smaller, inner, data, progress)
    run = train_stage(prepare_training(opened, progress), progress)
    return _primary(measure_fine_tuned(opened, question, run.injected, progress).statistics, question)


def _primary(statistics: dict[str, Array], question: Question) -> Array:
    if question.primary not in statistics:
        raise EvaluationError(f"{question.primary} was not measured for the trained model")
    return statistics[question.primary]
