"""What a system is: anything that answers the test rows, be it a model with a prompt or an external program.

All systems of an evaluation answer the same rows, in the same order, and are scored by the same metrics. A model system
runs inside `Context`, which can switch the adapter off: then the model is the base that every baseline is.
"""

import json
import math
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias

from luthier import __version__, registry
from luthier.config import Settings, Tree
from luthier.data.asked import item_of
from luthier.data.templates import Template
from luthier.data.write import message_values
from luthier.errors import EvaluationError
from luthier.evaluation.graders.base import ModelReply, SamplingParams
from luthier.evaluation.metrics.base import Metric, Prediction, TargetScore
from luthier.evaluation.rungs import RUNGS, UNTRAINED, Rung
from luthier.evaluation.systems._responses import Responses
from luthier.examples import Conversation, Document, Example, Judged, Message, Preference
from luthier.models.heads import Head
from luthier.models.load import LoadedModel
from luthier.rag.retriever import Retriever
from luthier.recipe import dump_part

if TYPE_CHECKING:
    from luthier.evaluation.long_prompt import LongPrompt

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with (what is being done, rows done, rows in all)."""


TrainedOn: TypeAlias = Literal["rows", "passages"]
"""The run's training on its rows as they are, or the second one, on the same rows with retrieved passages."""


def no_progress(_what: str, _done: int, _total: int) -> None:
    """Say nothing."""


def to_stderr(text: str) -> None:
    """Say it on standard error: what must be said is said, even where nobody thought of listening."""
    print(text, file=sys.stderr, flush=True)


def installed_versions() -> dict[str, str]:
    """Versions of this program and of the libraries that an answer or a score may depend on."""
    libraries = ("torch", "transformers", "bm25s", "rouge-score", "jsonschema")
    return {"luthier": __version__, **{name: version(name) for name in libraries}}


@dataclass(frozen=True)
class Context:
    """What a system may use. Test rows are not in it: a system gets those it must answer, for their prompts."""

    loaded: LoadedModel
    """The model, with the adapter in it if one was trained."""
    template: Template
    """The one that the model was trained with."""
    adapter_disabled: Callable[[], AbstractContextManager[None]]
    """`with context.adapter_disabled():` the model is the base. Without an adapter it does nothing."""
    train: Sequence[Conversation]
    """Where few-shot examples come from; none for tasks without a written answer."""
    validation: Sequence[Conversation]
    """Where prompts are chosen; none for tasks without a written answer."""
    max_new_tokens: int
    """The longest answer."""
    task: str
    """`json`, `label`, `labels`, `number`, `spans`, `tool_calls`, `answers` or `text`; `language`, `pairs`,
    `rewards` or `steps`, where nothing is written and rows are scored."""
    primary_metric: Metric
    """What prompts are chosen by."""
    base_fingerprint: str
    """Changes when the base model or the template does."""
    tuned_fingerprint: str | None = None
    """Changes when the trained weights do; None before training."""
    head: Head | None = None
    """Judges replies (tasks `rewards` and `steps`): the trained one, before training the base's own or a fresh one. Or
    the trained one that says something of what is asked."""
    precision: float = 0.95
    """Wanted share of right answers among those that a system gives that may abstain."""
    json_schema: Mapping[str, Any] | None = None
    """What answers must satisfy (task `json`)."""
    retriever: Retriever | None = None
    """Finds passages of the recipe's corpus; None where the recipe has no `[retrieval]`."""
    long_prompt: "LongPrompt | None" = None
    """What the recipe's teacher reads before a row; None where it reads no more than the trained model does."""
    train_file: Path | None = None
    """The training rows as JSONL, for external programs."""
    recipe_folder: Path = Path(".")
    """Where external programs run."""
    score_targets: bool = False
    """Whether model systems must also give the log-probabilities of the wanted replies."""
    stop_loops: bool = False
    """Whether an answer that says one span over and over is stopped; not where training replies do so, too."""
    alone_rows: int = 0
    """So many rows are asked once more, each alone, for the time that one who waits for an answer will see."""
    batch_tokens: int = 16384
    """Most tokens held at once while generating."""
    on_progress: Progress = no_progress
    """Told how far it is."""
    say: Callable[[str], None] = to_stderr
    """Told what a reader must know at once, such as that rows leave this machine."""
    responses: Path | None = None
    """Where answers that were paid for are kept; None: only as long as the process lives."""
    versions: Mapping[str, str] = field(default_factory=installed_versions)
    """Of the software; records made with other versions are not used again."""


