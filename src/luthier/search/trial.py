"""One training of a search, in a run's folder of its own: the shared rows, the base read anew, the value it reaches.

The base is read anew for each trial, because an adapter may write into it. Rows, their tokens and the proofs over them
are shared; what the gates prove on a model, they prove once for each type of adapter, and again for the winner.
"""

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from luthier import assemble, registry
from luthier.config import Tree, build, write_toml
from luthier.data.source import Unit
from luthier.data_stage import Data, prepare_data
from luthier.engine import kept_reference
from luthier.engine.loop import Step
from luthier.engine.run import Run
from luthier.errors import LuthierError, ServiceError, StorageError
from luthier.evaluate import context_of, question_of
from luthier.evaluation.systems.base import System, prediction
from luthier.progress import Progress
from luthier.recipe import SYSTEMS, Recipe
from luthier.report.folder import read_lines
from luthier.run_folder import RunFolder
from luthier.run_registry import Parent
from luthier.stages import Opened, open_run, prepare_training, row_subject, train_stage
from luthier.starts import FOLDER, keep_start
from luthier.trackers.base import Ended

State = Literal["complete", "pruned", "failed"]
JUDGED_AT = range(10, 101, 10)
"""Hundredths of a trial's own steps at which it is judged, or at the first step past them: the same for all, since a
pruner compares only trials that told their loss at the very same one, and trials of other lengths validate apart."""


@dataclass(frozen=True)
class Ground:
    """What all trials share."""

    tree: Tree
    """The recipe as given."""
    home: Path
    """The folder of the recipe."""
    out: Path
    """Of the search."""
    id: str
    """Of the search."""
    data: Data
    """Training and validation rows; the test rows are not in it."""
    units: Mapping[str, Sequence[Unit]]
    held: Mapping[str, str]
    """Number format and device of the base: what `auto` meant when the search began, it means for all its runs."""
    by_loss: bool
    """Whether trials are judged by their validation loss, not by the primary metric on the validation rows."""
    higher_is_better: bool
    proven: set[str]
    """Types of adapters that the gates on the model have let pass."""

    def parent(self, relation: str) -> list[Parent]:
        """Where a run of this search came from."""
        return [Parent(id=self.id, folder=str(self.out.resolve()), relation=relation)]

    def planned_steps(self, recipe: Recipe) -> int:
        """Steps of a trial."""
        return assemble.planned_steps(recipe, len(self.units["train"]))


@dataclass(frozen=True)
class Result:
    """What became of a training."""

    state: State
    value: float | None = None
    """Of a complete one: validation loss of its best checkpoint, or the metric. Of a pruned one: its last loss."""
    note: str = ""


class Pruned(Ended):
    """A training is no longer worth its time; raised where it asks, and caught where it was begun."""


def prepare_ground(tree: Tree, home: Path, out: RunFolder, search_id: str, by_loss: bool, progress: Progress) -> Ground:
    """Read, split, check and render the rows once, and prove them.

    Raises:
        DataError, ModelError, TemplateError, PreflightError: as `stages.open_run`.
        EvaluationError: the metric cannot be measured on the validation rows.
    """
    recipe, folder = build(Recipe, tree), RunFolder(out / "rows", listed=False)
    with folder.locked():
        folder.begin(recipe, write_toml(tree), home)
        folder.record(trial={"name": "rows"})  # should a scan find it
        opened = open_run(recipe, folder, prepare_data(recipe, folder, progress), progress)
    data = replace(opened.data, test=())
    higher = False
    if not by_loss:
        question = question_of(_asked(replace(opened, data=data)))
        higher = question.metrics[question.primary].higher_is_better
    held = folder.read("manifest.json")["held"]
    return Ground(tree, home, out.path, search_id, data, opened.units, held, by_loss, higher, set())


def _asked(opened: Opened) -> Opened:
    """The same with the validation rows in place of test rows."""
    return replace(opened, data=replace(opened.data, test=opened.data.validation))


