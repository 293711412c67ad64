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
import torch

from luthier import assemble, energy
from luthier.adapters.base import Injected
from luthier.config import canonical_hash, part
from luthier.data.asked import conversations, says_what_is_right
from luthier.data.split import group_keys
from luthier.data.write import example_values
from luthier.data_stage import Data
from luthier.errors import EvaluationError, RecipeError
from luthier.evaluation.abstaining import abstain
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
from luthier.evaluation.grounding import systems as grounding
from luthier.evaluation.harness import Evaluation, Measured, Options, conclude, measure
from luthier.evaluation.long_prompt import read_long_prompt
from luthier.evaluation.metrics.base import Metric
from luthier.evaluation.retrieval import judged_rows, measure_retrieval, nothing_judged, recall_sentence, require_gold
from luthier.evaluation.schema import read_schema
from luthier.evaluation.significance import Groups, metric_interval, number_groups
from luthier.evaluation.style import systems as style
from luthier.evaluation.style.pairs import ANSWER_TOKENS
from luthier.evaluation.systems.base import Context, System, TrainedOn
from luthier.evaluation.task import (
    HEAD_TASKS,
    SCORED_TASKS,
    SURE_METRICS,
    TEXT_HEAD_TASKS,
    build_metrics,
    choose_metrics,
    detect_task,
    require_metrics,
    require_rows,
    room_for_answers,
)
from luthier.examples import Conversation, Example, Judged
from luthier.files import sha256_of
from luthier.models.heads import SETTINGS, Head
from luthier.models.memory import tokens_in_flight
from luthier.online import metric_of
from luthier.progress import Progress
from luthier.rag.retriever import Host, Retriever, build_retrievers, used_name
from luthier.recipe import SYSTEMS, Recipe, RetrievalSettings, build_part, dump_part
from luthier.registry import name_of
from luthier.rewarding import judging_files
from luthier.run_folder import RunFolder
from luthier.settling import settled
from luthier.stages import Opened

REWARD = "reward"
BASE_ABILITY = "forgetting_base.json"
RETRIEVAL = "retrieval.json"
FINE_TUNED = "fine_tuned"
GROUNDING = "grounding.json"
STYLE = "style.json"
JUDGED = "judged.json"
"""What the judge of style replied, so that nobody is asked twice."""
REMEMBER = "remember.json"
"""What `luthier train --remember` chose, and from what."""
Switch = Callable[[], AbstractContextManager[None]]


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


def _wanted(examples: Sequence[Example]) -> Sequence[Example]:
    """The rows; of judged ones those whose reply is wanted."""
    return conversations(examples) if any(isinstance(row, Judged) for row in examples) else examples


