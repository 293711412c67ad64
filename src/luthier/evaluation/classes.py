"""What a trained head says of texts: a label, or more of them, with probabilities, or a number.

The one path by which evaluation, server and exports read such a head. A text is rendered as it was in training; the
batch is a forest, so what else is in it changes nothing. Probabilities are calibrated by the temperature that was found
on validation rows when training ended, and how sure and how right these were is kept beside it, so that a threshold for
any precision can be found later.
"""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
import torch
from scipy import special

from luthier.data.source import micro_batches
from luthier.data.templates import Template
from luthier.errors import EvaluationError
from luthier.evaluation.calibration import Threshold, find_threshold, fit_temperature, softmax
from luthier.evaluation.metrics.base import Array
from luthier.evaluation.systems.base import Answer, Answers, Context
from luthier.examples import NOWHERE, Conversation, Message, Row
from luthier.models.decode import evaluating
from luthier.models.forest import HeadValues, build_batch
from luthier.models.heads import Head
from luthier.models.load import LoadedModel
from luthier.models.scorer import Scorer
from luthier.objectives import classify
from luthier.objectives._labelled import Input, asked_row

MOST_TOKENS = 4096
"""Read at once, which bounds memory; a longer text is read by itself."""
KINDS = frozenset({classify.KIND})
"""Of heads that say something of a text."""


@dataclass(frozen=True)
class Said:
    """What a head says of one text."""

    output: str
    """As a reply would say it."""
    probabilities: Mapping[str, float]
    """Of every label, calibrated."""

    @property
    def confidence(self) -> float:
        """Of what it says."""
        return max(self.probabilities.values())

    def item(self) -> dict[str, Any]:
        """As the server tells it: vLLM's fields, and the names of `probs`."""
        label = max(self.probabilities, key=lambda name: self.probabilities[name])
        probs = list(self.probabilities.values())
        return {"label": label, "probs": probs, "num_classes": len(probs), "labels": list(self.probabilities)}


class Classifier:
    """A model with a head that says something of texts, in whatever state its adapter is."""

    def __init__(self, loaded: LoadedModel, template: Template, head: Head | None) -> None:
        """
        Raises:
            EvaluationError: there is no head, or one that says nothing of texts.
        """
        if head is None or head.shape.kind not in KINDS:
            found = "no head" if head is None else f"a head of kind {head.shape.kind!r}"
            raise EvaluationError(f"the model has {found}, and texts are read by one of {', '.join(sorted(KINDS))}")
        self.loaded, self.head = loaded, head
        self.template = copy.copy(template)
        self.template.max_tokens = None  # a text that is cut off would be read without its end
        self._scorer = Scorer(loaded.model, head=head)

    @property
    def labels(self) -> tuple[str, ...]:
        """In the order of the head's numbers."""
        return self.head.shape.labels

    @property
    def input(self) -> Input:
        """How a text is rendered."""
        found: Input = self.head.shape.reading["input"]
        return found

    @property
    def says_labels(self) -> bool:
        """Whether it says one label of a text, which is right or wrong."""
        return self.head.shape.kind == classify.KIND

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
            found += self.read(group)
            on_progress(len(found), len(rows))
        return found

    def row(self, conversation: Conversation) -> Row:
        """What is read of a conversation; raises as `say`."""
        row = asked_row(conversation, self.template, self.input)
        if len(row.ids) > self.loaded.max_tokens:
            name = conversation.id or "the text"
            name += "" if conversation.where == NOWHERE else f" ({conversation.where})"
            raise EvaluationError(
                f"{name} has {len(row.ids)} tokens, and the model's context ends at {self.loaded.max_tokens}"
            )
        return row

    def text(self, text: str) -> Row:
        """What is read of a text alone; raises as `say`."""
        return self.row(Conversation((Message("user", text),)))

    def read(self, rows: Sequence[Row]) -> list[Said]:
        """What the head says of rows, all of them at once."""
        return said_of(self.head, self.values(rows).rows_RO.double().cpu().numpy())

    @torch.inference_mode()
    def values(self, rows: Sequence[Row]) -> HeadValues:
        """The head's numbers."""
        batch = build_batch(rows).to(self.loaded.device)
        with evaluating(self.loaded.model):
            return self._scorer.head_values(batch)

    def threshold(self, precision: float) -> Threshold | None:
        """From which confidence on so many answers are right; None where the validation rows could not show it."""
        kept = self.head.found.get("validation")
        if kept is None:
            return None
        return find_threshold(np.array(kept["confidence"]), np.array(kept["right"]), precision)