def run_trial(
    ground: Ground,
    folder: RunFolder,
    tree: Tree,
    trial: Mapping[str, Any],
    progress: Progress,
    judge: Callable[[int, float], None] = lambda percent, loss: None,
) -> Result:
    """Train with these settings, or take what an earlier process came to.

    Args:
        ground: what is shared.
        folder: of this trial.
        tree: its recipe.
        trial: what the manifest says of it.
        progress: told where it is.
        judge: told the loss of the last validation at each of `JUDGED_AT`; raises Pruned to end it.

    Raises:
        KeyboardInterrupt: ctrl-C; the step was finished and everything saved.
        StorageError: the disk is full; earlier checkpoints are intact.
    """
    recipe = build(Recipe, tree)
    with folder.locked():
        folder.begin(recipe, write_toml(tree), ground.home, ground.parent("trial of"))
        folder.record(held=ground.held)
        kept = (folder.read("manifest.json").get("trial") or {}).get("result")
        result = Result(**kept) if kept else _train(ground, folder, recipe, progress, judge)
        failure = {"failure": result.note} if result.state == "failed" else {}
        folder.record(trial={**trial, "result": vars(result)}, **failure)
        for name in ("checkpoints", "adapter", FOLDER):  # the winner is trained again, as a run of its own
            shutil.rmtree(folder / name, ignore_errors=True)
        (folder / kept_reference.FILE).unlink(missing_ok=True)
    return result


def _train(
    ground: Ground, folder: RunFolder, recipe: Recipe, progress: Progress, judge: Callable[[int, float], None]
) -> Result:
    watched = Watched(ground.planned_steps(recipe), judge)
    try:
        opened = _open(ground, folder, recipe)
        prepared = prepare_training(opened, progress, prove=opened.subject is not None)
        if prepared.found is not None:
            watched.replay(folder / "metrics.jsonl", prepared.found.step)
        run = train_stage(prepared, progress, watched.see)
        ground.proven.add(registry.name_of(recipe.adapter))
        value = run.state.best_loss if ground.by_loss else _score(opened, run)
    except Pruned:
        return Result("pruned", watched.loss, f"stopped at {watched.percent} % of its steps")
    except LuthierError as error:
        if isinstance(error, StorageError | ServiceError):  # no fault of these settings
            raise
        return Result("failed", None, str(error))
    if value is None or not math.isfinite(value):
        return Result("failed", None, f"the value is {value}")
    return Result("complete", value)


class Watched:
    """The validations of a training of so many steps, passed on to what judges them."""

    def __init__(self, steps: int, judge: Callable[[int, float], None]) -> None:
        self._steps, self._judge = steps, judge
        self._last: float | None = None
        self._judged = 0
        self.percent = 0

    @property
    def loss(self) -> float | None:
        """Of the last validation; None before it, or if it was not finite."""
        return self._last if self._last is not None and math.isfinite(self._last) else None

    def see(self, step: Step) -> None:
        """A step that was done."""
        self._did(step.number, step.metrics.get("validation_loss"))

    def replay(self, log: Path, until: int) -> None:
        """The steps of an earlier process, up to the checkpoint that training goes on from."""
        for _, _, values in read_lines(log, log.name, []) if log.is_file() else ():
            if values["step"] <= until:
                self._did(values["step"], values.get("validation_loss"))

    def _did(self, step: int, loss: float | None) -> None:
        self._last = self._last if loss is None else loss
        self.percent = round(100 * step / self._steps)
        for percent in JUDGED_AT:
            if self._judged < percent and 100 * step >= percent * self._steps:
                self._judged = percent
                if self._last is not None:
                    self._judge(percent, self._last)


def _open(ground: Ground, folder: RunFolder, recipe: Recipe) -> Opened:
    start = keep_start(recipe, folder)
    loaded = assemble.open_for_run(recipe, folder)
    template = assemble.template_for(recipe, loaded, assemble.longest_row(recipe, loaded))
    if start is not None:
        start.require_fit(recipe, loaded, template)
    subject = None
    if registry.name_of(recipe.adapter) not in ground.proven:
        subject = row_subject(recipe, ground.data, loaded, template)
        subject.units = ground.units
    return Opened(recipe, folder, ground.data, loaded, template, ground.units, subject, start)


def _score(opened: Opened, run: Run) -> float:
    """The primary metric of the trained model on the validation rows."""
    asked = _asked(opened)
    question = question_of(asked)
    metric = question.metrics[question.primary]
    context = replace(
        context_of(asked, question),
        adapter_disabled=run.injected.disabled,
        tuned_fingerprint=run.fingerprint,
        head=run.injected.head,
        score_targets=metric.needs != "generation",
    )
    system = registry.load_class(SYSTEMS, "fine_tuned", System)()  # type: ignore[type-abstract]
    answers = system.answer(question.test, context).answers
    predictions = [prediction(row, answer) for row, answer in zip(question.test, answers, strict=True)]
    return metric.value(np.array(metric.statistics_of(predictions), dtype=np.float64))
