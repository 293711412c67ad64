"""A search: trials that Optuna chooses, luck counted with fresh seeds, and the winner run as an ordinary run.

    Akiba et al. 2019 (arXiv:1907.10902), Optuna; Bergstra et al. 2011, the tree-structured Parzen estimator, which
    chooses; Li et al. 2018 (arXiv:1603.06560), Hyperband.

Trials are judged on the validation rows alone; the test rows are asked once, by the winner. The best of many trials is
best partly by luck, so winner and recipe as given are both trained again with seeds that chose nothing, and only what
is left of the advantage there is believed. Every trial is drawn from a generator of its own number, so a search that
was killed draws what an undisturbed one would. What was tried is in `study.sqlite`, what was decided in `search.json`.
"""

import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, TrialState
from scipy import stats

from luthier import run_registry
from luthier.config import Tree, build, canonical_hash
from luthier.errors import EvaluationError, RecipeError
from luthier.files import sha256_of
from luthier.progress import Progress
from luthier.recipe import Recipe
from luthier.run_folder import RunFolder, differing, now
from luthier.search.space import Dimension, Options, settle
from luthier.search.trial import Ground, Pruned, Result, run_trial

PLACE = "place"
"""Attribute of a trial: its folder's name, kept when a trial that was cut off goes on under another number."""
GIVEN = "given"
PRUNERS: Mapping[str, Callable[[], optuna.pruners.BasePruner]] = {
    "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=20),
    "hyperband": lambda: optuna.pruners.HyperbandPruner(min_resource=10, max_resource=100, reduction_factor=3),
    "none": optuna.pruners.NopPruner,
}
"""What ends a bad trial early; all count in hundredths of a trial's own steps."""
STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}


@dataclass(frozen=True)
class Plan:
    """What is to be searched, and how."""

    dimensions: Sequence[Dimension]
    trials: int
    seeds: int
    pruner: str

    def dump(self, recipe: Recipe, by_loss: bool) -> Tree:
        """What a search must not change while it lasts."""
        space = {dimension.key: dimension.dump() for dimension in self.dimensions}
        judged = "loss" if by_loss else "metric"
        # as JSON has it: tuples are lists there, and keys stand between quotes
        return dict(
            json.loads(json.dumps({"recipe": recipe.dump(), "space": space, "by": judged, "prune": self.pruner}))
        )


@dataclass(frozen=True)
class Trial:
    """One trial as the study has it."""

    name: str
    values: Mapping[str, Any]
    result: Result


@dataclass(frozen=True)
class Luck:
    """What is left of the winner's advantage with seeds that chose nothing."""

    seeds: tuple[int, ...]
    winner: tuple[float | None, ...]
    """By seed; None where its training failed."""
    given: tuple[float, ...]
    advantage: tuple[float | None, ...]
    """By seed; above 0: the winner is better. None where its training failed."""
    mean: float | None
    """Of the seeds that did not fail; None if all did."""
    spread: float | None
    """Standard deviation; None for one seed."""
    low: float | None
    """Of the interval of the mean by Student's t; None for one seed."""
    high: float | None

    @property
    def keeps(self) -> bool:
        """Whether an advantage is left: a training that fails with another seed is no winner."""
        return None not in self.advantage and self.mean is not None and self.mean > 0


@dataclass(frozen=True)
class Outcome:
    """How a search ended."""

    trials: Sequence[Trial]
    given: Result
    best: Trial
    luck: Luck | None
    winner: Literal["trial", "given"]
    """`given`: no trial keeps an advantage over the recipe as it stands."""

    @property
    def values(self) -> Mapping[str, Any]:
        """The settings that won; none where the recipe stands."""
        return self.best.values if self.winner == "trial" else {}


def is_open(out: RunFolder) -> bool:
    """Whether a search was begun in this folder."""
    return (out / "search.json").is_file()


