"""Systems x rows x metrics -> records on disk, and one table with intervals.

Every system answers the same rows in the same order, so differences are paired. A system's records are on disk before
the next one starts, and are used again only if system, rows, model, template and metrics are the same as then.
"""

import itertools
import json
import math
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from luthier import registry
from luthier.config import canonical_hash
from luthier.data.split import group_keys
from luthier.data.write import atomic_text, example_values
from luthier.errors import EvaluationError, StorageError
from luthier.evaluation.metrics.base import Array, Metric, Prediction
from luthier.evaluation.significance import (
    Comparison,
    Groups,
    Interval,
    compare,
    count_groups,
    failures_per_million,
    finite,
    metric_interval,
    minimum_detectable_effect,
    number_groups,
)
from luthier.evaluation.systems.base import (
    Answers,
    Context,
    System,
    messages_as_values,
    prediction,
    require_measurable,
)
from luthier.examples import Conversation, Example
from luthier.files import sha256_of
from luthier.recipe import dump_part

FORMAT = 4
"""Of the files beside the records; raise it when a metric changes its meaning, and old ones are not used again."""

ALONE_ROWS = 5
"""So many test rows are asked once more, each alone, for the time of one answer."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Options:
    """How an evaluation is done."""

    folder: Path
    """The run's folder; `records/` and `evaluation.json` are written there."""
    primary: str
    """Name of the metric that decides."""
    confidence: float = 0.95
    """Coverage of every interval."""
    seed: int = 0
    """Decides the resamples."""
    reuse: bool = True
    """Whether finished records that fit are used again."""


@dataclass
class Measured:
    """One system on all rows."""

    system: System
    statistics: dict[str, Array]
    """By metric, (N, S); a metric that the system has no data for is absent."""
    seconds: float
    prompt_tokens: int | None
    completion_tokens: int | None
    details: dict[str, Any]
    alone_seconds: tuple[float, ...] = ()
    """Of some rows that were answered once more, each alone, in the order of the rows."""
    reused: bool = False


