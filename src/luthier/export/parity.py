"""The gate: an artifact that was opened in a fresh process must be the trained model, up to what rounding explains.

The artifact answers the probes greedily and says the log-probability of each token that it wrote. The same tokens are
then scored under the trained model in float32, three times, so that each difference has one cause:

    trained -> merged      folding the adapter into the weights, in float32: nothing but the order of sums
    merged  -> rounded     each weight in the number format of the artifact: the price of the format, reported
    rounded -> artifact    the file and the program that reads it: must be within the tolerance of the format

A tensor that is zeroed, swapped, or rounded twice shows in the last step, whatever the price of the format is.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from luthier.assemble import Trained
from luthier.data.replies import parse_reply_text
from luthier.data.split import group_keys
from luthier.evaluation.metrics.base import Metric, Prediction
from luthier.evaluation.significance import compare, finite, metric_interval, number_groups
from luthier.evaluation.systems import base as systems
from luthier.examples import Message
from luthier.export.formats.base import Exporter, merge, without_bos
from luthier.export.probes import Answer, Probes, Scored, score, scored_task
from luthier.models.generate import generate
from luthier.models.memory import tokens_in_flight

FLOOR_MEAN_NATS, FLOOR_MAX_NATS = 2e-5, 2e-3
"""What another order of sums in float32 may change a token by: a hundred times what it was measured to."""
ARITHMETIC = 4
"""A program that rounds what flows between the weights may change answers by so many times as much as the same rounding
of the weights does. One rounding on either side of a product has the same effect; keys and values are rounded as well;
the rest is for the tail (docs/export.md)."""
MERGE_ROWS = 16
"""Rows that the merge is looked at with: a wrong one is wrong everywhere."""
SCORE_MARGIN = 0.02
"""A task score may be lower by so much before the artifact is refused, if the paired interval says that it is lower."""

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Check:
    """One thing that was compared."""

    check: str
    passed: bool
    found: str
    required: str

    def __str__(self) -> str:
        return f"{self.check}: {self.found}; required: {self.required}"


@dataclass(frozen=True)
class Parity:
    """What the gate found; `dump` is what `parity.json` holds."""

    checks: tuple[Check, ...]
    figures: Mapping[str, Any]

    @property
    def failed(self) -> list[Check]:
        """What is not as it must be."""
        return [check for check in self.checks if not check.passed]

    def dump(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""
        checks = [vars(check) for check in self.checks]
        return {"passed": not self.failed, **self.figures, "checks": checks}


def check_parity(
    trained: Trained,
    exporter: Exporter,
    folder: Path,
    probes: Probes,
    found: Mapping[str, Any],
    own_replies: Sequence[Message],
) -> Parity:
    """Compare what the fresh process found with the trained model; the model's weights are changed on the way.

    Args:
        trained: opened anew, in float32, its adapter in it.
        exporter: that wrote the artifact.
        folder: the artifact.
        probes: what was asked.
        found: what the fresh process wrote.
        own_replies: what the trained model answers, as it is evaluated and served.
    """
    answers = [Answer.read(values) for values in found["answers"]]
    told = [value for answer in answers for value in answer.logprobs]
    known_T = np.array([value is not None for value in told], dtype=bool)
    given_T = np.array([value for value in told if value is not None], dtype=np.float64)
    same = _inputs(trained, exporter, probes, answers, found["stop_ids"])
    other = [Check("other files", False, text, "agree") for text in exporter.check(trained, folder, probes.rows)]
    task_check, task = _task(trained, probes, answers, own_replies)
    models = _score_all(trained, exporter, answers)
    rounding = _Difference.of(models.rounded.logprobs_T, models.trained.logprobs_T)
    folding = _Difference.of(models.merged.logprobs_T, models.trained.logprobs_T[: len(models.merged.logprobs_T)])
    own, last = (_Difference.of(given_T, one.logprobs_T[known_T]) for one in (models.trained, models.rounded))
    arithmetic = models.arithmetic.times(ARITHMETIC).at_least(FLOOR_MEAN_NATS, FLOOR_MAX_NATS)
    behind = float(models.rounded.behind_T.max(initial=0.0))
    tokens = len(told)
    checks = (
        *same,
        *other,
        Check("answers", len(given_T) > 0, f"{len(given_T)} tokens with a log-probability", "some"),
        _within("merge in float32", folding.max, FLOOR_MAX_NATS),
        _within("log-probabilities beside the rounded model, mean", last.mean, arithmetic.mean),
        _within("log-probabilities beside the rounded model, largest", last.max, arithmetic.max),
        _within("log-probabilities beside the trained model, mean", own.mean, rounding.mean + arithmetic.mean),
        _within("log-probabilities beside the trained model, largest", own.max, rounding.max + arithmetic.max),
        # two tokens may have moved towards each other
        _within("tokens behind the rounded model's first choice", behind, 2 * arithmetic.max),
        *task_check,
    )
    figures = {
        "format": exporter.__class__.__module__.rpartition(".")[2],
        "type": exporter.type,
        "program": found["program"],
        "probes": {
            "split": "test",
            "rows": len(probes.rows),
            "of": probes.of,
            "left_out": probes.left_out,
            "max_new_tokens": probes.max_new_tokens,
        },
        "tokens": tokens,
        "tokens_without_logprob": tokens - len(given_T),
        "logprob_difference_nats": {
            "artifact_to_trained": own.dump(),
            "trained_to_merged": folding.dump(),
            "trained_to_rounded": rounding.dump(),
            "rounded_to_artifact": last.dump(),
            "explained_by_arithmetic": arithmetic.dump(),
        },
        "largest_relative_rounding_of_a_tensor": finite(models.largest),
        "greedy_agreement": {
            "trained": float((models.trained.behind_T == 0).mean()) if tokens else None,
            "rounded": float((models.rounded.behind_T == 0).mean()) if tokens else None,
        },
        "task": task,
    }
    return Parity(checks, figures)


@dataclass(frozen=True)
class _Difference:
    """Of log-probabilities, token by token."""

    mean: float
    max: float

    @classmethod
    def of(cls, a_T: Array, b_T: Array) -> "_Difference":
        difference_T = np.abs(a_T - b_T)
        return cls(float(difference_T.mean()) if len(a_T) else 0.0, float(difference_T.max(initial=0.0)))

    def times(self, factor: float) -> "_Difference":
        return _Difference(factor * self.mean, factor * self.max)

    def at_least(self, mean: float, largest: float) -> "_Difference":
        return _Difference(max(self.mean, mean), max(self.max, largest))

    def dump(self) -> dict[str, float | None]:
        return {"mean": finite(self.mean), "max": finite(self.max)}


def _within(what: str, found: float, allowed: float) -> Check:
    """A nan is never within."""
    return Check(what, found <= allowed, f"{found:.2g} nats", f"at most {allowed:.2g}")


@dataclass(frozen=True)
class _Scores:
    """The artifact's answers under the trained model and under what rounding makes of it."""

    trained: Scored
    merged: Scored
    """Of the first `MERGE_ROWS` answers."""
    rounded: Scored
    arithmetic: _Difference
    """What the rounding of the program's arithmetic does when it is done to the weights."""
    largest: float
    """Largest relative change of a tensor by rounding."""