def open_search(out: RunFolder, settings: Tree, say: Callable[[str], None]) -> str:
    """The id of the search in this folder; a new one is begun where there is none.

    Raises:
        RecipeError: the folder holds another search.
        StorageError: it is damaged, or cannot be written.
    """
    kept = out.read("search.json")
    if kept is None:
        kept = {"id": run_registry.new_id(), "created": now(), "settings": settings}
        out.write("search.json", kept)
        return str(kept["id"])
    changed = differing(kept["settings"], settings)
    if changed:
        raise RecipeError(
            f"{out.path} holds another search (changed: {', '.join(changed)}). Choose another folder with --out, or "
            "remove this one."
        )
    say(f"  going on with the search in {out.path}")
    return str(kept["id"])


def require_rows(out: RunFolder) -> None:
    """Check that the rows are those that the search began with.

    Raises:
        RecipeError: a file of the recipe's data was changed since.
    """
    kept = out.read("search.json")
    digest = canonical_hash([sha256_of(path) for path in sorted((out / "rows/data").glob("*.jsonl"))])
    if kept.setdefault("rows", digest) != digest:
        raise RecipeError(f"{out.path}: the rows are others than when this search began; begin it anew with --out")
    out.write("search.json", kept)


def search(ground: Ground, plan: Plan, progress: Progress) -> Outcome:
    """Try settings, count luck, and choose; what is finished already is not done again.

    Raises:
        EvaluationError: no trial came to an end, or the recipe as given failed with another seed.
        LuthierError: the recipe as given cannot be trained.
        KeyboardInterrupt: ctrl-C; the same call goes on.
    """
    out = RunFolder(ground.out)
    given = _train(ground, GIVEN, ground.tree, {}, progress)
    if given.value is None:
        raise EvaluationError(f"the recipe as it stands cannot be trained: {given.note}")
    trials = _try_all(ground, plan, progress)
    complete = [trial for trial in trials if trial.result.state == "complete"]
    if not complete:
        notes = "\n".join(f"  {trial.name}: {told(trial.result, ground)}" for trial in trials)
        raise EvaluationError(f"no trial came to an end, so nothing can be chosen:\n{notes}")
    sign = 1 if ground.higher_is_better else -1
    best = max(complete, key=lambda trial: sign * (trial.result.value or 0.0))
    ahead = sign * ((best.result.value or 0.0) - given.value) > 0
    luck = _count_luck(ground, plan, best, sign, progress) if ahead else None
    outcome = Outcome(trials, given, best, luck, "trial" if ahead and (luck is None or luck.keeps) else "given")
    _write(out, outcome)
    return outcome


def _write(out: RunFolder, outcome: Outcome) -> None:
    table = [{"name": t.name, "values": t.values, **vars(t.result)} for t in outcome.trials]
    decided = {"given": vars(outcome.given), "best": outcome.best.name, "winner": outcome.winner}
    luck = vars(outcome.luck) if outcome.luck else None
    out.write("search.json", {**out.read("search.json"), "trials": table, **decided, "luck": luck})


# Trials


def _try_all(ground: Ground, plan: Plan, progress: Progress) -> list[Trial]:
    study = _open_study(ground, plan)
    _requeue(study)
    while (number := len(_counted(study))) < plan.trials:
        study.sampler = optuna.samplers.TPESampler(seed=ground.tree.get("seed", 0) + number)
        trial = study.ask()
        if PLACE not in trial.user_attrs:
            trial.set_user_attr(PLACE, f"{number:04d}")
        tree, values = settle(ground.tree, plan.dimensions, partial(_draw, trial))
        result = _same(study, trial, values) or _one(ground, trial, tree, values, progress)
        trial.set_user_attr("result", vars(result))
        trial.set_user_attr("values", values)
        study.tell(trial, None if result.state != "complete" else result.value, STATES[result.state])
        progress.say(f"  trial {trial.user_attrs[PLACE]}: {told(result, ground)} ({settings_text(values)})")
    return [_trial(frozen) for frozen in _counted(study)]


def _open_study(ground: Ground, plan: Plan) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(
        storage=f"sqlite:///{(ground.out / 'study.sqlite').resolve()}",
        study_name="search",
        direction="maximize" if ground.higher_is_better else "minimize",
        pruner=PRUNERS[plan.pruner](),
        load_if_exists=True,
    )


