"""Memory, time and money of a run before it begins.

Memory is predicted for every stage of a run, from the model's shape and the largest batch of the stage. Time is
measured: one typical training step and the answers to a few test rows are timed on this machine and multiplied.
"""

import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import date

import numpy as np
import torch

from luthier import assemble, prices, registry
from luthier.data.source import micro_batches
from luthier.engine.fit import MARGIN, Needs, fit, for_another, needs_of, predict
from luthier.engine.rollout import Rollouts
from luthier.engine.run import Run
from luthier.evaluate import Question, context_of, question_of
from luthier.evaluation.answering import SCORED_TOKENS, answer_with_model
from luthier.evaluation.forgetting import BATCH_TOKENS
from luthier.evaluation.systems.base import with_examples
from luthier.evaluation.task import SCORED_TASKS
from luthier.examples import Conversation
from luthier.models.forest import build_batch
from luthier.models.generate import MAX_ROWS, PREFILL_TOKENS
from luthier.models.load import LoadedModel, wait_for
from luthier.models.memory import (
    Load,
    Memory,
    Shape,
    available_bytes,
    loading_bytes,
    predict_forward,
    shape_of,
)
from luthier.models.scorer import forest_mode
from luthier.models.sizes import SIZES
from luthier.objectives.base import OnlineObjective
from luthier.prices import Machine
from luthier.progress import Silent
from luthier.rag.retriever import read_passages
from luthier.report.plan import Offer, offers
from luthier.report.schema import System, Tokens
from luthier.stages import Opened, asked_of, taught
from luthier.teaching.live import made_up
from luthier.teaching.plan import planned

LARGEST_MICRO_BATCH = 2**17  # tokens; nobody needs more
COUNTED_PASSAGES = 50  # for the mean length of a passage
COUNTED_ROWS = 100  # test rows whose prompts are counted; more tell the mean no better
LOADER_BYTES = 500 * 2**20  # the process before its first pass
GATES_SECONDS = 60.0  # the gates on the model, for the default one on two cores
# for a plan without a measurement: untuned answers ramble, several prompts are tried, and trained answers end
_EFFORT = {"zero_shot": 1.6, "few_shot": 1.4, "optimized_prompt": 5.0, "fine_tuned": 0.4}
# the share of the machine's matrix rate that training reaches, shared tokens counted for each row; speed of writing
_TRAINING_SHARE, _WRITING_TOKENS_PER_SECOND = 0.5, 150.0


@dataclass(frozen=True)
class Room:
    """What this machine's memory would hold of the recipe."""

    available: int
    """Bytes that the process may hold."""
    tokens: int
    """The largest micro-batch that fits."""
    rows: int
    """How many rows of middle length that is."""
    model: str | None
    """The largest known model that fits with the recipe's micro-batches; None: not even the smallest."""
    model_bytes: int
    """Its predicted peak."""
    beyond: str | None
    """The next larger one, which does not fit; None: all do."""
    beyond_bytes: int
    """Its predicted peak."""


@dataclass(frozen=True)
class Estimate:
    """What a run will take."""

    memory: Memory
    """Of the stage that needs most."""
    memory_stage: str
    room: Room
    steps: int
    tokens: int
    """Training tokens over all steps, shared ones counted for each row."""
    step_seconds: float
    training_seconds: float
    passages_seconds: float
    """Of the second training, on rows with retrieved passages; 0 where no system needs one."""
    evaluation_seconds: float
    systems: tuple[System, ...]
    """Each with the tokens that its answers to the test rows will take, None where they cannot be told ahead."""
    machine: Machine
    usd: float
    """The run on this machine."""
    offers: tuple[Offer, ...]
    """The same training, and answers, at every price of the book that could do it."""

    @property
    def seconds(self) -> float:
        """Training and evaluation together."""
        return self.training_seconds + self.passages_seconds + self.evaluation_seconds


@dataclass(frozen=True)
class TrainingEstimate:
    """What a training will take."""

    memory: int
    """Predicted peak, in bytes."""
    available: int
    """Bytes that the process may hold now."""
    steps: int
    tokens: int
    """As of `Estimate`."""
    step_seconds: float
    seconds: float


def predict_training(opened: Opened, run: Run, needs: Needs | None = None) -> Mapping[str, Memory]:
    """Peak bytes of loading the model and of training it: what `luthier train` takes."""
    training, loading = predict(run, needs), predict_loading(opened.loaded)
    return {"loading": replace(loading, process=min(training.process, loading.process)), "training": training}