def question_of(opened: Opened) -> Question:
    """Work out task, metrics and the longest answer from the recipe and the rows; renders every training row.

    Raises:
        RecipeError: a system retrieves passages and the recipe has none.
        EvaluationError: the rows or a metric do not fit the task, or a metric is unknown or misses its schema.
    """
    settings, data = opened.recipe.evaluation, opened.data
    require_passages(opened.recipe)
    grounding.require_judge(settings.grounding.judge)
    alike = {type(row) for row in data.train} == {type(row) for row in data.test}
    if not data.test:
        raise EvaluationError("there are no test rows; name a file in data.test, or raise data.test_share")
    head = assemble.objective_of(opened.recipe).head()
    judging = None if head is None else HEAD_TASKS.get(head.kind) or TEXT_HEAD_TASKS.get(head.kind)
    task = settings.task
    if task == "auto":
        only_asks = len(_silent(data.train)) == len(data.train)
        task = judging or detect_task(_wanted(data.train if alike and not only_asks else data.test))
    require_rows(task, data.test)
    is_scored = task in SCORED_TASKS
    train, validation = ([], []) if is_scored else (_answered(data.train), _answered(data.validation))
    test = data.test if is_scored else conversations(data.test)
    if not test:
        raise EvaluationError("no test row has an answer that is wanted: all of them are replies that were judged bad")
    if settings.style.judge is not None and task != "text":
        raise EvaluationError(
            f"evaluation.style.judge compares free texts, and these answers are of the task {task!r}; leave it out"
        )
    reward = _reward(opened)
    # what was trained on decides only where nothing else says what is right: rewards are taken at their word
    own = () if reward is not None and _silent(test) else choose_metrics(task, settings.json_schema is not None)
    own = (*own, *(SURE_METRICS if task == "label" and _tell_how_sure(opened.recipe) else ()))
    names = settings.metrics or (*own, *([] if reward is None else [REWARD]))
    primary = settings.primary_metric or names[0]
    metrics = build_metrics(list(dict.fromkeys([primary, *names])), settings.json_schema, reward)
    if REWARD in metrics and reward is None:
        raise EvaluationError(
            "the metric reward grades answers as a training on rewards does: it is for a recipe whose objective learns "
            "from [rollout.rewards], without an environment; leave it out"
        )
    require_metrics(task, metrics)
    _require_wanted(test, metrics)
    room, looping = (0, False) if is_scored else room_for_answers(opened.template, train)
    if opened.recipe.rollout is not None:  # replies that were learned from may have been longer than those of the rows
        room = max(room, opened.recipe.rollout.max_new_tokens)
    if opened.recipe.teacher is not None and opened.recipe.teacher.replies == "teacher":
        room = max(room, opened.recipe.teacher.max_new_tokens)
    limit = settings.max_new_tokens or room
    if not limit and not is_scored:
        raise EvaluationError("no training row has an assistant message; set evaluation.max_new_tokens")
    schema = read_schema(Path(settings.json_schema)) if settings.json_schema else None
    test = test[: settings.max_rows]
    return Question(test, train, validation, task, metrics, primary, schema, limit, stop_loops=not looping)


def _tell_how_sure(recipe: Recipe) -> bool:
    """Whether a system tells the probability of every label."""
    systems = assemble.systems_of(recipe).values()
    return not assemble.objective_of(recipe).writes or any(system.gives_probabilities for system in systems)


def _reward(opened: Opened) -> dict[str, Any] | None:
    """Settings of the metric `reward`; None where nothing says what a single answer is worth."""
    settings = opened.recipe.rollout
    if settings is None or settings.environment is not None or not settings.rewards:
        return None
    # judges are opened when a reply is graded: what is only estimated or exported needs none
    return metric_of(settings, lambda: opened.hosted, judging_files(opened.recipe))


def _answered(rows: Sequence[Example]) -> list[Conversation]:
    """The chats that can stand in a prompt as examples."""
    return [row for row in conversations(rows) if says_what_is_right(row)]


def _require_wanted(test: Sequence[Example], metrics: Mapping[str, Metric]) -> None:
    """Check that metrics that compare with what is wanted find it.

    Raises:
        EvaluationError: a row only asks.
    """
    silent = _silent(test)
    if silent and metrics.keys() != {REWARD}:
        raise EvaluationError(
            f"test row {silent[0].id} at {silent[0].where}: no assistant message and no target to compare with. Where "
            "graders alone say what is right, evaluation.metrics = ['reward'] goes by them; where an environment does, "
            "leave the comparison out: data.test_share = 0"
        )


def _silent(test: Sequence[Example]) -> list[Conversation]:
    """The rows that only ask."""
    return [row for row in test if isinstance(row, Conversation) and not says_what_is_right(row)]


@dataclass(frozen=True)
class Mode:
    """The state of the model, and what stands beside it, while systems answer."""

    disabled: Switch
    retriever: Retriever | None
    trained_on: TrainedOn | None = None
    """Which training is in the model; None: none, and the systems that need none answer."""
    weights: str | None = None
    """Fingerprint of the trained weights; None before training."""
    head: Head | None = None
    """The trained one; None before training, or where none is trained: the base's is read."""


