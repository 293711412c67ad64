"""The gate of a head: what an artifact says of texts, opened in a fresh process, is what the trained model says.

The numbers are compared three times, so that each difference has one cause, as for artifacts that write (`parity.py`):
folding the adapter in, rounding to the artifact's number format, and the file with the program that reads it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from luthier.assemble import Trained
from luthier.data.source import micro_batches
from luthier.data.split import group_keys
from luthier.evaluation import classes
from luthier.evaluation.metrics.base import Array
from luthier.evaluation.significance import compare, finite, metric_interval, number_groups
from luthier.evaluation.systems import base as systems
from luthier.export.formats._head import WEIGHT, score_weight
from luthier.export.formats.base import Exporter, merge
from luthier.export.parity import FLOOR_MAX_NATS, MERGE_ROWS, SCORE_MARGIN, Check, Parity, round_weights
from luthier.export.probes import Probes
from luthier.models.heads import Head
from luthier.objectives._labelled import shown_messages


def questions_of(trained: Trained, head: Head, probes: Probes) -> list[dict[str, Any]]:
    """What the fresh process is asked: texts, or messages and tools as a template sees them."""
    if head.shape.reading["input"] == "chat":
        return probes.asked(trained)
    return [{"text": "\n".join(m.content for m in shown_messages(row, "text"))} for row in probes.rows]


def check_head_parity(
    trained: Trained, exporter: Exporter, probes: Probes, found: Mapping[str, Any], folder: Path
) -> Parity:
    """Compare what the fresh process found with the trained model; the model's weights are changed on the way.

    Args:
        trained: opened anew, its adapter in it.
        exporter: that wrote the artifact.
        probes: what was asked.
        found: what the fresh process wrote.
        folder: the artifact.
    """
    head = trained.injected.head
    assert head is not None
    trained.loaded.model.float()
    reader = classes.Classifier(trained.loaded, trained.template, head)
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
    given = np.array(found["values"], dtype=np.float64)
    cut = sum(tuple(ids) == row.ids for ids, row in zip(found["ids"], rows, strict=True))
    labels, n = list(head.shape.labels), len(rows)
    same = float((_best(given) == _best(own)).mean())
    differences = {
        "artifact_to_trained": _difference(head, given, own),
        "trained_to_merged": _difference(head, folded, own[: len(folded)]),
        "trained_to_rounded": _difference(head, rounded, own),
        "rounded_to_artifact": _difference(head, given, rounded),
        "explained_by_arithmetic": {"mean": 0.0, "max": 0.0},
    }
    task_check, task = _task(trained, head, probes, given, own)
    checks = (
        Check("token ids of texts", cut == n, f"{cut} of {n} as in training", "all"),
        Check("labels", not labels or found["labels"] == labels, f"{len(found['labels'])} names", "those of the head"),
        _within("merge in float32", differences["trained_to_merged"]["max"]),
        _within("what is said beside the rounded model", differences["rounded_to_artifact"]["max"]),
        *task_check,
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


def _read(reader: classes.Classifier, rows: Any, weight: torch.Tensor) -> Array:
    """(N, outputs) what these weights read of the rows."""
    kept = reader.head.weight.detach().clone()
    with torch.no_grad():
        reader.head.weight.copy_(weight)
        parts = [reader.values(group).rows_RO for group in micro_batches([(row,) for row in rows], classes.MOST_TOKENS)]
        reader.head.weight.copy_(kept)
    return torch.cat(parts).double().numpy()


def _best(values_NO: Array) -> Array:
    return values_NO.argmax(1) if values_NO.shape[1] > 1 else np.zeros(len(values_NO))


def _difference(head: Head, a_NO: Array, b_NO: Array) -> dict[str, float]:
    """Of log-probabilities, where the head says them; else of its numbers."""
    off = np.abs(classes.in_nats(head, a_NO) - classes.in_nats(head, b_NO))
    return {"mean": float(off.mean()), "max": float(off.max())}


def _within(what: str, found: float) -> Check:
    """A nan is never within."""
    return Check(what, found <= FLOOR_MAX_NATS, f"{found:.2g} nats", f"at most {FLOOR_MAX_NATS:.2g}")


def _task(
    trained: Trained, head: Head, probes: Probes, given: Array, own: Array
) -> tuple[list[Check], dict[str, Any] | None]:
    """The run's own metric of both, paired."""
    name = probes.question.primary
    metric = probes.question.metrics[name]
    scaled = classes.with_temperature_in(head)

    def statistics(values_NO: Array) -> Array:
        said = classes.said_of(scaled, values_NO)
        answers = (
            systems.Answer(row.id, row.prompt, one.output, probabilities=one.probabilities)
            for row, one in zip(probes.rows, said, strict=True)
        )
        predictions = [systems.prediction(row, answer) for row, answer in zip(probes.rows, answers, strict=True)]
        return np.array([metric.statistics(one) for one in predictions], dtype=np.float64)

    ours, theirs = statistics(own), statistics(given)
    confidence, seed = trained.recipe.evaluation.confidence, trained.recipe.seed
    groups_N = number_groups(group_keys(probes.rows))
    paired = compare(metric, theirs, ours, confidence, seed, groups_N)
    sign = 1 if metric.higher_is_better else -1
    surely = (paired.high if sign > 0 else -paired.low) < 0
    values = {
        "metric": name,
        "trained": metric_interval(metric, ours, confidence, seed, groups_N).dump(),
        "artifact": metric_interval(metric, theirs, confidence, seed, groups_N).dump(),
        "difference": {"value": finite(paired.difference), "low": finite(paired.low), "high": finite(paired.high)},
        "equal_answers": int((_best(given) == _best(own)).sum()),
    }
    told = f"{name} {paired.difference:+.3f} [{paired.low:+.3f}, {paired.high:+.3f}]"
    lost = -sign * paired.difference > SCORE_MARGIN and surely
    return [Check("task score", not lost, told, f"not worse by more than {SCORE_MARGIN}")], values
