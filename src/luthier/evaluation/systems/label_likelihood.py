"""The base model, asked how likely each label is as its reply: nothing is written, and no answer is anything else.

    score of label c = log p(c and the end of the turn | prompt)        p_c = softmax(scores / T)_c

T is found on validation rows, as for every other system that tells how sure it is. Two prompts compete on validation
rows, the row's own and the one that names the labels; what prompts share is computed once for all labels. Left out:
dividing by the length of a label, or by how likely it is without the text.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from luthier.errors import EvaluationError
from luthier.evaluation.answering import score_targets_of
from luthier.evaluation.calibration import softmax
from luthier.evaluation.metrics.base import Array
from luthier.evaluation.said import calibrated
from luthier.evaluation.systems._prompts import Addition, has_room, suggested
from luthier.evaluation.systems.base import (
    Answer,
    Answers,
    Context,
    System,
    alone,
    no_progress,
    require_questions,
    with_instruction,
)
from luthier.examples import Conversation, Example, Message
from luthier.models.generate import Question, score_choices_batch
from luthier.objectives._labeled import label_of

Prompts = list[tuple[Message, ...]]


class LabelLikelihood(System):
    """The base model's likeliest label."""

    gives_probabilities: ClassVar[bool] = True

    instruction: str = ""
    """Always added to the system message."""
    tune_rows: int = Field(40, ge=0)
    """Validation rows on which the row's own prompt and one that names the labels compete; 0: its own is used."""

    def answer(self, rows: Sequence[Example], context: Context) -> Answers:
        """The likeliest label of each row, with the probabilities of all.

        Raises:
            EvaluationError: the task is no choice of labels, or a row leaves no room for one.
        """
        questions = require_questions(rows, "label_likelihood")
        with context.adapter_disabled():
            addition, tried = self._choose(context)
            found = likeliest(questions, lambda row: self._prompt(row, addition), context)
        details = {"instruction": self.instruction, **addition.dump(), "tried": tried, **found.details}
        return replace(found, details=details)

    def _prompt(self, row: Conversation, addition: Addition) -> tuple[Message, ...]:
        return addition.apply(with_instruction(row.prompt, self.instruction))

    def _choose(self, context: Context) -> tuple[Addition, list[dict[str, Any]]]:
        """The addition under which more validation rows are answered right, and what each came to; of equals the
        shorter one."""
        rows, labels = context.validation[: self.tune_rows], labels_of(context)
        candidates = (Addition(), *(Addition(text) for text in suggested(context)[-1:]))
        found: list[tuple[float, Addition]] = []
        for addition in candidates if rows else ():
            prompts = [self._prompt(row, addition) for row in rows]
            if all(has_room(row, prompt, context) for row, prompt in zip(rows, prompts, strict=True)):
                scores_NC = score_labels(rows, prompts, labels, context, "choosing a prompt")
                found.append((_share_right(scores_NC, rows, labels), addition))
        tried = [{**addition.dump(), "validation_score": share, "rows": len(rows)} for share, addition in found]
        best = max(found, key=lambda one: one[0], default=(0.0, Addition()))
        return best[1], tried


