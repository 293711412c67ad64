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
    Items,
    compare_ability,
    half_of,
    load_items,
    measure_ability,
    write_forgetting,
)
from luthier.evaluation.harness import Evaluation, Measured, Options, conclude, measure
from luthier.evaluation.metrics.base import Metric
from luthier.evaluation.schema import read_schema
from luthier.evaluation.significance import Groups, metric_interval, number_groups
from luthier.evaluation.systems.base import Context, System, TrainedOn
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
REMEMBER = "remember.json"
"""What `luthier train --remember` chose, and from what."""
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


def measure_base(opened: Opened, question: Question, progress: Progress, disabled: Switch = nullcontext) -> Evaluation:
    """Let every system that does not need training answer the test rows, and measure the base's general ability.

    `disabled` opens to the base alone, where an adapter is in the model.
    """
    found = _evaluate(opened, opened.folder, question, progress, disabled=disabled)
    _base_ability(opened, opened.folder, progress, disabled)
    return found


def measure_tuned(
    opened: Opened,
    question: Question,
    injected: Injected,
    progress: Progress,
    before: Evaluation | None = None,
    into: RunFolder | None = None,
) -> Evaluation:
    """Let the systems that need the training of `opened.folder` answer, and measure what it forgot.

    Args:
        opened: the run, or its second training with a folder of its own.
        question: the same for all systems of a run.
        injected: the trained adapter, in the model.
        progress: told what comes out.
        before: what was measured so far; the table is of it and of what is measured here.
        into: the run's folder, where that is another than the training's.
    """
    folder = into or opened.folder
    tuned = canonical_hash([sha256_of(path) for path in sorted((opened.folder / "adapter").glob("*.safetensors"))])
    trained_on: TrainedOn = "rows" if into is None else "passages"
    evaluation = _evaluate(opened, folder, question, progress, before, injected.disabled, (trained_on, tuned))
    ability = _base_ability(opened, folder, progress, injected.disabled)
    confidence = opened.recipe.evaluation.confidence
    key = canonical_hash([_ability_key(opened, folder), tuned, confidence])
    kept = opened.folder.read("forgetting.json")
    if kept is None or kept.get("key") != key:
        with progress.stage("forgetting", "forgetting"), folder.timed("forgetting"):
            items = _items(opened, folder)
            after = measure_ability(opened.loaded, items, on_progress=_told(progress))
            write_forgetting(opened.folder.path, {**compare_ability(ability, after, items, confidence), "key": key})
    return evaluation


def _systems(recipe: Recipe) -> dict[str, System]:
    """Baselines first, in the order of the recipe."""
    found = {
        name: assemble.part(settings, System, f"evaluation.systems.{name}")  # type: ignore[type-abstract]
        for name, settings in recipe.evaluation.systems.items()
    }
    return dict(sorted(found.items(), key=lambda item: item[1].place))


def _evaluate(
    opened: Opened,
    folder: RunFolder,
    question: Question,
    progress: Progress,
    before: Evaluation | None = None,
    disabled: Switch = nullcontext,
    tuned: tuple[TrainedOn | None, str | None] = (None, None),
) -> Evaluation:
    """Measure the systems of one training, given with the digest of its weights, or those of the base."""
    recipe, (trained_on, weights) = opened.recipe, tuned
    systems = {name: system for name, system in _systems(recipe).items() if system.trained_on == trained_on}
    context = replace(
        context_of(opened, question, folder),
        adapter_disabled=disabled,
        tuned_fingerprint=weights,
        on_progress=_told(progress),
    )
    options = Options(folder.path, question.primary, recipe.evaluation.confidence, recipe.seed)
    measuring = measure(systems, question.test, context, question.metrics, options)
    groups_N = number_groups(group_keys(question.test))
    measured: dict[str, Measured] = dict(before.measured) if before is not None else {}
    for name in systems:
        started = time.perf_counter()
        with progress.stage(f"evaluate:{name}", f"{name} on {len(question.test):,} test rows"):
            _, measured[name] = next(measuring)
        if not measured[name].reused:  # all that it took: choosing a prompt and scoring, too
            folder.add_seconds(f"evaluate:{name}", time.perf_counter() - started)
        progress.say("    " + _result(measured[name], groups_N, question, options))
    return conclude(measured, groups_N, question.task, question.metrics, options)


def context_of(opened: Opened, question: Question, folder: RunFolder | None = None) -> Context:
    """What a system may use while the model is the base and nothing shows the progress; `folder` is the run's."""
    folder = folder or opened.folder
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


def _items(opened: Opened, folder: RunFolder) -> Items:
    """What ability is measured on: where a remedy was chosen by one half of it, the other half."""
    items = load_items(opened.recipe.evaluation.forgetting, opened.loaded)
    return half_of(items, "confirmation") if (folder / REMEMBER).is_file() else items


def _ability_key(opened: Opened, folder: RunFolder) -> str:
    """Changes when the items or the base do."""
    settings = opened.recipe.evaluation.forgetting
    named = (Path(name) for name in (settings.multiple_choice, settings.text))
    files = [sha256_of(path) for path in named if path.is_file()]
    halved = ["half"] if (folder / REMEMBER).is_file() else []
    base = opened.loaded.files.fingerprint, str(opened.loaded.dtype)
    return canonical_hash([settings.model_dump(), WINDOW_TOKENS, files, *base, *halved])


def _base_ability(opened: Opened, folder: RunFolder, progress: Progress, disabled: Switch = nullcontext) -> Ability:
    """General ability of the base, measured once and kept in the run's folder."""
    key = _ability_key(opened, folder)
    kept = folder.read(BASE_ABILITY)
    if kept is not None and kept["key"] == key:
        return Ability({name: np.array(values) for name, values in kept["statistics"].items()})
    with progress.stage("ability", "general ability of the base"), folder.timed("forgetting"), disabled():
        items = _items(opened, folder)
        ability = measure_ability(opened.loaded, items, on_progress=_told(progress))
    statistics = {name: values.tolist() for name, values in ability.statistics.items()}
    folder.write(BASE_ABILITY, {"key": key, "statistics": statistics})
    return ability


def reopen(folder: RunFolder, recipe: Recipe, data: Data, progress: Progress) -> Opened:
    """A run with its base model in memory, for evaluation alone: nothing is proved again."""
    with progress.stage("open", f"loading {recipe.model.name}"):
        loaded = assemble.open_for_run(recipe, folder)
        template = assemble.template_for(recipe, loaded, assemble.longest_row(recipe, loaded))
    return Opened(recipe, folder, data, loaded, template, {}, None)