def predict_loading(loaded: LoadedModel) -> Memory:
    """Peak bytes of loading a model, in the memory of the machine."""
    return Memory(LOADER_BYTES, loading_bytes(shape_of(loaded.model), loaded.dtype, loaded.files.stored_bytes), 0, 0, 0)


def predict_stages(opened: Opened, run: Run, question: Question, needs: Needs | None = None) -> Mapping[str, Memory]:
    """Peak bytes of each stage of a whole run: the model also answers, and is scored."""
    shape, dtype = shape_of(opened.loaded.model), opened.loaded.dtype
    if assemble.adapter_of(opened.recipe).overwrites_base:  # answers are computed in the type of its weights
        dtype = torch.float32
    stages = predict_training(opened, run, needs)
    training = stages["training"]
    return {
        **stages,
        "answering": predict_forward(training, shape, dtype, _answering_load(opened, question)),
        "scoring": predict_forward(training, shape, dtype, _scoring_load(opened, question)),
    }


def room_for(opened: Opened, run: Run, needs: Needs, available: int | None = None) -> Room:
    """The largest micro-batch and the largest known model that fit with the margin of the prediction.

    Args:
        opened: the run's parts.
        run: with the adapter in its model.
        needs: of that run.
        available: bytes; None: those of the run's device.
    """
    given = available_bytes(run.device) if available is None else available
    largest = fit(run, LARGEST_MICRO_BATCH, given, needs)
    lengths = sorted(len(row.ids) for unit in opened.units["train"] for row in unit)
    overwrites = assemble.adapter_of(opened.recipe).overwrites_base
    own = shape_of(opened.loaded.model)
    own = own if overwrites else replace(own, parameters=own.parameters - needs.trained)
    totals, tokens = {}, max(size.tokens for size in needs.micro_batches)
    for name, shape in SIZES.items():
        other = for_another(needs, own, shape, overwrites=overwrites)
        training = other.memory_of(tokens).total
        # files are taken to be in bfloat16
        loading = other.process + loading_bytes(_held_like(own, shape), opened.loaded.dtype, 2 * shape.parameters)
        totals[name] = max(training, loading)
    fitting = [name for name, total in totals.items() if total * MARGIN <= given]
    over = [name for name, total in totals.items() if total * MARGIN > given]
    model, beyond = (fitting[-1] if fitting else None), (over[0] if over else None)
    return Room(
        available=given,
        tokens=largest.tokens if largest.fits else 0,
        rows=largest.tokens // lengths[len(lengths) // 2] if largest.fits else 0,
        model=model,
        model_bytes=totals.get(model or "", 0),
        beyond=beyond,
        beyond_bytes=totals.get(beyond or "", 0),
    )


