"""What objectives share that train a head to say something of a text: what is read of a row, and what is wanted.

A row is what was asked, without a reply, and the head reads its last token. As `chat` it is the prompt that is served
before a reply, system message and all; as `text` the text alone, which any program that has the tokenizer makes alike.
Of the default model, frozen, a linear classifier over these hidden states gets 0.77 of the rows of 77 classes right
where they end a chat with an instruction, 0.72 without one, 0.69 at the last token of a text, 0.51 at an end-of-text
token behind it; and 0.74 as a mean over all tokens of a text, which is left out: no program reads it so.
"""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal, Self, TypeAlias

import torch
from pydantic import Field, model_validator
from torch import Tensor

from luthier.config import nested
from luthier.data.templates import Template
from luthier.errors import DataError, RecipeError
from luthier.examples import Conversation, Example, Message, Row
from luthier.models.forest import Batch
from luthier.models.heads import HeadShape
from luthier.objectives.base import Objective

Input: TypeAlias = Literal["text", "chat"]
UNKNOWN = -1.0
"""Stands for a label of a held-out row that no training row has."""
SHOWN = 5
"""Labels that a message names."""


def shown_messages(example: Conversation, input: Input) -> tuple[Message, ...]:
    """The messages of what was asked that are read: as text, none that instructs."""
    if input == "chat":
        return example.prompt
    return tuple(message for message in example.prompt if message.role not in ("system", "developer"))


def asked_row(example: Conversation, template: Template, input: Input) -> Row:
    """What was asked, as a head reads it.

    Raises:
        TemplateError: the template refuses a message.
    """
    as_chat = input == "chat"
    ids = template.prompt_ids(example.prompt, example.tools) if as_chat else template.text_ids(text_of(example))
    row = Row(tuple(ids), (0.0, *(1.0 for _ in ids[1:])) if ids else (), example.id)
    return row if template.max_tokens is None else row.first(template.max_tokens)


def text_of(example: Conversation) -> str:
    """What was asked as a text."""
    return "\n".join(message.content for message in shown_messages(example, "text"))


def wanted_of(example: Example) -> Any:
    """What the row wants said of it: its target, else its reply's text.

    Raises:
        DataError: it is no chat, or has neither.
    """
    if isinstance(example, Conversation):
        if example.target is not None:
            return example.target
        if example.completion is not None:
            return example.completion.content
    raise error_at(example, "the row does not say what is wanted: expected a label, a target or an assistant's message")


def label_of(example: Example) -> str:
    """The row's one label, as text.

    Raises:
        DataError: it has none, or what it has is no label.
    """
    wanted = wanted_of(example)
    if isinstance(wanted, str):
        return wanted
    if isinstance(wanted, int):  # true and false among them, spelled as in the file
        return json.dumps(wanted)
    raise error_at(example, f"the target is {type(wanted).__name__}; expected one label, a string or a whole number")


def labels_of(example: Example) -> tuple[str, ...]:
    """The row's labels, of which there may be none.

    Raises:
        DataError: its target is no list of texts.
    """
    wanted = wanted_of(example)
    if isinstance(wanted, str):
        try:
            wanted = json.loads(wanted)
        except ValueError:
            wanted = None
    if not isinstance(wanted, list | tuple) or not all(isinstance(label, str) for label in wanted):
        raise error_at(example, 'the target is no list of labels; expected one such as ["urgent", "billing"]')
    return tuple(dict.fromkeys(wanted))


def number_of(example: Example) -> float:
    """The row's number.

    Raises:
        DataError: it has none.
    """
    wanted = wanted_of(example)
    try:
        found = math.nan if isinstance(wanted, bool) else float(wanted)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise error_at(example, f"the target is {str(wanted)[:80]!r}; expected a number")
    return found


def error_at(example: Example, message: str) -> DataError:
    """An error that names the example's file and line."""
    return DataError(message, example.where.path, example.where.line, example.where.row)


class OfText(Objective, ABC):
    """A head over what was asked."""

    accepts: ClassVar[tuple[type, ...]] = (Conversation,)
    writes: ClassVar[bool] = False
    kind: ClassVar[str]
    """Of the head."""

    head_start: Literal["probe", "zeros", "normal"] = "probe"
    """How the head begins: fitted to what the model says of up to 4,096 training rows as it is (words, for
    `token_classify`); at zeros, so that nothing is likelier than anything else; or drawn from N(0, 1 / (width + 1))."""
    head_rate: float = Field(0.3, gt=0)
    """What the learning rate is multiplied by for the head: an update of a head moves what it says by the width of the
    model times the rate, since last hidden states of different texts have much in common."""

    def settled(self, examples: Sequence[Example]) -> Self:
        """With what training rows decide."""
        return self.learned(examples)

    @abstractmethod
    def learned(self, examples: Sequence[Example]) -> Self:
        """With what only training rows decide; as it is where nothing is left to decide.

        Raises:
            DataError: a row does not fit.
        """

    def shown(self, example: Conversation) -> tuple[Message, ...]:
        """What was asked."""
        return shown_messages(example, "text")

    def read(self) -> dict[str, Any]:
        """What is read of a row, as `HeadShape.reading` tells it."""
        return {"input": "text"}

    @abstractmethod
    def head(self) -> HeadShape:
        """What reads it."""

    def shape(self, outputs: int, labels: tuple[str, ...] = (), **reading: Any) -> HeadShape:
        """A head without a bias: heads of transformers have none, and the width is enough to say one."""
        return HeadShape(
            self.kind,
            outputs,
            bias=False,
            start=self.head_start,
            rate=self.head_rate,
            labels=labels,
            reading={**self.read(), **reading},
        )

    def weight(self, batch: Batch) -> float:
        """Number of rows."""
        return float(batch.row_count)