def _score_all(trained: Trained, exporter: Exporter, answers: Sequence[Answer]) -> _Scores:
    """Score under the trained model, then merge and round it in place."""
    own, none = score(trained, answers), _Difference(0.0, 0.0)
    if not exporter.merges():
        return _Scores(own, own, own, none, 0.0)
    merge(trained)  # also makes dense what the adapter left quantized, so that all of it is rounded below
    merged = score(trained, answers[:MERGE_ROWS])
    weights = {name: parameter.detach().clone() for name, parameter in trained.loaded.model.named_parameters()}
    largest, _ = round_weights(trained, weights, exporter.rounded)
    rounded = score(trained, answers)
    arithmetic = none
    touched, changed = round_weights(trained, weights, exporter.like_arithmetic)
    if touched is not None:
        like = score(trained, answers) if changed else rounded
        arithmetic = _Difference.of(like.logprobs_T, own.logprobs_T)
    return _Scores(own, merged, rounded, arithmetic, largest or 0.0)


def _inputs(
    trained: Trained, exporter: Exporter, probes: Probes, answers: Sequence[Answer], stops: Sequence[int]
) -> list[Check]:
    """Whether the artifact renders, cuts and ends as training did."""
    template, n = trained.template, len(probes.rows)
    texts = [template.text(row.prompt, row.tools, add_generation_prompt=True) for row in probes.rows]
    ids = [tuple(template.prompt_ids(row.prompt, row.tools)) for row in probes.rows]
    pairs = zip((answer.prompt for answer in answers), texts, strict=True)
    rendered = sum(without_bos(trained, found) == without_bos(trained, wanted) for found, wanted in pairs)
    cut = sum(a.prompt_ids == wanted for a, wanted in zip(answers, ids, strict=True))
    wanted = exporter.stop_ids(trained)
    return [
        Check("rendered prompts", rendered == n, f"{rendered} of {n} as the template renders them", "all"),
        Check("token ids of prompts", cut == n, f"{cut} of {n} as in training", "all"),
        Check("ends of a turn", set(stops) == wanted, f"{sorted(stops)}", f"{sorted(wanted)}"),
    ]