def _counted(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that ended by themselves, not by a kill."""
    trials = study.get_trials(deepcopy=False)
    return [t for t in trials if "result" in t.user_attrs and t.state == STATES[t.user_attrs["result"]["state"]]]


def _requeue(study: optuna.Study) -> None:
    """Let trials that a kill cut off go on: the same settings in the same folder, which has their checkpoints."""
    trials = study.get_trials(deepcopy=False)
    waiting = {trial.user_attrs.get(PLACE) for trial in trials if trial.state == TrialState.WAITING}
    for trial in trials:
        if trial.state == TrialState.RUNNING:
            place = trial.user_attrs.get(PLACE)
            if place is not None and place not in waiting:
                study.enqueue_trial(trial.params, user_attrs={PLACE: place})
            study.tell(trial.number, state=TrialState.FAIL)


def _draw(trial: optuna.Trial, dimension: Dimension) -> Any:
    if isinstance(dimension, Options):
        return json.loads(trial.suggest_categorical(dimension.key, dimension.labels))
    if dimension.is_whole:
        return trial.suggest_int(dimension.key, int(dimension.low), int(dimension.high), log=dimension.log)
    return trial.suggest_float(dimension.key, dimension.low, dimension.high, log=dimension.log)


def _same(study: optuna.Study, trial: optuna.Trial, values: Mapping[str, Any]) -> Result | None:
    """What an earlier trial of the same settings came to: the same bits again, so it is not trained again."""
    for other in _counted(study):
        if other.number != trial.number and other.user_attrs["values"] == values:
            return Result(**other.user_attrs["result"])
    return None


def _one(ground: Ground, trial: optuna.Trial, tree: Tree, values: Mapping[str, Any], progress: Progress) -> Result:
    sign = (
        -1 if ground.higher_is_better else 1
    )  # the pruner looks in the direction of the study; losses are what it sees

    def judge(percent: int, loss: float) -> None:
        trial.report(sign * loss, percent)
        if percent < 100 and trial.should_prune():
            raise Pruned

    return _train(ground, f"trials/{trial.user_attrs[PLACE]}", tree, values, progress, judge)


def _train(
    ground: Ground,
    place: str,
    tree: Tree,
    values: Mapping[str, Any],
    progress: Progress,
    judge: Callable[[int, float], None] = lambda percent, loss: None,
) -> Result:
    with progress.stage(place, place):
        return run_trial(
            ground, RunFolder(ground.out / place), tree, {"name": place, "values": values}, _Inside(progress), judge
        )


class _Inside:
    """The progress of a training as that of one stage of the search."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def say(self, text: str) -> None:
        """Said as it is."""
        self._progress.say(text)

    @contextmanager
    def stage(self, name: str, title: str) -> Iterator[None]:
        """Part of the stage that there is."""
        yield

    def update(self, done: float, total: float, note: str = "") -> None:
        """Of that stage."""
        self._progress.update(done, total, note)

    def resume(self, done: float, total: float) -> None:
        """Of that stage."""
        self._progress.resume(done, total)


def _trial(frozen: FrozenTrial) -> Trial:
    return Trial(frozen.user_attrs[PLACE], frozen.user_attrs["values"], Result(**frozen.user_attrs["result"]))


# Luck


def _count_luck(ground: Ground, plan: Plan, best: Trial, sign: int, progress: Progress) -> Luck | None:
    """Train the winner and the recipe as given with seeds that chose nothing.

    Raises:
        EvaluationError: the recipe as given failed with another seed.
    """
    first = int(ground.tree.get("seed", 0)) + 1
    seeds = tuple(range(first, first + plan.seeds))
    if not seeds:
        return None
    drawn = settle(ground.tree, plan.dimensions, lambda dimension: best.values[dimension.key])[0]
    won: list[float | None] = []
    stood: list[float] = []
    for seed in seeds:
        found, given = (
            _train(ground, f"seeds/{name}-{seed}", {**tree, "seed": seed}, {"seed": seed}, progress)
            for name, tree in ((best.name, drawn), (GIVEN, ground.tree))
        )
        if given.value is None:
            raise EvaluationError(f"{ground.out}/seeds/{GIVEN}-{seed}: failed with another seed: {given.note}")
        won.append(found.value)
        stood.append(given.value)
    advantage = tuple(None if a is None else sign * (a - b) for a, b in zip(won, stood, strict=True))
    known = [one for one in advantage if one is not None]
    confidence = build(Recipe, ground.tree).evaluation.confidence
    told = summary(known, confidence) if known else (None, None, None, None)
    return Luck(seeds, tuple(won), tuple(stood), advantage, *told)


def summary(values: Sequence[float], confidence: float) -> tuple[float, float | None, float | None, float | None]:
    """Mean, standard deviation, and the ends of the mean's interval by Student's t with n - 1 degrees of freedom."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None, None, None
    spread = statistics.stdev(values)
    half = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1)) * spread / len(values) ** 0.5
    return mean, spread, mean - half, mean + half


# In words


def told(result: Result, ground: Ground) -> str:
    """What became of a training, in a few words."""
    if result.state == "pruned":
        loss = "not finite" if result.value is None else f"{result.value:.4f}"
        return f"{result.note}, validation loss {loss}"
    if result.value is None:
        return f"failed: {result.note.splitlines()[0]}"
    return f"{measure_name(ground)} {result.value:.4f}"


def measure_name(ground: Ground) -> str:
    """What trials are judged by."""
    return "validation loss" if ground.by_loss else "metric on the validation rows"


def settings_text(values: Mapping[str, Any]) -> str:
    """`adapter.rank = 8, optimizer.learning_rate = 0.00123`."""
    return ", ".join(
        f"{key} = {value:.4g}" if isinstance(value, float) else f"{key} = {value}" for key, value in values.items()
    )


def outcome_lines(outcome: Outcome, ground: Ground) -> list[str]:
    """The trials, best first, and what is left of the advantage."""
    sign = 1 if ground.higher_is_better else -1
    ordered = sorted(outcome.trials, key=lambda trial: _place(trial.result, sign))
    lines = [f"{'given':<6} {told(outcome.given, ground)} (the recipe as it stands)"]
    lines += [f"{trial.name:<6} {told(trial.result, ground)} ({settings_text(trial.values)})" for trial in ordered]
    best, luck = outcome.best, outcome.luck
    here = sign * ((best.result.value or 0.0) - (outcome.given.value or 0.0))
    if here > 0:
        lines.append(
            f"trial {best.name} is better than the recipe as it stands by {here:.4f} with the seed that chose it"
        )
    else:
        lines.append(f"no trial is better than the recipe as it stands; the best is worse by {-here:.4f}")
    if luck is not None:
        spread = (
            ""
            if luck.spread is None
            else f" (standard deviation {luck.spread:.4f}, interval [{luck.low:.4f}, {luck.high:.4f}])"
        )
        each = ", ".join("failed" if one is None else f"{one:+.4f}" for one in luck.advantage)
        mean = "in none" if luck.mean is None else f"by {luck.mean:.4f}{spread}"
        lines.append(f"with {len(luck.seeds)} seeds that chose nothing: {mean}; each: {each}")
        if None in luck.advantage:
            lines.append("  ! a training that fails with another seed is no winner")
        elif luck.keeps and luck.low is not None and luck.low <= 0:
            lines.append("  ! so few seeds do not tell this advantage from luck")
    if outcome.winner == "given":
        lines.append("nothing tried keeps an advantage: the recipe as it stands wins")
    else:
        lines.append(f"the winner: {settings_text(best.values)}")
    return lines


def _place(result: Result, sign: int) -> tuple[int, float]:
    """Complete ones first, each kind from its best; of a pruned one a loss is known, whatever decides."""
    rank = {"complete": 0, "pruned": 1, "failed": 2}[result.state]
    if result.value is None:
        return rank, math.inf
    return rank, result.value if result.state == "pruned" else -sign * result.value


def winner_tree(ground: Ground, plan: Plan, outcome: Outcome) -> Tree:
    """The recipe that won."""
    if outcome.winner == "given":
        return ground.tree
    return settle(ground.tree, plan.dimensions, lambda dimension: outcome.values[dimension.key])[0]


def best_folder(out: Path) -> Path:
    """Where the winner is run."""
    return out / "best"