class OfWhole(OfText, ABC):
    """A head that says something of a text as a whole."""

    input: Input = "chat"
    """What the head reads: `chat`, the prompt that is served before a reply, with the row's system message; or `text`,
    what the user wrote alone, which is for models without a chat template."""
    system: str | None = None
    """The system message of every training row, for `chat`; absent: as it is found. Texts that are served get it."""

    def settled(self, examples: Sequence[Example]) -> Self:
        """With what training rows decide, and their system message if all have the same.

        Raises:
            DataError: a row does not fit.
        """
        found = self.learned(examples)
        if found.input == "text" or found.system is not None:
            return found
        systems = {_system_of(example) for example in examples if isinstance(example, Conversation)}
        return found.model_copy(update={"system": systems.pop()}) if len(systems) == 1 else found

    def shown(self, example: Conversation) -> tuple[Message, ...]:
        """What was asked."""
        return shown_messages(example, self.input)

    def read(self) -> dict[str, Any]:
        """The input, and the system message where there is one for all."""
        return {"input": self.input, **({} if self.system is None else {"system": self.system})}


def _system_of(example: Conversation) -> str:
    return "\n".join(message.content for message in example.prompt if message.role in ("system", "developer"))


class Labeled(OfText, ABC):
    """A head with a number for each label."""

    labels: tuple[str, ...] = ()
    """All labels, in the order of the head's numbers; absent: those of the training rows, in the order of the
    alphabet. They are kept with the trained model."""

    @model_validator(mode="after")
    def _require_one_of_each(self) -> Self:
        told = {name: value for name, value in self.model_dump().items() if name in ("counts", "weights") and value}
        with nested():
            if len(set(self.labels)) != len(self.labels):
                raise RecipeError("objective.labels names a label twice")
            for name, numbers in told.items():
                if len(numbers) != len(self.labels):
                    raise RecipeError(
                        f"objective.{name} has {len(numbers)} numbers for {len(self.labels)} labels; expected one for "
                        "each of objective.labels, which must be named then"
                    )
        return self

    @abstractmethod
    def said(self, example: Example) -> Sequence[str]:
        """The labels that a training row has.

        Raises:
            DataError: what it has is of another kind.
        """

    def learned(self, examples: Sequence[Example]) -> Self:
        """With the labels of the training rows.

        Raises:
            DataError: a row has another label than those that the recipe names, or no row has one.
        """
        known = frozenset(self.labels)
        found: set[str] = set()
        for example in examples:
            for label in self.said(example):
                if known and label not in known:
                    raise error_at(
                        example,
                        f"the label {label!r} is none of objective.labels ({listed(self.labels)}); add it there, "
                        "mend the row, or leave objective.labels out",
                    )
                found.add(label)
        if self.labels:
            return self
        if not found:
            path = examples[0].where.path if examples else ""
            raise DataError("no training row has a label, so there is nothing to learn", path)
        return self.model_copy(update={"labels": tuple(sorted(found))})

    def unknown(self, held_out: Iterable[Example]) -> dict[str, int]:
        """Labels of held-out rows that no training row has, each with the number of rows that have it."""
        known, found = frozenset(self.named()), dict[str, int]()
        for example in held_out:
            for label in self.said(example):
                if label not in known:
                    found[label] = found.get(label, 0) + 1
        return found

    def named(self) -> tuple[str, ...]:
        """The labels.

        Raises:
            RecipeError: no training row was looked at yet.
        """
        if not self.labels:
            raise RecipeError("objective.labels: not known before training rows are read; name them in the recipe")
        return self.labels

    def head(self) -> HeadShape:
        """A number for each label."""
        return self.shape(len(self.named()), self.named())


def listed(labels: Sequence[str]) -> str:
    """The first labels, in words."""
    more = f" and {len(labels) - SHOWN} more" if len(labels) > SHOWN else ""
    return ", ".join(map(repr, labels[:SHOWN])) + more


def stacked(batch: Batch, name: str, count: int) -> Tensor:
    """(R, count) values of the rows whose names are `name` and a number."""
    return torch.stack([batch.values_R[f"{name} {number}"] for number in range(count)], dim=1)