@torch.no_grad()
def round_weights(
    trained: Trained, weights: Mapping[str, Tensor], rounded: Callable[[Trained, str, Tensor], Tensor | None]
) -> tuple[float | None, bool]:
    """Put rounded weights into the model, those of `weights` as `rounded` rounds them.

    Returns:
        The largest relative change of a tensor by rounding, None if none is rounded; and whether the model was changed.
    """
    largest, changed = None, False
    for name, parameter in trained.loaded.model.named_parameters():
        weight = weights[name]
        kept = rounded(trained, name, weight)
        if kept is not None:
            largest = max(largest or 0.0, float((kept - weight).norm() / weight.norm().clamp_min(1e-30)))
            changed = changed or not torch.equal(parameter, kept)
            parameter.copy_(kept)
    return largest, changed


def _task(
    trained: Trained, probes: Probes, answers: Sequence[Answer], texts: Sequence[Message]
) -> tuple[list[Check], dict[str, Any] | None]:
    """The run's own metric of both, paired; None where the run measures no written answers."""
    question = probes.question
    name = question.primary if question.metrics[question.primary].needs == "generation" else None
    if name is None or not scored_task(probes):
        return [], None
    metric = question.metrics[name]
    replies = [parse_reply_text(answer.text) for answer in answers]
    ours, theirs = (_statistics(metric, probes, messages) for messages in (texts, replies))
    equal = sum(a == b for a, b in zip(texts, replies, strict=True))
    check, values = task_score(trained, probes, name, ours, theirs, equal)
    return [check], values


def task_score(
    trained: Trained, probes: Probes, name: str, ours: Array, theirs: Array, equal: int
) -> tuple[Check, dict[str, Any]]:
    """A metric of the trained model's answers and of the artifact's, paired.

    Args:
        trained: whose settings decide intervals.
        probes: what was asked, N rows.
        name: of the metric.
        ours: (N, S) its statistics of the trained model's answers.
        theirs: (N, S) those of the artifact's.
        equal: answers that are the same.
    """
    metric, settings, seed = probes.question.metrics[name], trained.recipe.evaluation, trained.recipe.seed
    confidence = settings.confidence
    groups_N = number_groups(group_keys(probes.rows))
    paired = compare(metric, theirs, ours, confidence, seed, groups_N)
    sign = 1 if metric.higher_is_better else -1
    loss = -sign * paired.difference
    surely = (paired.high if sign > 0 else -paired.low) < 0
    values = {
        "metric": name,
        "trained": metric_interval(metric, ours, confidence, seed, groups_N).dump(),
        "artifact": metric_interval(metric, theirs, confidence, seed, groups_N).dump(),
        "difference": {"value": finite(paired.difference), "low": finite(paired.low), "high": finite(paired.high)},
        "equal_answers": equal,
    }
    told = f"{name} {paired.difference:+.3f} [{paired.low:+.3f}, {paired.high:+.3f}]"
    check = Check("task score", not (loss > SCORE_MARGIN and surely), told, f"not worse by more than {SCORE_MARGIN}")
    return check, values


def own_replies(trained: Trained, probes: Probes) -> list[Message]:
    """What the trained model answers, greedily."""
    prompts = [trained.template.prompt_ids(row.prompt, row.tools) for row in probes.rows]
    written = generate(
        trained.loaded,
        prompts,
        max_new_tokens=probes.max_new_tokens,
        stop_ids=trained.template.stop_ids,
        batch_tokens=tokens_in_flight(trained.loaded.model),
    )
    return [trained.template.parse_reply(generation.ids) for generation in written]


def _statistics(metric: Metric, probes: Probes, replies: Sequence[Message]) -> Array:
    predictions: list[Prediction] = [
        systems.prediction(row, systems.Answer(row.id, row.prompt, systems.message_text(reply), reply))
        for row, reply in zip(probes.rows, replies, strict=True)
    ]
    return np.array(metric.statistics_of(predictions), dtype=np.float64)


def told(parity: Parity) -> list[str]:
    """The figures of a gate that passed, for a terminal, a line each."""
    figures, task = parity.figures, parity.figures["task"]
    probes, nats = figures["probes"], figures["logprob_difference_nats"]
    said, of_what = ("texts read", "texts") if "head" in figures else ("tokens written", "tokens")
    lines = [
        f"{figures['program']}: {probes['rows']} of {probes['of']} test rows, {figures['tokens']:,} {said}",
        *(f"  {name.replace('_', ' ')}: {in_nats(difference)}" for name, difference in nats.items()),
        f"  first choice of the trained model: {figures['greedy_agreement']['trained']:.2%} of {of_what}",
    ]
    if task is not None:
        lines.append(f"  {task['metric']}: {both_scores(task)}")
    return lines


def in_nats(difference: Mapping[str, float]) -> str:
    """A difference of log-probabilities in words."""
    return f"mean {difference['mean']:.2g}, largest {difference['max']:.2g} nats"


def both_scores(task: Mapping[str, Any]) -> str:
    """The task score of both models with intervals."""
    return " and ".join(
        f"{task[who]['value']:.3f} [{task[who]['low']:.3f}, {task[who]['high']:.3f}] ({who})"
        for who in ("trained", "artifact")
    )
