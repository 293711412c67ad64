"""A linear classifier over the vectors of a small encoder: seconds to train, and what a fine-tuned model must beat.

    p(c | x) = softmax(W e(x) + b)_c        least   sum of -log p(y | x) + lambda / 2 |W|^2

e(x) is the encoder's vector of what the user wrote, of length 1. lambda is chosen by cross-validation on training rows,
and the least is found by L-BFGS (scipy). Probabilities are calibrated on validation rows, as those of every system.
"""

import time
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field
from scipy import special
from scipy.optimize import minimize

from luthier.errors import EvaluationError
from luthier.evaluation.calibration import softmax
from luthier.evaluation.metrics.base import Array
from luthier.evaluation.rungs import Rung
from luthier.evaluation.said import calibrated
from luthier.evaluation.systems.base import Answer, Answers, Context, System, require_questions
from luthier.evaluation.systems.label_likelihood import labels_of
from luthier.examples import Conversation, Example, Message
from luthier.models.catalog import resolve
from luthier.objectives._labeled import label_of, text_of
from luthier.rag.embedder import Embedder

PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Values of lambda that are tried."""
STEPS = 500


class LinearProbe(System):
    """Logistic regression over an encoder's vectors."""

    is_model: ClassVar[bool] = False
    rung: ClassVar[Rung] = "external"
    gives_probabilities: ClassVar[bool] = True

    embedder: str = Field("all-minilm-l6-v2", min_length=1)
    """The encoder, as `retrieval.embedder` names it."""
    folds: int = Field(5, ge=2)
    """Parts of the training rows for the choice of lambda."""

    def identity(self, context: Context) -> str | None:
        """The encoder's files."""
        return Embedder(resolve(self.embedder), context.loaded.device).fingerprint

    def answer(self, rows: Sequence[Example], context: Context) -> Answers:
        """The likeliest label of each row, with the probabilities of all.

        Raises:
            EvaluationError: the task is no choice of labels, or there are fewer training rows than folds.
            ModelError: the encoder cannot be had.
        """
        questions, labels = require_questions(rows, "linear_probe"), labels_of(context)
        if len(context.train) < self.folds:
            raise EvaluationError(f"linear_probe: {len(context.train)} training rows cannot be cut into {self.folds}")
        embedder = Embedder(resolve(self.embedder), context.loaded.device)
        train_ND = _vectors(embedder, context.train)
        place = {label: number for number, label in enumerate(labels)}
        wanted_N = np.array([place[label_of(row)] for row in context.train])
        penalty, losses = choose_penalty(train_ND, wanted_N, len(labels), self.folds)
        weights = fit(train_ND, wanted_N, len(labels), penalty)
        held_out = [place.get(label_of(row), -1) for row in context.validation]
        calibration = calibrated(scores_of(weights, _vectors(embedder, context.validation)), held_out)
        start = time.perf_counter()
        scores_NC = scores_of(weights, _vectors(embedder, questions, context))
        seconds = time.perf_counter() - start
        answers = [
            Answer(
                row.id,
                row.prompt,
                labels[int(p_C.argmax())],
                Message("assistant", labels[int(p_C.argmax())]),
                probabilities=dict(zip(labels, p_C.tolist(), strict=True)),
            )
            for row, p_C in zip(questions, softmax(scores_NC, calibration.temperature), strict=True)
        ]
        details: dict[str, Any] = {
            "embedder": self.embedder,
            "penalty": penalty,
            "penalties": [{"penalty": value, "cross_validation_loss": loss} for value, loss in losses],
            "abstention": calibration.abstention(context.precision),
        }
        return Answers(answers, seconds, details)


def _vectors(embedder: Embedder, rows: Sequence[Conversation], context: Context | None = None) -> Array:
    def told(done: int, total: int) -> None:
        if context is not None:
            context.on_progress("embedding", done, total)

    vectors_ND: Array = embedder.embed([text_of(row) for row in rows], told).vectors_ND.astype(np.float64)
    return vectors_ND


def choose_penalty(train_ND: Array, wanted_N: Any, labels: int, folds: int) -> tuple[float, list[tuple[float, float]]]:
    """The penalty of the least mean loss on parts that were left out, and the loss of each; labels are spread evenly
    over the parts."""
    part_N = np.empty(len(wanted_N), dtype=np.int64)
    part_N[np.argsort(wanted_N, kind="stable")] = np.arange(len(wanted_N)) % folds
    losses = []
    for penalty in PENALTIES:
        total = 0.0
        for part in range(folds):
            left_out = part_N == part
            weights = fit(train_ND[~left_out], wanted_N[~left_out], labels, penalty)
            logs_NC = special.log_softmax(scores_of(weights, train_ND[left_out]), axis=1)
            total -= float(logs_NC[np.arange(int(left_out.sum())), wanted_N[left_out]].sum())
        losses.append((penalty, total / len(wanted_N)))
    return min(losses, key=lambda one: one[1])[0], losses


def fit(vectors_ND: Array, wanted_N: Any, labels: int, penalty: float) -> Array:
    """(C, D + 1) weights and, last, biases, which are not penalized."""
    rows, width = vectors_ND.shape
    x_NE = np.concatenate([vectors_ND, np.ones((rows, 1))], axis=1)
    wanted_NC = np.zeros((rows, labels))
    wanted_NC[np.arange(rows), wanted_N] = 1

    def loss(flat: Array) -> tuple[float, Array]:
        w_CE = flat.reshape(labels, width + 1)
        logs_NC = special.log_softmax(x_NE @ w_CE.T, axis=1)
        pull_CE = penalty * w_CE
        pull_CE[:, -1] = 0
        gradient_CE = (np.exp(logs_NC) - wanted_NC).T @ x_NE + pull_CE
        return -float((logs_NC * wanted_NC).sum()) + float((pull_CE * w_CE).sum()) / 2, gradient_CE.ravel()

    found = minimize(loss, np.zeros(labels * (width + 1)), jac=True, method="L-BFGS-B", options={"maxiter": STEPS})
    weights: Array = found.x.reshape(labels, width + 1)
    return weights


def scores_of(weights_CE: Array, vectors_ND: Array) -> Array:
    """(N, C) the logits."""
    scores_NC: Array = vectors_ND @ weights_CE[:, :-1].T + weights_CE[:, -1]
    return scores_NC
