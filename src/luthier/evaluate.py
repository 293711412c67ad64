"""The evaluation stages of a run: the base and the baselines before training, the trained model after it.

The base is measured while the model is still the base, so full fine-tuning, which overwrites it, is compared in the
same way as an adapter. What is on disk and still true is used again.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from luthier import assemble
from luthier.adapters.base import Injected
from luthier.config import canonical_hash
from luthier.data.split import group_keys
from luthier.errors import EvaluationError
from luthier.evaluation.forgetting import (
    WINDOW_TOKENS,
    Ability,
    compare_ability,
    load_items,
    measure_ability,
    write_forgetting,
)
from luthier.evaluation.grounding import systems as grounding
from luthier.evaluation.harness import Evaluation, Measured, Options, conclude, measure
from luthier.evaluation.metrics.base import Metric
from luthier.evaluation.schema import read_schema
from luthier.evaluation.significance import Groups, metric_interval, number_groups
from luthier.evaluation.systems.base import Context, System
from luthier.evaluation.task import (
    SCORED_TASKS,
    build_metrics,
    choose_metrics,
    detect_task,
    require_metrics,
    require_rows,
    room_for_answers,
)
from luthier.examples import Conversation, Example, Preference
from luthier.files import sha256_of
from luthier.models.memory import tokens_in_flight
from luthier.progress import Progress
from luthier.recipe import Recipe
from luthier.run_folder import RunFolder
from luthier.stages import Data, Opened

BASE_ABILITY = "forgetting_base.json"
Switch = Callable[[], AbstractContextManager[None]]


def conversations(examples: Sequence[Example]) -> list[Conversation]:
    """The rows as questions with a wanted answer.

    A preference pair asks its prompt and wants the chosen reply; raw text asks nothing and is left out.
    """
    rows = []
    for example in examples:
        if isinstance(example, Preference):
            messages, group, extra = example.prompt + example.chosen, example.group, example.extra
            example = Conversation(messages, example.tools, example.where, example.id, group=group, extra=extra)
        if isinstance(example, Conversation):
            rows.append(example)
    return rows


@dataclass(frozen=True)
class Question:
    """What is asked of every system: rows, task, metrics and the room for an answer."""

    test: Sequence[Example]
    train: list[Conversation]
    """Where examples are found, as prompts are chosen on `validation`; both are empty where nothing is written."""
    validation: list[Conversation]
    task: str
    metrics: Mapping[str, Metric]
    primary: str
    schema: Mapping[str, Any] | None
    max_new_tokens: int
    stop_loops: bool


def question_of(opened: Opened) -> Question:
    """Work out task, metrics and the longest answer from the recipe and the rows; renders every training row.

    Raises:
        EvaluationError: the rows or a metric do not fit the task, or a metric is unknown or misses its schema.
    """
    settings, data = opened.recipe.evaluation, opened.data
    grounding.require_judge(settings.grounding.judge)
    alike = {type(row) for row in data.train} == {type(row) for row in data.test}
    task = detect_task(data.train if alike else data.test) if settings.task == "auto" else settings.task
    require_rows(task, data.test)
    is_scored = task in SCORED_TASKS
    train, validation = ([], []) if is_scored else (conversations(data.train), conversations(data.validation))
    test = data.test if is_scored else conversations(data.test)
    names = settings.metrics or choose_metrics(task, settings.json_schema is not None)
    primary = settings.primary_metric or names[0]
    metrics = build_metrics(list(dict.fromkeys([primary, *names])), settings.json_schema)
    require_metrics(task, metrics)
    room, looping = (0, False) if is_scored else room_for_answers(opened.template, train)
    limit = settings.max_new_tokens or room
    if not limit and not is_scored:
        raise EvaluationError("no training row has an assistant message; set evaluation.max_new_tokens")
    schema = read_schema(Path(settings.json_schema)) if settings.json_schema else None
    test = test[: settings.max_rows]
    return Question(test, train, validation, task, metrics, primary, schema, limit, stop_loops=not looping)


def measure_base(opened: Opened, question: Question, progress: Progress, disabled: Switch = nullcontext) -> None:
    """Let every system that does not need training answer the test rows, and measure the base's general ability.

    `disabled` opens to the base alone, where an adapter is in the model.
    """
    baselines = {name: system for name, system in _systems(opened.recipe).items() if not system.uses_adapter}
    _evaluate(opened, question, baselines, disabled, None, progress)
    _base_ability(opened, progress, disabled)


def measure_tuned(opened: Opened, question: Question, injected: Injected, progress: Progress) -> Evaluation:
    """Let the trained model answer, compare it with what `measure_base` measured, and measure what it forgot."""
    tuned = canonical_hash([sha256_of(path) for path in sorted((opened.folder / "adapter").glob("*.safetensors"))])
    evaluation = _evaluate(opened, question, _systems(opened.recipe), injected.disabled, tuned, progress)
    before = _base_ability(opened, progress, injected.disabled)
    confidence = opened.recipe.evaluation.confidence
    key = canonical_hash([_ability_key(opened), tuned, confidence])
    kept = opened.folder.read("forgetting.json")
    if kept is None or kept.get("key") != key:
        with progress.stage("forgetting", "forgetting"), opened.folder.timed("forgetting"):
            items = load_items(opened.recipe.evaluation.forgetting, opened.loaded)
            after = measure_ability(opened.loaded, items, on_progress=_told(progress))
            write_forgetting(opened.folder.path, {**compare_ability(before, after, items, confidence), "key": key})
    return evaluation


def _systems(recipe: Recipe) -> dict[str, System]:
    """Baselines first, in the order of the recipe."""
    found = {
        name: assemble.part(settings, System, f"evaluation.systems.{name}")  # type: ignore[type-abstract]
        for name, settings in recipe.evaluation.systems.items()
    }
    return dict(sorted(found.items(), key=lambda item: item[1].uses_adapter))


def _evaluate(
    opened: Opened,
    question: Question,
    systems: Mapping[str, System],
    disabled: Switch,
    tuned: str | None,
    progress: Progress,
) -> Evaluation:
    recipe, folder = opened.recipe, opened.folder
    context = replace(
        context_of(opened, question),
        adapter_disabled=disabled,
        tuned_fingerprint=tuned,
        on_progress=_told(progress),
    )
    options = Options(folder.path, question.primary, recipe.evaluation.confidence, recipe.seed)
    measuring = measure(systems, question.test, context, question.metrics, options)
    groups_N = number_groups(group_keys(question.test))
    measured: dict[str, Measured] = {}
    for name in systems:
        started = time.perf_counter()
        with progress.stage(f"evaluate:{name}", f"{name} on {len(question.test):,} test rows"):
            _, measured[name] = next(measuring)
        if not measured[name].reused:  # all that it took: choosing a prompt and scoring, too
            folder.add_seconds(f"evaluate:{name}", time.perf_counter() - started)
        progress.say("    " + _result(measured[name], groups_N, question, options))
    _ground(opened, question, list(measured), progress)
    return conclude(measured, groups_N, question.task, question.metrics, options)


def _ground(opened: Opened, question: Question, names: Sequence[str], progress: Progress) -> None:
    """Judge the answers to rows that carry passages, and write `grounding.json`; nothing where no row does."""
    if question.task in SCORED_TASKS:
        return
    recipe = opened.recipe
    options = grounding.Options(
        recipe.evaluation.grounding.judge, recipe.model.device, recipe.evaluation.confidence, recipe.seed
    )
    carried = grounding.carried(opened.folder.path, question.test, names)
    if not carried:
        return
    with progress.stage("grounding", "answers beside their passages"), opened.folder.timed("grounding"):
        found = grounding.ground_systems(carried, question.test, options)
    opened.folder.write("grounding.json", found)
    for one in found["systems"]:
        progress.say(f"    {one['system']}: unsupported {one['shares']['unsupported']['counted']['value']:.3f}")


def context_of(opened: Opened, question: Question) -> Context:
    """What a system may use while the model is the base and nothing shows the progress."""
    folder = opened.folder
    return Context(
        loaded=opened.loaded,
        template=opened.template,
        adapter_disabled=nullcontext,
        train=question.train,
        validation=question.validation,
        max_new_tokens=question.max_new_tokens,
        stop_loops=question.stop_loops,
        batch_tokens=tokens_in_flight(opened.loaded.model),
        task=question.task,
        primary_metric=question.metrics[question.primary],
        base_fingerprint=canonical_hash([opened.loaded.files.fingerprint, str(opened.loaded.dtype)]),
        json_schema=question.schema,
        train_file=(folder / "data/train.jsonl").resolve(),
        recipe_folder=Path(folder.read("manifest.json")["recipe_folder"]),
    )


def _result(measured: Measured, groups_N: Groups, question: Question, options: Options) -> str:
    """The primary metric of one system in a line."""
    statistics = measured.statistics.get(question.primary)
    if statistics is None:
        return f"{question.primary} cannot be measured: it needs the model's probabilities"
    metric = question.metrics[question.primary]
    found = metric_interval(metric, statistics, options.confidence, options.seed, groups_N)
    return f"{question.primary} {found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def _told(progress: Progress) -> Callable[[str, int, int], None]:
    return lambda what, done, total: progress.update(done, total, what)


def _ability_key(opened: Opened) -> str:
    """Changes when the items or the base do."""
    settings = opened.recipe.evaluation.forgetting
    named = (Path(name) for name in (settings.multiple_choice, settings.text))
    files = [sha256_of(path) for path in named if path.is_file()]
    return canonical_hash(
        [settings.model_dump(), WINDOW_TOKENS, files, opened.loaded.files.fingerprint, str(opened.loaded.dtype)]
    )


def _base_ability(opened: Opened, progress: Progress, disabled: Switch = nullcontext) -> Ability:
    """General ability of the base, measured once and kept in the run's folder."""
    key = _ability_key(opened)
    kept = opened.folder.read(BASE_ABILITY)
    if kept is not None and kept["key"] == key:
        return Ability({name: np.array(values) for name, values in kept["statistics"].items()})
    with progress.stage("ability", "general ability of the base"), opened.folder.timed("forgetting"), disabled():
        items = load_items(opened.recipe.evaluation.forgetting, opened.loaded)
        ability = measure_ability(opened.loaded, items, on_progress=_told(progress))
    statistics = {name: values.tolist() for name, values in ability.statistics.items()}
    opened.folder.write(BASE_ABILITY, {"key": key, "statistics": statistics})
    return ability


def reopen(folder: RunFolder, recipe: Recipe, data: Data, progress: Progress) -> Opened:
    """A run with its base model in memory, for evaluation alone: nothing is proved again."""
    with progress.stage("open", f"loading {recipe.model.name}"):
        loaded = assemble.open_for_run(recipe, folder)
        template = assemble.template_for(recipe, loaded, assemble.longest_row(recipe, loaded))
    return Opened(recipe, folder, data, loaded, template, {}, None)
