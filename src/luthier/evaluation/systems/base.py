"""What a system is: anything that answers the test rows, be it a model with a prompt or an external program.

All systems of an evaluation answer the same rows, in the same order, and are scored by the same metrics. A model system
runs inside `Context`, which can switch the adapter off: then the model is the base that every baseline is.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from luthier.config import Settings
from luthier.data.templates import Template
from luthier.data.write import message_values
from luthier.evaluation.metrics.base import Metric, Prediction, TargetScore
from luthier.examples import Conversation, Message
from luthier.models.load import LoadedModel

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with (what is being done, rows done, rows in all)."""


def no_progress(_what: str, _done: int, _total: int) -> None:
    """Say nothing."""


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
    """Where few-shot examples come from."""
    validation: Sequence[Conversation]
    """Where prompts are chosen."""
    max_new_tokens: int
    """The longest answer."""
    task: str
    """`json`, `label`, `tool_calls` or `text`."""
    primary_metric: Metric
    """What prompts are chosen by."""
    base_fingerprint: str
    """Changes when the base model or the template does."""
    tuned_fingerprint: str | None = None
    """Changes when the trained weights do; None before training."""
    json_schema: Mapping[str, Any] | None = None
    """What answers must satisfy (task `json`)."""
    train_file: Path | None = None
    """The training rows as JSONL, for external programs."""
    recipe_folder: Path = Path(".")
    """Where external programs run."""
    score_targets: bool = False
    """Whether model systems must also give the log-probabilities of the wanted replies."""
    batch_tokens: int = 16384
    """Most tokens held at once while generating."""
    on_progress: Progress = no_progress
    """Told how far it is."""


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
    finished: bool | None = None
    """False: the answer ran into `max_new_tokens`."""
    target_score: TargetScore | None = None


@dataclass(frozen=True)
class Answers:
    """The answers to all rows, in their order, and what the system has to say about how it came to them."""

    answers: list[Answer]
    seconds: float | None = None
    """Time that answering took, without choosing a prompt or scoring targets; None: all of `answer` was answering."""
    details: dict[str, Any] = field(default_factory=dict)


class System(Settings, ABC):
    """Implement `answer` in one new file beside this one; nothing else changes."""

    is_baseline: ClassVar[bool] = True
    """Whether it is what the fine-tuned model must beat."""
    uses_adapter: ClassVar[bool] = False
    """Whether its answers depend on the trained weights."""
    is_model: ClassVar[bool] = True
    """Whether it is the run's model; if not, it has no tokens and no log-probabilities."""

    note: str = ""
    """What a reader of the report must know about this system."""
    held_out: bool = True
    """False: it was made with these very rows in sight; it is shown, but never counts as a baseline."""

    @abstractmethod
    def answer(self, rows: Sequence[Conversation], context: Context) -> Answers:
        """One answer to each row, in their order.

        Raises:
            EvaluationError: the system cannot answer these rows.
        """


def prediction(row: Conversation, answer: Answer) -> Prediction:
    """An answer beside what was wanted."""
    expected = row.completion
    target = row.target if row.target is not None else message_text(expected) if expected is not None else ""
    return Prediction(
        id=answer.id,
        prompt=answer.prompt,
        output=answer.output,
        target=target,
        expected=expected,
        reply=answer.reply,
        target_score=answer.target_score,
        extra=row.extra,
    )


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


def messages_as_values(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as plain values, for records and external programs."""
    return [message_values(message) for message in messages]