def _held_like(own: Shape, other: Shape) -> Shape:
    """The other shape, its matrices quantized where those of this one are."""
    if not own.quantized:
        return other
    matrices = other.parameters - (1 if other.tied else 2) * other.vocabulary * other.hidden
    return replace(other, quantized=matrices, quantized_bytes=matrices * own.quantized_bytes // own.quantized)


def _answering_load(opened: Opened, question: Question) -> Load:
    """The largest batch of prompts, and of rows in flight, each as long as the longest training row can make it."""
    systems = assemble.systems_of(opened.recipe).values()
    if question.task in SCORED_TASKS or not any(system.is_model for system in systems):
        return Load(0, 0)
    longest = max(len(row.ids) for unit in opened.units["train"] for row in unit)
    # examples in a prompt, as `few_shot` puts them
    shots = max(s.model_dump().get("shots", 0) for s in systems if s.is_model)
    rows = min(max(len(question.test), len(question.validation)), MAX_ROWS)
    tokens = rows * (longest * (1 + shots) + question.max_new_tokens)
    return Load(min(tokens, PREFILL_TOKENS), rows, min(tokens, context_of(opened, question).batch_tokens))


def _scoring_load(opened: Opened, question: Question) -> Load:
    """The largest batch of rows whose given tokens are scored: general text, multiple choice, or wanted replies."""
    forgetting = opened.recipe.evaluation.forgetting
    text = min(BATCH_TOKENS, forgetting.max_tokens) if forgetting.text != "none" else 0
    if question.task not in SCORED_TASKS and all(m.needs != "logprobs" for m in question.metrics.values()):
        return Load(PREFILL_TOKENS if forgetting.multiple_choice != "none" else text, text)
    rows = np.array([(row.trained_tokens, len(row.ids)) for unit in opened.units["train"] for row in unit])
    trained, tokens = rows.sum(0).tolist()
    share = trained / tokens
    return Load(SCORED_TOKENS, max(text, int(SCORED_TOKENS * share)))


def estimate(opened: Opened) -> Estimate:
    """Predict and measure for a run whose rows passed the gates; its model cannot be trained afterwards."""
    recipe, run = opened.recipe, _built(opened)
    question = question_of(opened)
    needs = needs_of(run)
    stages, room = predict_stages(opened, run, question, needs), room_for(opened, run, needs)
    largest = max(stages, key=lambda stage: stages[stage].total)
    sampling, per_answer = _sampling_seconds(run)
    step_seconds = _step_seconds(run) + sampling
    book = prices.open_book(recipe.cost)
    machine = prices.own_machine(recipe.cost, book)
    writing, wordy = _writing(opened, question)
    systems = planned_systems(opened, question, wordy)
    tokens = _tokens(run)
    training = _training_seconds(run, step_seconds, per_answer or _passing_seconds(run, step_seconds - sampling))
    second = training * _longer_with_passages(opened)
    spent = training + second + writing
    return Estimate(
        memory=stages[largest],
        memory_stage=largest,
        room=room,
        steps=run.steps,
        tokens=tokens,
        step_seconds=step_seconds,
        training_seconds=training,
        passages_seconds=second,
        evaluation_seconds=writing,
        systems=systems,
        machine=machine,
        usd=machine.usd(spent),
        offers=tuple(offers(recipe.cost, book, machine, systems, (tokens, spent), date.today())),
    )


def estimate_training(opened: Opened) -> TrainingEstimate:
    """What `luthier train` alone will take, as a job does it; the model cannot be trained afterwards."""
    run = _built(opened)
    peak = max(predict_training(opened, run).values(), key=lambda memory: memory.total)
    sampling, per_answer = _sampling_seconds(run)
    passing = _step_seconds(run)
    seconds = _training_seconds(run, passing + sampling, per_answer or _passing_seconds(run, passing))
    return TrainingEstimate(
        peak.total, available_bytes(run.device), run.steps, _tokens(run), passing + sampling, seconds
    )


def _built(opened: Opened) -> Run:
    start = None if opened.start is None else opened.start.folder
    trainable = assemble.make_trainable(opened.recipe, opened.loaded, start)
    trainable = replace(trainable, asked=asked_of(opened, to_train=False))
    plan, objective = planned(opened.recipe, opened.loaded), assemble.objective_of(opened.recipe)
    lesson = objective.lesson()
    if plan is not None and lesson is not None:
        asked_once = replace(trainable, models=replace(trainable.models, teacher=made_up(lesson, opened.loaded)))
        is_kept = not isinstance(objective, OnlineObjective)  # another one stays in memory, so it counts
        trainable = asked_once if is_kept else taught(plan, opened, trainable, Silent())
    return assemble.build_run(opened.recipe, opened.loaded, trainable, opened.units, "", opened.folder.path)


def _tokens(run: Run) -> int:
    return sum(
        len(row.ids) for number in range(1, run.steps + 1) for unit in run.source.planned(number) for row in unit
    )


def _training_seconds(run: Run, step_seconds: float, per_validation_row: float) -> float:
    """All steps with their validations."""
    validations = run.steps // run.validate_every + 1
    return run.steps * step_seconds + validations * len(run.validation) * per_validation_row


def _passing_seconds(run: Run, step_seconds: float) -> float:
    """Seconds of one row's forward pass, about a third of its part of a step."""
    return step_seconds / run.settings.rows_per_step / 3


def _longer_with_passages(opened: Opened) -> float:
    """How many times as long as the first training the second one takes, by its tokens; 0 where there is none.

    Passages are taken to be of the mean length of some of the corpus; nothing is searched or embedded.
    """
    settings = opened.recipe.retrieval
    if settings is None or all(s.trained_on != "passages" for s in assemble.systems_of(opened.recipe).values()):
        return 0.0
    passages = read_passages(settings)
    some = passages[:: max(1, len(passages) // COUNTED_PASSAGES)]
    read = [len(opened.loaded.tokenizer(p.titled, add_special_tokens=False)["input_ids"]) for p in some]
    rows = [len(row.ids) for unit in opened.units["train"] for row in unit]
    added = min(settings.top_k, len(passages)) * sum(read) / len(read)
    return 1 + added / (sum(rows) / len(rows))


def _step_seconds(run: Run) -> float:
    """Seconds of one optimizer step: the second and third of three, with the gradients thrown away."""
    seconds = []
    for number in range(1, 4):
        started = time.perf_counter()
        groups = micro_batches(run.source.planned(number), run.micro_batch_tokens)
        with torch.no_grad():
            batches = [build_batch(rows).to(run.device) for rows in groups]
            batches = list(run.objective.whole_step(run.models, batches, {}))
        for batch in batches:
            with forest_mode(run.model):
                run.objective.loss(run.models, batch).total.backward()
        run.optimizer.zero_grad(set_to_none=True)
        wait_for(run.device)
        seconds.append(time.perf_counter() - started)
    return sum(seconds[1:]) / 2


def _sampling_seconds(run: Run) -> tuple[float, float]:
    """Seconds that a step waits for its replies, and those of one reply: those of the first rollout; 0 where the rows
    are given."""
    if not isinstance(run.source, Rollouts):
        return 0.0, 0.0
    with closing(run.source.cast):
        run.source.cast.open()  # once for the whole training
        plan, started = run.source.plan, time.perf_counter()
        _, *replies = run.source.rollout(1)
        seconds = time.perf_counter() - started
    return seconds / (plan.updates * plan.minibatches), seconds / len(replies)


def _writing(opened: Opened, question: Question) -> tuple[float, float | None]:
    """Seconds for all model systems to answer the test rows, or to score them, from a sample; and the mean tokens of
    its answers, None where nothing is written."""
    sample = question.test[:8]
    context = context_of(opened, question)
    answers, seconds = answer_with_model(sample, [row.prompt for row in sample], context, "estimate")
    per_row = seconds / len(sample)
    models = sum(system.is_model for system in assemble.systems_of(opened.recipe).values())
    written = [answer.completion_tokens for answer in answers if answer.completion_tokens]
    return per_row * len(question.test) * models, sum(written) / len(written) if written else None


def planned_systems(opened: Opened, question: Question, wordy: float | None) -> tuple[System, ...]:
    """The systems of the recipe with the tokens of their answers to the test rows, as far as they can be told.

    Prompts are those of the rows, with as many training rows before them as `shots` says; additions that compete on
    validation rows are not counted. The trained model is taken to answer as long as the training replies are, the base
    as long as in the sample (`wordy` tokens). Systems of other types find their prompt only when they run.
    """
    test = [row for row in question.test[:COUNTED_ROWS] if isinstance(row, Conversation)]
    rows = [row for unit in opened.units["train"] for row in unit]
    reply = sum(row.trained_tokens for row in rows) / len(rows)
    n, found = len(question.test), []

    def prompt_tokens(shots: int) -> float:
        asked = [(with_examples(row.prompt, question.train[:shots]), row.tools) for row in test]
        return sum(len(opened.template.prompt_ids(*each)) for each in asked) / max(len(asked), 1)

    for name, settings in opened.recipe.evaluation.systems.items():
        kind = registry.name_of(settings)
        written = reply if kind == "fine_tuned" else wordy
        tokens = None
        if kind in ("zero_shot", "few_shot", "fine_tuned") and question.task not in SCORED_TASKS and written:
            prompt = prompt_tokens(settings.model_dump().get("shots", 0))
            tokens = Tokens(prompt=round(prompt * n), completion=round(written * n))
        found.append(System(name=name, type=kind, n=n, tokens=tokens))
    return tuple(found)


def plan(opened: Opened) -> Mapping[str, float]:
    """A rough plan of seconds by stage, for the time to finish; the stages' own pace corrects it as they go."""
    shape = shape_of(opened.loaded.model)
    rate = _matrix_rate(opened.loaded.dtype, opened.loaded.device)
    rows = opened.units["train"]
    tokens = (
        sum(len(row.ids) for unit in rows for row in unit) / max(len(rows), 1) * opened.recipe.training.rows_per_step
    )
    steps = assemble.planned_steps(opened.recipe, len(rows))
    training = steps * tokens * 6 * shape.parameters / (rate * _TRAINING_SHARE)
    tests = min(len(opened.data.test), opened.recipe.evaluation.max_rows or len(opened.data.test))
    writing = tests * 60 / _WRITING_TOKENS_PER_SECOND * shape.parameters / 135e6
    systems = {
        f"evaluate:{name}": writing * _EFFORT.get(registry.name_of(system), 1.0)
        for name, system in assemble.systems_of(opened.recipe).items()
        if system.is_model
    }
    gates = GATES_SECONDS * shape.parameters / 135e6
    return {"ability": 20.0, "model": gates, "train": training, "forgetting": 20.0, **systems}


def _matrix_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Floating point operations per second of a product of the usual size on this device."""
    a, b = torch.ones(512, 576, dtype=dtype, device=device), torch.ones(1536, 576, dtype=dtype, device=device)
    torch.nn.functional.linear(a, b)
    wait_for(device)
    started = time.perf_counter()
    for _ in range(5):
        torch.nn.functional.linear(a, b)
    wait_for(device)
    return 5 * 2 * 512 * 576 * 1536 / (time.perf_counter() - started)
