"""Try remedies against forgetting within a budget, draw gain against forgetting, and put the winner in place.

Gain is measured on the validation rows and forgetting on one half of the general questions and text, never on the test
rows; the report then measures the winner on those and on the other half. What was done is kept in `remember/<name>/`,
each a run's folder of its own, so that a stopped search goes on where it was.
"""

import gc
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from luthier.assemble import is_artifact_of, objective_of, read_artifact
from luthier.config import canonical_hash
from luthier.data.write import example_values
from luthier.data_stage import Data
from luthier.engine.run import Run
from luthier.errors import DataError, EvaluationError, ModelError, NonFiniteStep, PreflightError, RecipeError
from luthier.evaluate import REMEMBER, Question
from luthier.evaluation.task import HEAD_TASKS
from luthier.files import sync
from luthier.progress import Progress, duration
from luthier.recipe import Recipe
from luthier.remember.candidates import PLAIN, Candidate, candidates, recipe_with
from luthier.remember.interpolate import obstacle, write_share
from luthier.remember.measure import Judge, Measured
from luthier.remember.table import Tried, weighed, write_frontier
from luthier.run_folder import RunFolder
from luthier.stages import Opened, open_run, prepare_training, train_stage

FOLDER = "remember"
BASE = "base"


@dataclass(frozen=True)
class Plain:
    """The recipe's own training, once its model is gone from memory."""

    recipe: Recipe
    file: Path
    """Of the recipe."""
    folder: RunFolder
    data: Data
    question: Question
    fingerprint: str
    learning_rate: float
    steps: int
    """As many as were planned."""

    @classmethod
    def of(cls, opened: Opened, question: Question, run: Run, file: Path) -> "Plain":
        """What is kept of a training that has ended."""
        return cls(
            opened.recipe, file, opened.folder, opened.data, question, run.fingerprint, run.learning_rate, run.steps
        )


def require_no_choice(folder: RunFolder) -> None:
    """Check that no remedy is in place, before a training overwrites it.

    Raises:
        RecipeError: `--remember` has put one there.
    """
    if (folder / REMEMBER).is_file():
        raise RecipeError(
            f"{folder.path}: `luthier train --remember` has put the training of its choice in place, which this "
            f"command would replace: go on with `luthier evaluate {folder.path}`, or choose another folder with --out"
        )


def begin_search(recipe: Recipe, folder: RunFolder) -> None:
    """Check that there is something by which forgetting is measured, and take back an earlier choice: the plain
    training is put in place again before another one is.

    Raises:
        EvaluationError: the recipe leaves it out, or trains a model that writes nothing.
    """
    objective = objective_of(recipe)
    head = objective.head() if objective.writes else None
    if not objective.writes or (head is not None and head.kind in HEAD_TASKS):
        raise EvaluationError(
            "--remember keeps a model able to write, and what this recipe trains reads and writes nothing"
        )
    if (kept := folder.read(REMEMBER)) is not None:
        folder.write(REMEMBER, {**kept, "chosen": None})
    settings = recipe.evaluation.forgetting
    if settings.multiple_choice == "none" and settings.text == "none":
        raise EvaluationError(
            "--remember weighs gain against forgetting, and evaluation.forgetting leaves out all that it is measured "
            "by; name questions or a text there"
        )


def remember(plain: Plain, budget_minutes: float, progress: Progress) -> str:
    """Measure the training and its remedies, write `remember.json` and `remember.html`, and put the winner in place.

    Args:
        plain: the recipe's own training; its artifact is in place.
        budget_minutes: for the remedies together, over all calls in this folder; what would end later is not begun.
        progress: told what comes out.

    Returns:
        The name of the winner.

    Raises:
        EvaluationError: there are too few validation rows.
        KeyboardInterrupt: ctrl-C; what was tried is kept, and the same command goes on.
    """
    search = _Search(plain, budget_minutes, progress)
    search.keep_plain()
    base = search.measured(BASE, plain.recipe, None)
    tried: list[Tried] = []
    for candidate in candidates(plain.recipe, plain.learning_rate, plain.steps):
        tried.append(search.attempt(candidate))
        _say(tried[-1], base, search.judge, progress)
    values = weighed(plain.recipe, search.judge, base, tried, budget_minutes)
    chosen: str = values["chosen"]
    _put_in_place(plain.folder, search.place(chosen) / "adapter")
    write_frontier(plain.folder, values)  # last: it says what is in place
    progress.say(f"  in place is {chosen}: {values['reason']}; `luthier evaluate {plain.folder.path}` measures it")
    return chosen