def measure_base(opened: Opened, question: Question, progress: Progress, disabled: Switch = nullcontext) -> Evaluation:
    """Let every system that does not need training answer the test rows, and measure the base's general ability.

    `disabled` opens to the base alone, where an adapter is in the model.
    """
    retrievers = _retrievers(opened, progress)
    _measure_retrieval(opened, question, retrievers, progress)
    mode = Mode(disabled, used_of(retrievers, opened.recipe))
    found = _evaluate(opened, opened.folder, question, mode, progress)
    if question.task not in HEAD_TASKS.values() and assemble.objective_of(opened.recipe).writes:
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
    folder, tuned = into or opened.folder, _weights(opened)
    trained_on: TrainedOn = "rows" if into is None else "passages"
    asked = [s for s in assemble.systems_of(opened.recipe).values() if s.trained_on == trained_on]
    found = _retrievers(opened, progress) if any(system.uses_retriever for system in asked) else {}
    mode = Mode(injected.disabled, used_of(found, opened.recipe), trained_on, tuned, injected.head)
    evaluation = _evaluate(opened, folder, question, mode, progress, before)
    if question.task in HEAD_TASKS.values() or not assemble.objective_of(opened.recipe).writes:
        return evaluation  # what reads writes nothing, so there is nothing that it could forget to write
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


def measure_fine_tuned(opened: Opened, question: Question, injected: Injected, progress: Progress) -> Measured:
    """The trained model alone on the test rows; its records are kept, and no table is written."""
    context = replace(
        context_of(opened, question),
        adapter_disabled=injected.disabled,
        tuned_fingerprint=_weights(opened),
        head=injected.head,
        on_progress=_told(progress),
    )
    settings = opened.recipe.evaluation
    options = Options(opened.folder.path, question.primary, settings.confidence, opened.recipe.seed)
    system = {FINE_TUNED: _fine_tuned_of(opened.recipe)}
    with progress.stage("evaluate:fine_tuned", f"fine_tuned on {len(question.test):,} test rows"):
        _, measured = next(measure(system, question.test, context, question.metrics, options))
    return measured


def _fine_tuned_of(recipe: Recipe) -> System:
    """The recipe's own, whose records are kept under this name; else one without settings."""
    own = assemble.systems_of(recipe).get(FINE_TUNED)
    if own is not None and name_of(own) == FINE_TUNED:
        return own
    alone = build_part(SYSTEMS, {}, FINE_TUNED, ["evaluation", "systems", FINE_TUNED])
    return part(alone, System, "evaluation.systems")  # type: ignore[type-abstract]


def _weights(opened: Opened) -> str:
    """Changes when what was trained does."""
    named = [path for pattern in ("*.safetensors", SETTINGS) for path in (opened.folder / "adapter").glob(pattern)]
    return canonical_hash([sha256_of(path) for path in sorted(named)])


def require_passages(recipe: Recipe) -> None:
    """Check that a recipe whose systems retrieve says where passages come from.

    Raises:
        RecipeError: it does not.
    """
    names = [name for name, system in assemble.systems_of(recipe).items() if system.uses_retriever]
    if names and recipe.retrieval is None:
        raise RecipeError(
            f"evaluation.systems.{names[0]} answers with retrieved passages, and the recipe does not say where they "
            'come from: write a table [retrieval] with corpus = "corpus.jsonl", or leave the system out'
        )


def _retrievers(opened: Opened, progress: Progress) -> Mapping[str, Retriever]:
    """By name, the one that is used and those to compare it with; none where the recipe has no passages."""
    settings = opened.recipe.retrieval
    if settings is None:
        return {}
    with opened.folder.timed("retrieval"):
        return retrievers_in(settings, opened.loaded.device, progress)


def retriever_of(recipe: Recipe, device: torch.device, progress: Progress) -> Retriever:
    """The retriever that systems use; what was never embedded before is embedded.

    Raises:
        RecipeError: the recipe has no passages.
        LuthierError: as `build_retrievers`.
    """
    if recipe.retrieval is None:
        raise RecipeError('the recipe has no passages; write a table [retrieval] with corpus = "corpus.jsonl"')
    return retrievers_in(recipe.retrieval, device, progress)[used_name(recipe.retrieval)]


def retrievers_in(settings: RetrievalSettings, device: torch.device, progress: Progress) -> Mapping[str, Retriever]:
    """As `build_retrievers`, which tells `progress` how far it is."""
    with progress.stage("passages", f"reading {settings.corpus}"):
        host = Host(device, lambda text: progress.say(f"    {text}"), _told(progress))
        return build_retrievers(settings, host)


