"""The gate of a head: what an artifact says of texts, opened in a fresh process, is what the trained model says.

The numbers are compared three times, so that each difference has one cause, as for artifacts that write (`parity.py`):
folding the adapter in, rounding to the artifact's number format, and the file with the program that reads it.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from luthier.assemble import Trained
from luthier.data.source import micro_batches
from luthier.evaluation.classes import MOST_TOKENS, Classifier
from luthier.evaluation.metrics.base import Array
from luthier.evaluation.said import reading_of
from luthier.evaluation.significance import finite
from luthier.evaluation.systems import base as systems
from luthier.examples import Row
from luthier.export.formats._head import WEIGHT, reads_words, score_weight
from luthier.export.formats.base import Exporter, merge
from luthier.export.parity import FLOOR_MAX_NATS, MERGE_ROWS, Check, Parity, round_weights, task_score
from luthier.export.probes import Probes
from luthier.models.heads import Head
from luthier.objectives._labeled import text_of


def questions_of(trained: Trained, head: Head, probes: Probes) -> list[dict[str, Any]]:
    """What the fresh process is asked: texts, or messages and tools as a template sees them."""
    if head.shape.reading["input"] == "chat":
        return probes.asked(trained)
    return [{"text": text_of(row)} for row in probes.rows]


def check_head_parity(trained: Trained, exporter: Exporter, probes: Probes, found: Mapping[str, Any]) -> Parity:
    """Compare what the fresh process found with the trained model; the model's weights are changed on the way.

    Args:
        trained: opened anew, its adapter in it.
        exporter: that wrote the artifact.
        probes: what was asked.
        found: what the fresh process wrote.
    """
    head = trained.injected.head
    assert head is not None
    trained.loaded.model.float()
    reader = Classifier(trained.loaded, trained.template, head)
    rows = [reader.row(row) for row in probes.rows]
    wanted = score_weight(head)
    own = _read(reader, rows, wanted)
    folded = rounded = own
    largest = 0.0
    if exporter.merges():
        merge(trained)
        folded = _read(reader, rows[:MERGE_ROWS], wanted)
        weights = {name: p.detach().clone() for name, p in trained.loaded.model.named_parameters()}
        largest = round_weights(trained, weights, exporter.rounded)[0] or 0.0
        rounded = _read(reader, rows, exporter.rounded(trained, WEIGHT, wanted))
    words = reads_words(head)
    given = np.concatenate([_given(values, row, words) for values, row in zip(found["values"], rows, strict=True)])
    wanted_ids = [row.ids[:-1] if words else row.ids for row in rows]  # the last word is read before an end that we add
    cut = sum(tuple(ids) == wanted for ids, wanted in zip(found["ids"], wanted_ids, strict=True))
    labels, n = list(head.shape.labels), len(rows)
    same = float((_best(given) == _best(own)).mean())
    logs = reader.reading.logs
    differences = {
        "artifact_to_trained": _difference(logs(given), logs(own)),
        "trained_to_merged": _difference(logs(folded), logs(own[: len(folded)])),
        "trained_to_rounded": _difference(logs(rounded), logs(own)),
        "rounded_to_artifact": _difference(logs(given), logs(rounded)),
        "explained_by_arithmetic": {"mean": 0.0, "max": 0.0},
    }
    task_check, task = _task(trained, reader, probes, rows, given, own)
    checks = (
        Check("token ids of texts", cut == n, f"{cut} of {n} as in training", "all"),
        Check("labels", not labels or found["labels"] == labels, f"{len(found['labels'])} names", "those of the head"),
        _within("merge in float32", differences["trained_to_merged"]["max"]),
        _within("what is said beside the rounded model", differences["rounded_to_artifact"]["max"]),
        task_check,
    )
    figures = {
        "format": exporter.__class__.__module__.rpartition(".")[2],
        "type": exporter.type,
        "head": head.shape.kind,
        "program": found["program"],
        "probes": {"split": "test", "rows": n, "of": probes.of, "left_out": probes.left_out, "max_new_tokens": 0},
        "tokens": n,
        "tokens_without_logprob": 0,
        "logprob_difference_nats": differences,
        "largest_relative_rounding_of_a_tensor": finite(largest),
        "greedy_agreement": {"trained": same, "rounded": float((_best(given) == _best(rounded)).mean())},
        "task": task,
    }
    return Parity(checks, figures)


def _read(reader: Classifier, rows: Sequence[Row], weight: torch.Tensor) -> Array:
    """(M, outputs) what these weights read of the rows, or of their words."""
    kept, words = reader.head.weight.detach().clone(), reads_words(reader.head)
    with torch.no_grad():
        reader.head.weight.copy_(weight)
        read = [reader.values(group) for group in micro_batches([(row,) for row in rows], MOST_TOKENS)]
        reader.head.weight.copy_(kept)
    return torch.cat([one.tokens_KO if words else one.rows_RO for one in read]).double().numpy()


def _given(values: Any, row: Row, words: bool) -> Array:
    """(M, outputs) what the artifact reads of one row, or of its words, each before the token behind it."""
    if not words:
        return np.array([values], dtype=np.float64)
    return np.array([values[at - 1] for at, weight in enumerate(row.loss_mask) if weight], dtype=np.float64)


def _best(values_MO: Array) -> Array:
    return values_MO.argmax(1) if values_MO.shape[1] > 1 else np.zeros(len(values_MO))


def _difference(a_MO: Array, b_MO: Array) -> dict[str, float]:
    off = np.abs(a_MO - b_MO)
    return {"mean": float(off.mean()), "max": float(off.max())}


def _within(what: str, found: float) -> Check:
    """A nan is never within."""
    return Check(what, found <= FLOOR_MAX_NATS, f"{found:.2g} nats", f"at most {FLOOR_MAX_NATS:.2g}")


def _task(
    trained: Trained, reader: Classifier, probes: Probes, rows: Sequence[Row], given: Array, own: Array
) -> tuple[Check, dict[str, Any]]:
    """The run's own metric of both, paired."""
    name = probes.question.primary
    metric = probes.question.metrics[name]
    scaled = copy.copy(reader.head)
    scaled.found = {key: value for key, value in scaled.found.items() if key != "temperature"}  # it is in the numbers
    reading = reading_of(scaled)

    def statistics(values_MO: Array) -> Array:
        if reads_words(reader.head):
            ends = np.cumsum([row.trained_tokens for row in rows])[:-1]
            parts = zip(probes.rows, np.split(values_MO, ends), strict=True)
            said = [reading.say_words(row, reader.template, part) for row, part in parts]
        else:
            said = reading.say(values_MO)
        answers = (
            systems.Answer(row.id, row.prompt, one.output, probabilities=one.probabilities or None)
            for row, one in zip(probes.rows, said, strict=True)
        )
        predictions = [systems.prediction(row, answer) for row, answer in zip(probes.rows, answers, strict=True)]
        return np.array(metric.statistics_of(predictions), dtype=np.float64)

    equal = int((_best(given) == _best(own)).sum())
    return task_score(trained, probes, name, statistics(own), statistics(given), equal)