@dataclass(frozen=True)
class _Search:
    plain: Plain
    budget_minutes: float
    progress: Progress

    @cached_property
    def judge(self) -> Judge:
        return Judge(self.plain.question, self.plain.data, self.plain.recipe)

    def place(self, name: str) -> RunFolder:
        return RunFolder(self.plain.folder / FOLDER / name, listed=False)

    def opened(self, name: str, recipe: Recipe) -> RunFolder:
        """A candidate's folder: the same rows, and the base held as in the run itself."""
        folder, own = self.place(name), self.plain.folder
        folder.open(recipe, self.plain.file)
        folder.record(held=own.read("manifest.json")["held"])
        if folder.read("data/split.json") is None:
            folder.write("data/split.json", own.read("data/split.json"))
        return folder

    def keep_plain(self) -> None:
        """Put the plain training where the candidates are, before one of them takes its place."""
        kept = self.place(PLAIN.name) / "adapter"
        if not is_artifact_of(kept, self.plain.fingerprint):
            kept.parent.mkdir(parents=True, exist_ok=True)
            _copy(self.plain.folder / "adapter", kept)

    def measured(self, name: str, recipe: Recipe, adapter: Path | None) -> Measured:
        folder = self.opened(name, recipe)
        with folder.timed("measuring"):
            return self.judge.measure(folder, adapter, self.progress)

    def attempt(self, candidate: Candidate) -> Tried:
        """Train what has to be trained, and measure; or why not."""
        artifact = read_artifact(self.place(PLAIN.name).path) if candidate.share is not None else None
        if artifact is not None and (wrong := obstacle(artifact)) is not None:
            return Tried(candidate, "not_possible", wrong)
        left, needed = 60 * self.budget_minutes - self.spent(), self.expected(candidate)
        if not self.is_done(candidate) and needed > left:
            said = f"it would take some {duration(needed)}, and {duration(max(left, 0.0))} of the budget are left"
            return Tried(candidate, "over_budget", said)
        recipe, adapter = recipe_with(self.plain.recipe, candidate), self.place(candidate.name) / "adapter"
        if artifact is not None:
            adapter.parent.mkdir(parents=True, exist_ok=True)
            write_share(artifact, candidate.share or 0.0, adapter)
        try:
            if candidate.trains:
                self.train(candidate, recipe)
        except (DataError, ModelError, PreflightError, NonFiniteStep) as error:  # the others can still be chosen
            return Tried(candidate, "failed", str(error))
        found = self.measured(candidate.name, recipe, adapter)
        return Tried(candidate, "measured", "", found, self.seconds(candidate.name))

    def train(self, candidate: Candidate, recipe: Recipe) -> None:
        """Train a candidate, unless it was; its checkpoints are not needed afterwards."""
        if self.is_trained(candidate):
            return
        folder = self.opened(candidate.name, recipe)
        self.progress.say(f"  {candidate.name}: {', '.join(candidate.settings)}")
        with folder.timed("training"):
            opened = open_run(recipe, folder, self.plain.data, self.progress)
            train_stage(prepare_training(opened, self.progress), self.progress)
        del opened
        gc.collect()
        folder.write("trained.json", {"key": self.training_key(candidate)})
        shutil.rmtree(folder / "checkpoints")

    def training_key(self, candidate: Candidate) -> str:
        """Changes when what is trained on does; the plain training may know nothing of the rows that are replayed."""
        pool = [example_values(row) for row in self.plain.data.replay] if candidate.remedy == "replay" else []
        return canonical_hash([self.plain.fingerprint, candidate.settings, pool])

    def is_trained(self, candidate: Candidate) -> bool:
        folder = self.place(candidate.name)
        kept = folder.read("trained.json")
        return kept is not None and kept["key"] == self.training_key(candidate) and (folder / "adapter").is_dir()

    def is_done(self, candidate: Candidate) -> bool:
        """Whether it costs nothing more; the plain training is always measured."""
        folder = self.place(candidate.name)
        there = self.is_trained(candidate) if candidate.trains else (folder / "adapter").is_dir()
        return candidate == PLAIN or (there and self.judge.kept(folder, folder / "adapter") is not None)

    def seconds(self, name: str) -> float:
        """What a candidate has taken, over all calls."""
        stages = (self.place(name).read("manifest.json") or {}).get("stages", {})
        return sum(float(stages[stage]["seconds"]) for stage in ("training", "measuring") if stage in stages)

    def spent(self) -> float:
        """Seconds that remedies have taken."""
        folder = self.plain.folder / FOLDER
        return sum(self.seconds(one.name) for one in folder.iterdir() if one.name not in (BASE, PLAIN.name))

    def expected(self, candidate: Candidate) -> float:
        """Seconds that a candidate will take, from what the plain training took."""
        measuring = self.seconds(PLAIN.name)
        stages = self.plain.folder.read("manifest.json")["stages"]
        training = sum(float(stages[stage]["seconds"]) for stage in ("open", "preflight", "train"))
        return measuring + (training if candidate.trains else 0.0)


def _say(tried: Tried, base: Measured, judge: Judge, progress: Progress) -> None:
    if tried.measured is None:
        progress.say(f"    {tried.candidate.name}: not tried, {tried.reason}")
        return
    gain, loss = judge.gain(tried.measured, base), judge.loss(tried.measured, base)
    progress.say(
        f"    {tried.candidate.name}: {judge.question.primary} {gain.difference:+.3f} "
        f"[{gain.low:+.3f}, {gain.high:+.3f}] over the base; forgot {loss.value:+.1%} of {loss.measure}"
    )


def _copy(source: Path, target: Path) -> None:
    """A copy of an artifact, whole or not at all."""
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(source, temporary)
    for path in (*temporary.iterdir(), temporary):
        sync(path)
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)
    sync(target.parent)


def _put_in_place(folder: RunFolder, adapter: Path) -> None:
    """Make an artifact that of the run; what was measured of the one before it is dropped."""
    _copy(adapter, folder / "adapter")
    for name in ("evaluation.json", "forgetting.json"):
        (folder / name).unlink(missing_ok=True)