def used_of(retrievers: Mapping[str, Retriever], recipe: Recipe) -> Retriever | None:
    """The retriever that systems use; None where there are none."""
    return retrievers[used_name(recipe.retrieval)] if retrievers and recipe.retrieval is not None else None


def _measure_retrieval(
    opened: Opened, question: Question, retrievers: Mapping[str, Retriever], progress: Progress
) -> None:
    """Write `retrieval.json`, unless it is there and still true; without figures where no test row says what is right.

    Raises:
        RecipeError: a system wants a training with passages, and no training row asks anything.
        EvaluationError: a row names passages that the corpus does not hold.
    """
    rows, settings = conversations(question.test), opened.recipe.retrieval
    if settings is None:
        return
    used, confidence = used_name(settings), opened.recipe.evaluation.confidence
    passages = retrievers[used].passages
    if any(system.trained_on == "passages" for system in assemble.systems_of(opened.recipe).values()):
        require_gold(opened.data.train, passages)  # before the first training: the second one reads what they name
    if not judged_rows(rows, passages):
        opened.folder.write(RETRIEVAL, {**nothing_judged(retrievers, rows, used, confidence), "key": ""})
        progress.say("    retrieval is not measured: no test row names its passages or has a short answer to look for")
        return
    shown = [example_values(row) for row in rows]
    key = canonical_hash([[r.fingerprint for r in retrievers.values()], settings.top_k, shown, confidence])
    kept = opened.folder.read(RETRIEVAL)
    if kept is None or kept["key"] != key:
        with progress.stage("retrieval", "searching passages"), opened.folder.timed("retrieval"):
            groups_N = number_groups(group_keys(rows))
            found = measure_retrieval(retrievers, rows, groups_N, used, confidence, opened.recipe.seed)
        kept = {**found, "key": key}
        opened.folder.write(RETRIEVAL, kept)
    (best,) = (one for one in kept["retrievers"] if one["name"] == used)
    progress.say(f"    {used}: " + recall_sentence(best["metrics"]))


def _evaluate(
    opened: Opened,
    folder: RunFolder,
    question: Question,
    mode: Mode,
    progress: Progress,
    before: Evaluation | None = None,
) -> Evaluation:
    """Measure the systems of one training, or those of the base; the table holds those measured before, too."""
    recipe = opened.recipe
    systems = {
        name: system for name, system in assemble.systems_of(recipe).items() if system.trained_on == mode.trained_on
    }
    context = replace(
        context_of(opened, question, folder),
        adapter_disabled=mode.disabled,
        retriever=mode.retriever,
        tuned_fingerprint=mode.weights,
        head=mode.head or assemble.head_over_base(recipe, opened.loaded),
        on_progress=_told(progress),
        say=lambda text: progress.say(f"    {text}"),
    )
    options = Options(folder.path, question.primary, recipe.evaluation.confidence, recipe.seed)
    measuring = measure(systems, question.test, context, question.metrics, options)
    groups_N = number_groups(group_keys(question.test))
    measured: dict[str, Measured] = dict(before.measured) if before is not None else {}
    for name in systems:
        started = time.perf_counter()
        title = f"{name} on {len(question.test):,} test rows"
        with energy.measured() as spent, progress.stage(f"evaluate:{name}", title):
            _, measured[name] = next(measuring)
        if not measured[name].reused:  # all that it took: choosing a prompt and scoring, too
            folder.add_spent(f"evaluate:{name}", time.perf_counter() - started, spent.joules)
        progress.say("    " + _result(measured[name], groups_N, question, options))
    _ground(opened, folder, question, list(measured), progress)
    _style(opened, folder, question, measured, progress)
    abstain(folder, recipe, measured, groups_N, progress)
    return conclude(measured, groups_N, question.task, question.metrics, options)


def _ground(opened: Opened, folder: RunFolder, question: Question, names: Sequence[str], progress: Progress) -> None:
    """Judge the answers to rows that carry passages, and write `grounding.json`; nothing where no row does."""
    (folder / GROUNDING).unlink(missing_ok=True)  # of other settings, that had passages
    if question.task in SCORED_TASKS:
        return
    recipe = opened.recipe
    options = grounding.Options(
        recipe.evaluation.grounding.judge, recipe.model.device, recipe.evaluation.confidence, recipe.seed
    )
    carried = grounding.carried(folder.path, question.test, names)
    if not carried:
        return
    with progress.stage("grounding", "answers beside their passages"), folder.timed("grounding"):
        found = grounding.ground_systems(carried, question.test, options)
    folder.write(GROUNDING, found)
    for one in found["systems"]:
        progress.say(f"    {one['system']}: unsupported {one['shares']['unsupported']['counted']['value']:.3f}")