def alone(count: int, context: Context, ask: Callable[[int], object]) -> dict[int, float]:
    """Seconds of some of `count` rows, spread over all of them, each asked alone by its place.

    In a batch what prompts share is computed once, and many rows hide how long one of them takes.
    """
    some, found = min(context.alone_rows, count), {}
    for place in (number * count // some for number in range(some)):
        start = time.perf_counter()
        ask(place)
        found[place] = time.perf_counter() - start
    return found


def with_answer_room(context: Context, factor: float) -> Context:
    """The same with answers `factor` times as long."""
    return replace(context, max_new_tokens=math.ceil(context.max_new_tokens * factor))


@dataclass(frozen=True)
class Answer:
    """What a system answered to one row."""

    id: str
    prompt: tuple[Message, ...]
    """The messages that it was asked with; a few-shot prompt is longer than the row's own."""
    output: str
    reply: Message | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    sources: tuple[str, ...] = ()
    """Ids of the passages that stand in the prompt, in their order."""
    finished: bool | None = None
    """False: the answer ran into `max_new_tokens`, or was stopped in a loop."""
    target_score: TargetScore | None = None
    rejected_score: TargetScore | None = None
    """Of a preference pair only."""
    rewards: tuple[float, ...] | None = None
    """In the tasks `rewards` and `steps` only."""
    probabilities: Mapping[str, float] | None = None
    """Of every label, calibrated, where the system tells them."""
    alone_seconds: float | None = None
    """How long it took to answer this row alone; None where that was not measured."""


@dataclass(frozen=True)
class Answers:
    """The answers to all rows, in their order, and what the system has to say about how it came to them."""

    answers: list[Answer]
    seconds: float | None = None
    """Time that answering took, without choosing a prompt or scoring targets; None: all of `answer` was answering."""
    details: dict[str, Any] = field(default_factory=dict)


GRADER_TOKENS = 1024
"""Longest reply to a grader that does not say (`sampling_params.max_completions_tokens`)."""


class AskedByGraders(Protocol):
    """A model that graders ask; may be used by several threads."""

    at_once: int
    """How many may ask at the same time."""
    note: str
    """What is worth saying of it before it is asked."""
    identity: str
    """Changes when its answers may, its settings being the same."""

    def ask(self, messages: Sequence[Message], sampling: SamplingParams) -> ModelReply:
        """Its reply.

        Raises:
            LuthierError: there is none.
        """
        ...


@dataclass(frozen=True)
class Desk:
    """Where a system that is asked over the network keeps what it is told, and who hears of it."""

    responses: Path | None = None
    """As of `Context`."""
    on_progress: Progress = no_progress
    """As of `Context`."""
    say: Callable[[str], None] = to_stderr
    """As of `Context`."""
    _opened: dict[str, Responses] = field(default_factory=dict, init=False, repr=False, compare=False)

    def kept(self, name: str) -> Responses:
        """What was answered before, of the file of this name; read once, however often it is asked for.

        Raises:
            StorageError: the file cannot be read.
        """
        if name not in self._opened:
            self._opened[name] = Responses(None if self.responses is None else self.responses / name)
        return self._opened[name]


class System(Settings, ABC):
    """Implement `answer` in one new file beside this one; nothing else changes."""

    rung: ClassVar[Rung] = "prompt"
    """Where it stands on the ladder of the verdict; what is not trained is what training must beat."""
    trained_on: ClassVar[TrainedOn | None] = None
    """Which of the run's trainings its answers depend on; None: none, the model is the base."""
    is_model: ClassVar[bool] = True
    """Whether it is a model in this process, with tokens and log-probabilities; a program or an endpoint is none."""
    uses_retriever: ClassVar[bool] = False
    """Whether its answers depend on the passages of `[retrieval]`."""
    gives_probabilities: ClassVar[bool] = False
    """Whether it tells the probability of every label (task `label`), whatever was trained."""
    changes_no_answer: ClassVar[frozenset[str]] = frozenset({"note", "held_out"})
    """Settings that may become others while answers are collected."""

    note: str = ""
    """What a reader of the report must know about this system."""
    held_out: bool = True
    """False: it was made with these very rows in sight; it is shown, but never counts as a baseline."""

    @property
    def is_baseline(self) -> bool:
        """Whether it is a language model that was not trained: what the fine-tuned model must beat."""
        return self.rung in UNTRAINED

    @property
    def uses_adapter(self) -> bool:
        """Whether its answers depend on trained weights."""
        return self.trained_on is not None

    @property
    def place(self) -> int:
        """For sorting: what needs no training first, in the order of the recipe, then what was trained, by its rung."""
        return RUNGS.index(self.rung) if self.uses_adapter else -1

    def identity(self, context: Context) -> str | None:
        """What its answers depend on beside its settings and the context: a digest of another model's files, say.

        Raises:
            ModelError: that cannot be found out.
        """
        return None

    def deciding(self) -> Tree:
        """The settings, with the type, by which its answers would be others."""
        return {key: value for key, value in dump_part(self).items() if key not in self.changes_no_answer}

    def for_graders(self, folder: Path, device: str) -> AskedByGraders:
        """The model behind it, for graders of a training to ask.

        Args:
            folder: where answers are kept that are paid for.
            device: that a model on this machine is opened on.

        Raises:
            EvaluationError: it is none that can be asked, or not from here.
            ModelError: it cannot be had or used.
        """
        raise EvaluationError(f"graders cannot ask a system of the type {registry.name_of(self)!r}")

    @abstractmethod
    def answer(self, rows: Sequence[Example], context: Context) -> Answers:
        """One answer to each row, in their order.

        Raises:
            EvaluationError: the system cannot answer these rows.
        """

    def sample(
        self, rows: Sequence[Conversation], tokens: int, temperature: float, seeds: Sequence[int], desk: Desk
    ) -> list[Answer]:
        """One drawn answer to each row, in their order, of at most so many tokens; the same row may stand there often.

        Raises:
            EvaluationError: the system only answers with what it thinks best, or as `answer`.
        """
        raise EvaluationError(
            f"a system of type {registry.name_of(self)!r} gives one answer to a row, and none is drawn from it; "
            'name one of type "remote"'
        )

    def letters(
        self, rows: Sequence[Conversation], tokens: int, with_logprobs: bool, desk: Desk
    ) -> list[tuple[str, dict[str, float]]]:
        """What it writes to each row's own prompt, the likeliest tokens, and of its first token the likeliest ones with
        their log-probabilities; none where they are not asked for, or are not told.

        Raises:
            EvaluationError: it tells no such thing, or as `answer`.
        """
        raise EvaluationError(f"a system of type {registry.name_of(self)!r} cannot be asked for a letter")

    def open_here(self, device: str) -> tuple[LoadedModel, Template] | None:
        """The model behind it, opened on this machine, and its template; None: it is elsewhere.

        Raises:
            ModelError: it cannot be had or used.
        """
        return None


def require_questions(rows: Sequence[Example], system: str) -> list[Conversation]:
    """The rows, each of which asks for a written answer.

    Raises:
        EvaluationError: a row is raw text or a preference pair, which `system` cannot score.
    """
    asked = []
    for row in rows:
        if not isinstance(row, Conversation):
            kind = "raw text" if isinstance(row, Document) else "a preference pair"
            raise EvaluationError(
                f"the system {system} writes answers, and row {row.id} ({row.where}) is {kind}, which is not answered "
                "but scored; leave the system out of evaluation.systems (zero_shot and fine_tuned can score)"
            )
        asked.append(row)
    return asked


def prediction(row: Example, answer: Answer) -> Prediction:
    """An answer beside what was wanted."""
    return Prediction(
        id=answer.id,
        prompt=answer.prompt,
        output=answer.output,
        target=_target(row),
        expected=row.completion if isinstance(row, Conversation) else None,
        reply=answer.reply,
        target_score=answer.target_score,
        rejected_score=answer.rejected_score,
        rewards=answer.rewards,
        probabilities=answer.probabilities,
        tools=row.tools if isinstance(row, Conversation) else (),
        extra=row.extra,
        item=item_of(row) if isinstance(row, Conversation) else {},
    )


def _target(row: Example) -> Any:
    """What is wanted: the target that the data gives, a reply's text, or the raw text itself."""
    if isinstance(row, Document):
        return row.text
    if isinstance(row, Preference | Judged):
        reply = row.chosen if isinstance(row, Preference) else row.reply
        return "\n".join(message_text(message) for message in reply if message.role == "assistant")
    if row.target is not None:
        return row.target
    return message_text(row.completion) if row.completion is not None else ""


def require_measurable(rows: Iterable[Conversation], metrics: Iterable[Metric]) -> None:
    """Score an empty answer and the wanted one to every row: a bad target is found before anything is generated.

    Metrics of log-probabilities look at no target.

    Raises:
        EvaluationError: a row's target, or what it lists beside it, is not of the kind that a metric needs.
    """
    scored = [metric for metric in metrics if metric.needs == "generation" and metric.reads_target]
    for row in rows:
        wanted = row.completion if row.completion is not None else Message("assistant", _as_text(row.target))
        for answer in (Answer(row.id, row.prompt, ""), Answer(row.id, row.prompt, message_text(wanted), wanted)):
            for metric in scored:
                metric.statistics(prediction(row, answer))


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def message_text(message: Message) -> str:
    """An assistant message as one text: its content, then a line of JSON for each tool call."""
    calls = [
        json.dumps({"name": call.name, "arguments": dict(call.arguments)}, ensure_ascii=False)
        for call in message.tool_calls
    ]
    return "\n".join([message.content, *calls] if message.content or not calls else calls)


def with_instruction(messages: tuple[Message, ...], instruction: str) -> tuple[Message, ...]:
    """The messages with `instruction` at the end of the system message; one is put first if there is none."""
    if not instruction:
        return messages
    if messages and messages[0].role in ("system", "developer"):
        head = messages[0]
        content = f"{head.content.rstrip()}\n{instruction}" if head.content.strip() else instruction
        return (Message(head.role, content, name=head.name), *messages[1:])
    return (Message("system", instruction), *messages)


def after_question(messages: tuple[Message, ...], text: str) -> tuple[Message, ...]:
    """The messages with `text` after what the user wrote last; as a message of its own if no user wrote anything."""
    for index in range(len(messages) - 1, -1, -1):
        message = messages[index]
        if message.role == "user":
            asked = Message("user", f"{message.content.rstrip()}\n\n{text}", name=message.name)
            return (*messages[:index], asked, *messages[index + 1 :])
    return (*messages, Message("user", text))


def with_examples(messages: tuple[Message, ...], examples: Sequence[Conversation]) -> tuple[Message, ...]:
    """System messages, then each example as earlier turns without its own system message, then the question."""
    start = next((i for i, m in enumerate(messages) if m.role not in ("system", "developer")), len(messages))
    turns = [
        message
        for example in examples
        for message in (*example.prompt, example.completion)
        if message is not None and message.role not in ("system", "developer")
    ]
    return (*messages[:start], *turns, *messages[start:])


def messages_as_values(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as plain values, for records and external programs."""
    return [message_values(message) for message in messages]