def likeliest(
    rows: Sequence[Conversation], prompt_of: Callable[[Conversation], tuple[Message, ...]], context: Context
) -> Answers:
    """The likeliest label of each row under the model as it is, calibrated on the validation rows.

    Raises:
        EvaluationError: as `LabelLikelihood.answer`.
    """
    labels = labels_of(context)
    start = time.perf_counter()
    prompts = [prompt_of(row) for row in rows]
    scores_NC = score_labels(rows, prompts, labels, context, "scoring labels")
    seconds = time.perf_counter() - start
    held_out = [prompt_of(row) for row in context.validation]
    validation_NC = score_labels(context.validation, held_out, labels, context, "calibrating")
    calibration = calibrated(validation_NC, [_place(row, labels) for row in context.validation])
    wanted = score_targets_of(rows, prompts, context) if context.score_targets else [(None, None)] * len(rows)
    silent = replace(context, on_progress=no_progress)
    waited = alone(len(rows), context, lambda place: score_labels([rows[place]], [prompts[place]], labels, silent))
    answers = [
        Answer(
            row.id,
            prompt,
            labels[int(p_C.argmax())],
            Message("assistant", labels[int(p_C.argmax())]),
            prompt_tokens=len(context.template.prompt_ids(prompt, row.tools)),
            completion_tokens=0,
            target_score=score,
            probabilities=dict(zip(labels, p_C.tolist(), strict=True)),
            alone_seconds=waited.get(index),
        )
        for index, (row, prompt, p_C, (score, _)) in enumerate(
            zip(rows, prompts, softmax(scores_NC, calibration.temperature), wanted, strict=True)
        )
    ]
    return Answers(answers, seconds, {"abstention": calibration.abstention(context.precision)})


def labels_of(context: Context) -> tuple[str, ...]:
    """The labels of the training rows, in the order of the alphabet.

    Raises:
        EvaluationError: the task is no choice of labels, or there are no training rows.
    """
    if context.task != "label" or not context.train:
        raise EvaluationError(
            f"label likelihood chooses among the labels of the training rows, and the task is {context.task!r}; leave "
            "the system out of evaluation.systems"
        )
    return tuple(sorted({label_of(row) for row in context.train}))


def score_labels(
    rows: Sequence[Conversation], prompts: Prompts, labels: Sequence[str], context: Context, what: str = ""
) -> Array:
    """(N, C) log-probability of each label and the end of the turn, after each prompt.

    Raises:
        EvaluationError: a row leaves no room for a label.
        TemplateError: the template refuses a row.
    """
    if not rows:
        return np.zeros((0, len(labels)))
    replies = _replies(rows[0], prompts[0], labels, context)
    if len(rows) > 1 and replies != _replies(rows[-1], prompts[-1], labels, context):
        raise EvaluationError("the chat template writes a label otherwise after other prompts, so none can be scored")
    questions: list[Question] = []
    for row, prompt in zip(rows, prompts, strict=True):
        ids = tuple(context.template.prompt_ids(prompt, row.tools))
        longest = len(ids) + max(map(len, replies))
        if longest > context.loaded.max_tokens:
            raise EvaluationError(
                f"row {row.id} ({row.where}): with a label it needs {longest} tokens, and the model's context ends at "
                f"{context.loaded.max_tokens}"
            )
        questions.append((ids, replies))
    scores = score_choices_batch(
        context.loaded, questions, on_progress=lambda done, total: context.on_progress(what, done, total)
    )
    return np.array(scores, dtype=np.float64)


def _replies(
    row: Conversation, prompt: tuple[Message, ...], labels: Sequence[str], context: Context
) -> tuple[tuple[int, ...], ...]:
    """The tokens of each label as a reply, with the token that ends it."""
    start, found = len(context.template.prompt_ids(prompt, row.tools)), []
    for label in labels:
        reply = Message("assistant", label)
        rendered = context.template.reply_row(Conversation((*prompt, reply), row.tools, row.where, row.id), (reply,))
        last = max(i for i, weight in enumerate(rendered.loss_mask) if weight)
        found.append(tuple(rendered.ids[start : last + 1]))
    if len(set(found)) != len(found):
        raise EvaluationError("the chat template makes the same tokens of two labels, so they cannot be told apart")
    return tuple(found)


def _place(row: Conversation, labels: Sequence[str]) -> int:
    label = label_of(row)
    return labels.index(label) if label in labels else -1


def _share_right(scores_NC: Array, rows: Sequence[Conversation], labels: Sequence[str]) -> float:
    right = (_place(row, labels) == int(s_C.argmax()) for row, s_C in zip(rows, scores_NC, strict=True))
    return sum(right) / len(rows)
