"""What a trained head says of texts: a label, or several, or a number, or the labels of spans.

The one path by which evaluation, server and exports read such a head. A text is rendered as it was in training; the
batch is a forest, so what else is in it changes nothing. Probabilities are calibrated by the temperature that was found
on validation rows when training ended, and how sure and how right these were is kept beside it, so that a threshold for
any precision can be found later.
"""

import copy
import time
from collections.abc import Callable, Sequence
from typing import TypeGuard

import torch

from luthier.data.source import micro_batches
from luthier.data.templates import Template
from luthier.errors import EvaluationError
from luthier.evaluation.said import KINDS, Reading, Said, reading_of
from luthier.evaluation.systems.base import Answer, Answers, Context, alone
from luthier.examples import NOWHERE, Conversation, Message, Row
from luthier.models.decode import evaluating
from luthier.models.forest import HeadValues, build_batch
from luthier.models.heads import Head
from luthier.models.load import LoadedModel
from luthier.models.scorer import Scorer
from luthier.objectives import token_classify
from luthier.objectives._labeled import Input, asked_row

MOST_TOKENS = 4096
"""Read at once, which bounds memory; a longer text is read by itself."""


class Classifier:
    """A model with a head that says something of texts, in whatever state its adapter is."""

    def __init__(self, loaded: LoadedModel, template: Template, head: Head | None) -> None:
        """
        Raises:
            EvaluationError: there is no head, or one that says nothing of texts.
        """
        if not is_classifier(head):
            found = "no head" if head is None else f"a head of kind {head.shape.kind!r}"
            raise EvaluationError(f"the model has {found}, and texts are read by one of {', '.join(sorted(KINDS))}")
        self.loaded, self.head = loaded, head
        self.template = copy.copy(template)
        self.template.max_tokens = None  # a text that is cut off would be read without its end
        self._scorer = Scorer(loaded.model, head=head)

    @property
    def reading(self) -> Reading:
        """What the head's numbers mean."""
        return reading_of(self.head)

    @property
    def input(self) -> Input:
        """How a text is rendered."""
        found: Input = self.head.shape.reading["input"]
        return found

    @property
    def system(self) -> str | None:
        """The system message that leads a text; None where training rows had several, and empty where they had none or
        it is not read."""
        found: str | None = "" if self.input == "text" else self.head.shape.reading.get("system")
        return found

    def say(
        self,
        conversations: Sequence[Conversation],
        on_progress: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> list[Said]:
        """What the head says of what each conversation asks.

        Raises:
            EvaluationError: one does not fit into the model's context.
            TemplateError: the template refuses a message.
        """
        rows = [self.row(conversation) for conversation in conversations]
        found: list[Said] = []
        for group in micro_batches([(row,) for row in rows], MOST_TOKENS):
            found += self.read(group, conversations[len(found) : len(found) + len(group)])
            on_progress(len(found), len(rows))
        return found

    def row(self, conversation: Conversation) -> Row:
        """What is read of a conversation; raises as `say`."""
        if self.head.shape.kind == token_classify.KIND:
            row = token_classify.read_row(conversation, self.template)
        else:
            row = asked_row(conversation, self.template, self.input)
        if len(row.ids) > self.loaded.max_tokens:
            name = conversation.id or "the text"
            name += "" if conversation.where == NOWHERE else f" ({conversation.where})"
            raise EvaluationError(
                f"{name} has {len(row.ids)} tokens, and the model's context ends at {self.loaded.max_tokens}"
            )
        return row

    def read(self, rows: Sequence[Row], conversations: Sequence[Conversation]) -> list[Said]:
        """What the head says of rows, which were made of these conversations, all of them at once."""
        if self.head.shape.kind != token_classify.KIND:
            return self.reading.say(self.values(rows).rows_RO.double().cpu().numpy())
        batch = build_batch(rows)
        tokens_KO, row_K = self.values(rows).tokens_KO.double().cpu().numpy(), batch.row_K.numpy()
        return [
            self.reading.say_words(conversation, self.template, tokens_KO[row_K == index])
            for index, conversation in enumerate(conversations)
        ]

    @torch.inference_mode()
    def values(self, rows: Sequence[Row]) -> HeadValues:
        """The head's numbers."""
        batch = build_batch(rows).to(self.loaded.device)
        with evaluating(self.loaded.model):
            return self._scorer.head_values(batch)


def answer_with_head(rows: Sequence[Conversation], context: Context, what: str) -> Answers:
    """What the trained head says of each row.

    Raises:
        EvaluationError: a row does not fit into the model's context.
    """
    start = time.perf_counter()
    model = Classifier(context.loaded, context.template, context.head)
    said = model.say(rows, lambda done, total: context.on_progress(what, done, total))
    seconds = time.perf_counter() - start
    waited = alone(len(rows), context, lambda place: model.say([rows[place]]))
    answers = [
        Answer(
            row.id,
            row.prompt,
            one.output,
            Message("assistant", one.output),
            prompt_tokens=len(model.row(row).ids),
            completion_tokens=0,
            probabilities=one.probabilities or None,
            alone_seconds=waited.get(index),
        )
        for index, (row, one) in enumerate(zip(rows, said, strict=True))
    ]
    return Answers(answers, seconds, model.reading.told(context.precision))


def is_classifier(head: Head | None) -> TypeGuard[Head]:
    """Whether a head says something of texts."""
    return head is not None and head.shape.kind in KINDS


def require_writer(context: Context, system: str) -> None:
    """Check that the trained model is one that writes.

    Raises:
        EvaluationError: it was trained to be read by a head.
    """
    if is_classifier(context.head):
        raise EvaluationError(
            f"the system {system} lets the trained model write, and this run trains a head ({context.head.shape.kind}) "
            "that reads; leave the system out of evaluation.systems"
        )


def classifier_of(loaded: LoadedModel, template: Template, head: Head | None) -> Classifier | None:
    """The classifier that this is; None where it is none."""
    return Classifier(loaded, template, head) if is_classifier(head) else None