def said_of(head: Head, values_NO: Array) -> list[Said]:
    """What a head's numbers mean."""
    labels = head.shape.labels
    probability_NC = softmax(values_NO, float(head.found.get("temperature", 1.0)))
    return [Said(labels[int(row.argmax())], dict(zip(labels, row.tolist(), strict=True))) for row in probability_NC]


def temperatures(head: Head) -> list[float]:
    """What each of a head's numbers is divided by."""
    return [float(head.found.get("temperature", 1.0))] * head.shape.outputs


def in_nats(head: Head, values_NO: Array) -> Array:
    """What a head's numbers say, as logarithms of probabilities; a number that is none, as it is."""
    found: Array = special.log_softmax(values_NO, axis=1)
    return found


def with_temperature_in(head: Head) -> Head:
    """A head that reads numbers that were divided by the temperature already."""
    scaled = copy.copy(head)
    scaled.found = {name: value for name, value in head.found.items() if name != "temperature"}
    return scaled


def calibrate(head: Head, values_NO: Array, wanted: Mapping[str, Array]) -> dict[str, Any]:
    """What is kept of the validation rows: `Head.found`.

    Args:
        head: trained.
        values_NO: what it reads of them.
        wanted: by the names that the objective gives to `Row.values`.
    """
    if not len(values_NO):
        return {}
    return calibrated(values_NO, wanted["label"].astype(np.int64).tolist()).dump()


@dataclass(frozen=True)
class Calibration:
    """The temperature of labels' scores, and how sure and how right the answers to validation rows were with it."""

    temperature: float
    confidence_N: Array
    right_N: Array

    def dump(self) -> dict[str, Any]:
        """Plain values."""
        validation = {"confidence": self.confidence_N.tolist(), "right": self.right_N.astype(int).tolist()}
        return {"temperature": self.temperature, "validation": validation}

    def abstention(self, precision: float) -> dict[str, Any]:
        """The threshold for a precision, as a system tells it."""
        return told(self.temperature, find_threshold(self.confidence_N, self.right_N, precision), precision)


def calibrated(scores_NC: Array, wanted_N: Sequence[int]) -> Calibration:
    """Calibrate the scores of labels on validation rows; `wanted_N` is below 0 where a label is none of them."""
    temperature = fit_temperature(scores_NC, wanted_N)
    probability_NC = softmax(scores_NC, temperature)
    right_N = (probability_NC.argmax(1) == np.asarray(wanted_N)).astype(np.float64)
    return Calibration(temperature, probability_NC.max(1), right_N)


def told(temperature: float | None, threshold: Threshold | None, precision: float) -> dict[str, Any]:
    """What a system says of its calibration."""
    found = None if threshold is None else threshold.dump()
    return {"temperature": temperature, "wanted_precision": precision, "threshold": found}


def answer_with_head(rows: Sequence[Conversation], context: Context, what: str) -> Answers:
    """What the trained head says of each row.

    Raises:
        EvaluationError: a row does not fit into the model's context.
    """
    start = time.perf_counter()
    model = Classifier(context.loaded, context.template, context.head)
    said = model.say(rows, lambda done, total: context.on_progress(what, done, total))
    seconds = time.perf_counter() - start
    alone = _alone(rows, model, context)
    answers = [
        Answer(
            row.id,
            row.prompt,
            one.output,
            Message("assistant", one.output),
            prompt_tokens=len(model.row(row).ids),
            completion_tokens=0,
            probabilities=one.probabilities,
            alone_seconds=alone.get(index),
        )
        for index, (row, one) in enumerate(zip(rows, said, strict=True))
    ]
    abstention = told(model.head.found.get("temperature"), model.threshold(context.precision), context.precision)
    return Answers(answers, seconds, {"abstention": abstention})


def _alone(rows: Sequence[Conversation], model: Classifier, context: Context) -> dict[int, float]:
    """Seconds of some rows, spread over all of them, each read alone, by place."""
    count, found = min(context.alone_rows, len(rows)), {}
    for place in (number * len(rows) // count for number in range(count)):
        start = time.perf_counter()
        model.say([rows[place]])
        found[place] = time.perf_counter() - start
    return found


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