@dataclass(frozen=True)
class Evaluation:
    """The whole table; `dump` is what `evaluation.json` holds."""

    task: str
    primary: str
    confidence: float
    rows: int
    groups_N: Groups
    """Which rows ask the same: what intervals and tests count."""
    measured: Mapping[str, Measured]
    metrics: Mapping[str, Metric]
    intervals: Mapping[str, Mapping[str, Interval]]
    """By system and metric."""
    differences: Mapping[tuple[str, str, str], Comparison]
    """By (a, b, metric): a - b, where a is the later rung of the ladder."""

    def dump(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""
        return {
            "task": self.task,
            "primary_metric": self.primary,
            "confidence": self.confidence,
            "n": self.rows,
            "groups": count_groups(self.groups_N),
            "lower_is_better": [name for name, metric in self.metrics.items() if not metric.higher_is_better],
            "bounds": {
                name: [metric.worst, metric.best]
                for name, metric in self.metrics.items()
                if math.isfinite(metric.worst) and math.isfinite(metric.best)
            },
            "systems": [self._dump_system(name, measured) for name, measured in self.measured.items()],
            "differences": [
                {
                    "a": a,
                    "b": b,
                    "metric": metric,
                    "difference": finite(c.difference),
                    "low": finite(c.low),
                    "high": finite(c.high),
                    "p_value": finite(c.p_value),
                    "test": c.test,
                    "minimum_detectable_effect": finite(minimum_detectable_effect(c.standard_error, self.confidence)),
                }
                for (a, b, metric), c in self.differences.items()
            ],
        }

    def _dump_system(self, name: str, measured: Measured) -> dict[str, Any]:
        system = measured.system
        tokens = {"prompt": measured.prompt_tokens, "completion": measured.completion_tokens}
        return {
            "name": name,
            "type": registry.name_of(system),
            "rung": system.rung,
            "note": system.note,
            "held_out": system.held_out,
            "baseline": system.is_baseline and system.held_out,
            "n": self.rows,
            "metrics": {metric: interval.dump() for metric, interval in self.intervals[name].items()},
            "tokens": tokens if measured.prompt_tokens is not None else None,
            "seconds": measured.seconds,
            "alone_seconds": list(measured.alone_seconds),
            "failures": dict(_failures(measured, self.metrics, self.groups_N, self.confidence)),
            "details": measured.details,
        }


def evaluate(
    systems: Mapping[str, System],
    rows: Sequence[Example],
    context: Context,
    metrics: Mapping[str, Metric],
    options: Options,
) -> Evaluation:
    """Let every system answer every row, score the answers, and write records and `evaluation.json`.

    Arguments and errors are those of `measure` and `conclude`, which this is one after the other.
    """
    measured = dict(measure(systems, rows, context, metrics, options))
    return conclude(measured, number_groups(group_keys(rows)), context.task, metrics, options)


def measure(
    systems: Mapping[str, System],
    rows: Sequence[Example],
    context: Context,
    metrics: Mapping[str, Metric],
    options: Options,
) -> Iterator[tuple[str, Measured]]:
    """Let one system after the other answer every row; each is yielded when its records are on disk.

    Rows and names are looked at when this is called, also where no system answers before a training.

    Args:
        systems: by the name that the report shows; baselines first, by custom.
        rows: the test rows; nothing is chosen on them.
        context: model, template, training and validation rows.
        metrics: by name; `options.primary` must be among them.
        options: where and how.

    Raises:
        EvaluationError: rows without an answer or with equal ids, a system that fails, or a metric that does not fit
            the rows. Records of the systems before it are kept.
        StorageError: the records cannot be written.
    """
    _require_sound(systems, rows, metrics, options)
    scores = any(m.needs == "logprobs" for m in metrics.values())
    context = replace(context, score_targets=scores, alone_rows=ALONE_ROWS)
    shared = _shared_fingerprint(rows, context, metrics)
    records = options.folder / "records"
    try:
        records.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{records}: cannot be made: {error.strerror or error}") from None

    def one(name: str, system: System) -> Measured:
        fingerprint = _fingerprint(shared, system, context)
        found = _reuse(records, name, system, fingerprint) if options.reuse else None
        return found or _measure(records, name, system, fingerprint, rows, context, metrics)

    return ((name, one(name, system)) for name, system in systems.items())


def conclude(
    measured: Mapping[str, Measured],
    groups_N: Groups,
    task: str,
    metrics: Mapping[str, Metric],
    options: Options,
) -> Evaluation:
    """Intervals and paired differences of what was measured, written to `evaluation.json`.

    Args:
        measured: the systems, baselines first by custom.
        groups_N: which test rows ask the same.
        task: what kind of answer was expected.
        metrics: by name.
        options: where and how.

    Raises:
        StorageError: the file cannot be written.
    """
    evaluation = summarize(measured, groups_N, task, metrics, options)
    with atomic_text(options.folder / "evaluation.json") as file:
        file.write(json.dumps(evaluation.dump(), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return evaluation


def _require_sound(
    systems: Mapping[str, System], rows: Sequence[Example], metrics: Mapping[str, Metric], options: Options
) -> None:
    if not rows:
        raise EvaluationError("there are no test rows; name a file in data.test, or raise data.test_share")
    if options.primary not in metrics:
        raise EvaluationError(
            f"the primary metric {options.primary!r} is not measured; measured are {', '.join(metrics)}"
        )
    for name in systems:
        if not _NAME.fullmatch(name):
            raise EvaluationError(f"system name {name!r}: expected letters, digits, _ . and -; it becomes a file name")
    seen: dict[str, Example] = {}
    for row in rows:
        if row.id in seen or not row.id:
            other = seen.get(row.id)
            why = f"its id {row.id!r} is also that of {other.where}" if other else "it has no id"
            raise EvaluationError(f"test row at {row.where}: {why}; records need an id for each row")
        if isinstance(row, Conversation) and row.completion is None and row.target is None:
            raise EvaluationError(
                f"test row {row.id} at {row.where}: no assistant message and no target to compare with"
            )
        seen[row.id] = row
    # hours of answers would be lost on a target that no metric can read
    require_measurable([row for row in rows if isinstance(row, Conversation)], metrics.values())


def _shared_fingerprint(rows: Sequence[Example], context: Context, metrics: Mapping[str, Metric]) -> str:
    """What every system's answers and scores depend on."""
    parts = {
        "format": FORMAT,
        "rows": [example_values(row) for row in rows],
        "train": [example_values(row) for row in context.train],
        "validation": [example_values(row) for row in context.validation],
        "metrics": {name: dump_part(metric) for name, metric in metrics.items()},
        "primary": registry.name_of(context.primary_metric),
        "template": context.template.sha256,
        "schema": context.json_schema,
        "task": context.task,
        "max_new_tokens": context.max_new_tokens,
        **({"precision": context.precision} if context.task == "label" else {}),
        "stop_loops": context.stop_loops,
        "base": context.base_fingerprint,
        "versions": dict(context.versions),
        "device": context.loaded.device.type,
    }
    return canonical_hash(parts)


def _fingerprint(shared: str, system: System, context: Context) -> str:
    values = dump_part(system)
    return canonical_hash(
        {
            "shared": shared,
            "system": values,
            "tuned": context.tuned_fingerprint if system.uses_adapter else None,
            **_retrieved(system, context),
            "files": dict(files_named(values, context.recipe_folder)),
            "identity": system.identity(context),
        }
    )


def _retrieved(system: System, context: Context) -> dict[str, Any]:
    """What a system that retrieves depends on beside the others; nothing for those that do not."""
    if not system.uses_retriever or context.retriever is None:
        return {}
    return {"retriever": context.retriever.fingerprint, "top_k": context.retriever.top_k}


def files_named(value: Any, folder: Path) -> Iterator[tuple[str, str]]:
    """Files that settings name, such as a command's script, with their digests: a changed script is another system."""
    if isinstance(value, str):
        path = folder / value
        # os.path says no where pathlib raises: an instruction is no file name, and may be too long for one
        if 0 < len(value) < 1000 and "\0" not in value and "\n" not in value and os.path.isfile(path):
            yield value, sha256_of(path)
    elif isinstance(value, Mapping | list | tuple):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from files_named(inner, folder)


def _measure(
    records: Path,
    name: str,
    system: System,
    fingerprint: str,
    rows: Sequence[Example],
    context: Context,
    metrics: Mapping[str, Metric],
) -> Measured:
    def progress(what: str, done: int, total: int) -> None:
        context.on_progress(what if what.startswith(name) else f"{name}: {what}", done, total)

    start = time.perf_counter()
    given = system.answer(rows, replace(context, on_progress=progress))
    seconds = given.seconds if given.seconds is not None else time.perf_counter() - start
    if [answer.id for answer in given.answers] != [row.id for row in rows]:
        raise EvaluationError(f"the system {name} did not answer the rows in their order; this is a fault of its code")
    predictions = [prediction(row, answer) for row, answer in zip(rows, given.answers, strict=True)]
    usable = {m: metric for m, metric in metrics.items() if _known(metric, system, predictions)}
    statistics = {m: metric.statistics_of(predictions) for m, metric in usable.items()}
    with atomic_text(records / f"{name}.jsonl") as file:
        for index, one in enumerate(predictions):
            scores = {m: metric.row_score(statistics[m][index]) for m, metric in usable.items()}
            record = {
                "id": one.id,
                "prompt": messages_as_values(one.prompt),
                "output": one.output,
                "target": one.target,
                "scores": {m: score for m, score in scores.items() if score is not None and math.isfinite(score)},
            }
            if one.target_score is not None and one.rejected_score is not None:
                record["margin"] = one.target_score.logprob_sum - one.rejected_score.logprob_sum
            if one.rewards is not None:
                record["rewards"] = list(one.rewards)
            if one.probabilities is not None:
                record["confidence"] = max(one.probabilities.values(), default=0.0)
            if given.answers[index].sources:
                record["sources"] = list(given.answers[index].sources)
            file.write(_json_line(record))
    arrays = {m: np.array(values, dtype=np.float64) for m, values in statistics.items()}
    alone = tuple(answer.alone_seconds for answer in given.answers if answer.alone_seconds is not None)
    measured = Measured(system, arrays, seconds, *_token_counts(given), _details(given), alone)
    _save_state(records, name, fingerprint, measured)
    return measured


def _known(metric: Metric, system: System, predictions: Sequence[Prediction]) -> bool:
    """Whether a system tells what a metric looks at."""
    if metric.needs == "probabilities":
        return all(one.probabilities is not None for one in predictions)
    return metric.needs == "generation" or system.is_model


def _json_line(record: Mapping[str, Any]) -> str:
    """A line of JSON; half a surrogate pair, which UTF-8 cannot hold, is written as its escape."""
    line = json.dumps(record, ensure_ascii=False, allow_nan=False, default=str)
    try:
        line.encode()
    except UnicodeEncodeError:
        line = json.dumps(record, allow_nan=False, default=str)
    return line + "\n"


def _token_counts(given: Answers) -> tuple[int | None, int | None]:
    prompts = [answer.prompt_tokens for answer in given.answers if answer.prompt_tokens is not None]
    completions = [answer.completion_tokens for answer in given.answers if answer.completion_tokens is not None]
    return (sum(prompts) if prompts else None), (sum(completions) if completions else None)


def _details(given: Answers) -> dict[str, Any]:
    """What the system says, and how many answers were cut off: too long, or the same over and over."""
    cut = sum(answer.finished is False for answer in given.answers)
    return {**given.details, **({"answers_cut_off": cut} if cut else {})}


def _save_state(records: Path, name: str, fingerprint: str, measured: Measured) -> None:
    state = {
        "fingerprint": fingerprint,
        "records_sha256": sha256_of(records / f"{name}.jsonl"),
        "seconds": measured.seconds,
        "alone_seconds": measured.alone_seconds,
        "prompt_tokens": measured.prompt_tokens,
        "completion_tokens": measured.completion_tokens,
        "details": measured.details,
        "statistics": {metric: values.tolist() for metric, values in measured.statistics.items()},
    }
    with atomic_text(records / f"{name}.state.json") as file:
        file.write(json.dumps(state, ensure_ascii=True, allow_nan=False) + "\n")


def _reuse(records: Path, name: str, system: System, fingerprint: str) -> Measured | None:
    """A finished system's results, if they were made from the same parts and nobody touched the records since."""
    path = records / f"{name}.state.json"
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        digest = sha256_of(records / f"{name}.jsonl")
    except (OSError, ValueError):
        return None
    if state.get("fingerprint") != fingerprint or state.get("records_sha256") != digest:
        return None
    statistics = {metric: np.array(values, dtype=np.float64) for metric, values in state["statistics"].items()}
    counts = state["prompt_tokens"], state["completion_tokens"]
    alone = tuple(state["alone_seconds"])
    return Measured(system, statistics, state["seconds"], *counts, state["details"], alone, reused=True)


def summarize(
    measured: Mapping[str, Measured], groups_N: Groups, task: str, metrics: Mapping[str, Metric], options: Options
) -> Evaluation:
    """The table of values, intervals and paired differences, from per-row statistics alone."""
    intervals = {
        name: {
            m: metric_interval(metrics[m], statistics, options.confidence, options.seed, groups_N)
            for m, statistics in one.statistics.items()
        }
        for name, one in measured.items()
    }
    # the ladder: baselines in their order, then what was trained; the later rung comes first in a difference
    ladder = sorted(measured, key=lambda name: measured[name].system.place)
    differences = {}
    for b, a in itertools.combinations(ladder, 2):
        for m, metric in metrics.items():
            if m in measured[a].statistics and m in measured[b].statistics:
                pair = measured[a].statistics[m], measured[b].statistics[m]
                differences[a, b, m] = compare(metric, *pair, options.confidence, options.seed, groups_N)
    rows = len(groups_N)
    return Evaluation(
        task, options.primary, options.confidence, rows, groups_N, measured, metrics, intervals, differences
    )


def _failures(
    measured: Measured, metrics: Mapping[str, Metric], groups_N: Groups, confidence: float
) -> Iterator[tuple[str, dict[str, float]]]:
    """By metric that checks a format: failures among all rows, and the upper bound that the groups of rows allow."""
    for name, statistics in measured.statistics.items():
        if metrics[name].counts_failures:
            failed_N = statistics[:, 0] == 0
            found = failures_per_million(int(failed_N.sum()), len(statistics), confidence)
            failed_groups = len(np.unique(groups_N[failed_N]))
            allowed = failures_per_million(failed_groups, count_groups(groups_N), confidence)["per_million_high"]
            yield name, {**found, "per_million_high": max(found["per_million_high"], allowed)}