def _style(
    opened: Opened, folder: RunFolder, question: Question, measured: Mapping[str, Measured], progress: Progress
) -> None:
    """Measure how answers are written, ask the judge if there is one, and write `style.json`; nothing where answers are
    no free text."""
    (folder / STYLE).unlink(missing_ok=True)  # of another task
    if question.task != "text":
        return
    settings = opened.recipe.evaluation
    options = style.Options(settings.confidence, opened.recipe.seed)
    found = style.written(folder.path, conversations(question.test), list(measured))
    if not found.rows:
        return
    with progress.stage("style", "how answers are written"), folder.timed("style"):
        values = style.measure_systems(found, options)
        judge = _judge_of(opened, folder, question, measured, progress)
        if judge is not None:
            replies = folder.read(JUDGED) or {}
            values["preference"] = style.judge_systems(found, judge, options, replies)
            folder.write(JUDGED, replies)
    folder.write(STYLE, values)
    for pair in (values["preference"] or {}).get("pairs", ()):
        progress.say(
            f"    {pair['a']} beside {pair['b']}: preferred {pair['wins']} times, not {pair['losses']} times, "
            f"{pair['ties']} ties"
        )


def _judge_of(
    opened: Opened, folder: RunFolder, question: Question, measured: Mapping[str, Measured], progress: Progress
) -> style.Judge | None:
    """Whoever judges, and the system that others are compared with; None: no judge, or nothing to compare with."""
    settings = opened.recipe.evaluation.style
    against = settings.against or _best_untrained(opened.recipe, question, measured)
    if settings.judge is None or against is None or against not in measured:
        return None
    system = part(settings.judge, System, "evaluation.style.judge")  # type: ignore[type-abstract]
    context = replace(
        context_of(opened, question, folder),
        train=(),  # nothing of the task is told to a judge but what it is asked
        validation=(),
        max_new_tokens=ANSWER_TOKENS,
        task="text",
        json_schema=None,
        stop_loops=False,
        train_file=None,
        on_progress=_told(progress),
        say=lambda text: progress.say(f"    {text}"),
    )
    table = dump_part(settings.judge)
    return style.Judge(
        name=table.get("model") or " ".join(table["command"]),
        identity=canonical_hash([table, system.identity(context), dict(context.versions)]),
        criterion=settings.criterion,
        against=against,
        ask=lambda asked: [answer.output for answer in system.answer(asked, context).answers],
    )


def _best_untrained(recipe: Recipe, question: Question, measured: Mapping[str, Measured]) -> str | None:
    """The held-out system without training that has the best primary metric; the earlier one where they are equal."""
    metric = question.metrics[question.primary]
    values = {}
    for name, system in assemble.systems_of(recipe).items():
        statistics = measured[name].statistics.get(question.primary) if name in measured else None
        if statistics is not None and system.is_baseline and system.held_out:
            values[name] = metric.value(statistics)
    sign = 1.0 if metric.higher_is_better else -1.0
    return max(values, key=lambda name: sign * values[name], default=None)


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
        precision=opened.recipe.evaluation.precision,
        base_fingerprint=canonical_hash([opened.loaded.files.fingerprint, str(opened.loaded.dtype)]),
        json_schema=question.schema,
        long_prompt=read_long_prompt(opened.recipe.teacher),
        train_file=(folder / "data/train.jsonl").resolve(),
        responses=folder / "responses",
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
    recipe = settled(recipe, data.train)
    with progress.stage("open", f"loading {recipe.model.name}"):
        loaded = assemble.open_for_run(recipe, folder)
        template = assemble.template_for(recipe, loaded, assemble.longest_row(recipe, loaded))
    return Opened(recipe, folder, data, loaded, template, {}, None)
