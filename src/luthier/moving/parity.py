"""Is the new model as good as the old one? Recorded answers against a run's, on the same test rows.

The metrics are those of the run, so that the new model's figures are those of its report; the recorded answers are
scored by the same code. Graders of Evals grade both. A row counts where both have an answer.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any, ClassVar

import numpy as np

from luthier.comparison import NotComparable, Side, kept_statistics, read_side
from luthier.config import build
from luthier.data.asked import conversations, says_what_is_right
from luthier.data.formats.base import read_examples
from luthier.data.split import group_keys
from luthier.data.write import message_values
from luthier.errors import DataError, EvaluationError
from luthier.evaluation.graders.base import Grader, Host, Sample
from luthier.evaluation.metrics.base import Array, Metric, Prediction, RatioMetric
from luthier.evaluation.significance import (
    Groups,
    compare,
    count_groups,
    finite,
    mean_interval,
    metric_interval,
    minimum_detectable_effect,
    number_groups,
)
from luthier.evaluation.systems._wire import reply_of, wire_messages
from luthier.evaluation.systems.base import Answer, message_text, prediction
from luthier.evaluation.task import build_metrics
from luthier.examples import Conversation
from luthier.moving.answers import Recorded, newest, prompt_key
from luthier.moving.exports import curve_of
from luthier.moving.graders import LIMITS, read_graders
from luthier.online import Hosted, Rewards, metric_of
from luthier.recipe import DecisionSettings, RolloutSettings
from luthier.registry import name_of
from luthier.report.folder import read_lines
from luthier.report.ladder import seconds_of_one
from luthier.report.parity import Compared, Pair, Parity, Spent, curve_training, outcome_of
from luthier.report.schema import Difference, Evaluation, Interval, System

SHOWN_PAIRS = 8


class _Reward(RatioMetric):
    """The mean of what a grader gives, which may be any number; of no registry, as its rows come graded."""

    worst: ClassVar[float] = -math.inf
    best: ClassVar[float] = math.inf

    def statistics(self, prediction: Prediction) -> tuple[float, ...]:
        """Never asked: a grader has answered already."""
        raise NotImplementedError


class _Likeness(_Reward):
    worst: ClassVar[float] = 0.0
    best: ClassVar[float] = 1.0


class _Passed(_Likeness):
    binary: ClassVar[bool] = True


REWARDS: Mapping[str, type[Metric]] = {"string_check": _Passed, "text_similarity": _Likeness}
"""What is known of the rewards of a type of grader."""


@dataclass(frozen=True)
class _Rows:
    """The rows that both answered, in the order of the test file."""

    examples: Sequence[Conversation]
    places: Sequence[int]
    """Of each in the run's records."""
    old: Sequence[Recorded]
    new: Sequence[str]
    groups: Groups

    def old_answers(self) -> list[Answer]:
        """The recorded answers as those of a system."""
        return [
            Answer(row.id, row.prompt, message_text(one.reply), one.reply)
            for row, one in zip(self.examples, self.old, strict=True)
        ]


@dataclass(frozen=True)
class _Rules:
    confidence: float
    seed: int
    decision: DecisionSettings


def compare_with(
    run: Path,
    answers: Sequence[Recorded],
    system: str = "fine_tuned",
    graders: Path | None = None,
    curve: Path | None = None,
) -> Parity:
    """Compare a run's system with recorded answers.

    Args:
        run: an evaluated run.
        answers: of one old model.
        system: of the run.
        graders: a file that the import wrote.
        curve: the old job's result table.

    Raises:
        DataError: the run is not evaluated, no row has both answers, nothing judges them, or a file cannot be used.
    """
    side = read_side(run)
    evaluation, asked = side.evaluation, side.system(system)
    if evaluation is None or asked is None:
        known = ", ".join(one.name for one in side.report.systems) or "none"
        raise DataError(f"has no answers of a system {system}; evaluated are: {known}. `luthier run` does that", run)
    rows, test_rows, notes = _shared(side, system, answers)
    recipe = side.recipe
    decision = build(DecisionSettings, recipe.get("decision") or {}, ["decision"])
    rules = _Rules(evaluation.confidence, int(recipe.get("seed") or 0), decision)
    graded, not_graded = _graders(graders, rows, rules) if graders is not None else ([], [])
    if any(says_what_is_right(row) for row in rows.examples):
        compared, old_scores, new_scores, both = _metrics(side, asked, evaluation, rows, rules, not_graded)
    elif graded:
        compared, old_scores, new_scores, both = [], [None] * len(rows.old), [None] * len(rows.new), {}
        notes.append("The test rows have no reply and no target, so metrics have nothing to meet: the grader decides.")
    else:
        raise DataError(
            "the test rows have no reply and no target; name graders that judge the answers, --graders", run
        )
    agreement_N = _alike(rows)
    return Parity(
        run=str(run),
        system=system,
        old_model=", ".join(sorted({one.model for one in rows.old if one.model})) or "the old model",
        new_model=str((recipe.get("model") or {}).get("name", "")),
        confidence=evaluation.confidence,
        test_rows=test_rows,
        rows=len(rows.examples),
        groups=count_groups(rows.groups),
        compared=(*compared, *graded),
        agreement=Interval(**mean_interval(agreement_N, rules.confidence, rules.seed, rows.groups).dump()),
        **both,
        old_spent=_old_spent(rows.old),
        new_spent=_new_spent(side, asked),
        not_graded=tuple(not_graded),
        notes=tuple(notes),
        pairs=tuple(_pairs(rows, agreement_N, old_scores, new_scores)),
        old_training=None if curve is None else curve_training(_curve(curve)),
        new_training=side.report.training,
    )


def _shared(side: Side, system: str, answers: Sequence[Recorded]) -> tuple[_Rows, int, list[str]]:
    """The rows with both answers, how many rows there are, and what must be known of the rest."""
    path = side.folder / "data/test.jsonl"
    if not path.is_file():
        raise DataError("is not there, so nobody knows which rows were asked", path)
    records = [values for _, _, values in read_lines(side.folder / f"records/{system}.jsonl", "", [])]
    examples = {one.id: one for one in conversations(list(read_examples(path)))}
    by_prompt, by_id, older = newest(answers)
    found = []
    for place, record in enumerate(records):
        row = examples.get(str(record.get("id")))
        one = None if row is None else by_prompt.get(prompt_key(row.prompt)) or by_id.get(row.id)
        if row is not None and one is not None:
            found.append((row, place, one, str(record.get("output"))))
    if not found:
        raise DataError(
            "no test row of the run asks what a recorded answer answers, by its prompt or its id; the old model must "
            "have answered the rows that the run was tested on",
            path,
        )
    groups = number_groups(group_keys([row for row, *_ in found]))
    examples_N, places_N, old_N, new_N = (list(column) for column in zip(*found, strict=True))
    rows = _Rows(examples_N, places_N, old_N, new_N, groups)
    notes = []
    if rest := len(records) - len(found):
        notes.append(f"{rest:,} of {len(records):,} test rows have no recorded answer, and are left out.")
    if rest := len(by_prompt) + len(by_id) - len({id(one) for one in rows.old}):
        notes.append(f"{rest:,} recorded answers are to something else than the test rows, and are left out.")
    if older:
        notes.append(f"{older:,} recorded answers are older than another to the same prompt, and are left out.")
    if len(names := sorted({one.model or "no name" for one in rows.old})) > 1:
        notes.append(f"The recorded answers are of several models: {', '.join(names)}.")
    return rows, len(records), notes


def _metrics(
    side: Side, asked: System, evaluation: Evaluation, rows: _Rows, rules: _Rules, not_graded: list[str]
) -> tuple[list[Compared], list[float | None], list[float | None], dict[str, float]]:
    """Both by every metric of written answers, each row's scores by the first, and who is right where that is known."""
    schema = ((side.recipe.get("evaluation") or {}).get("json_schema")) or None
    names = [name for name in asked.metrics if name != evaluation.primary_metric]
    rewards = _rewards(side, not_graded) if "reward" in asked.metrics else None
    if rewards is None and evaluation.primary_metric != "reward":
        names = [name for name in names if name != "reward"]
    metrics = build_metrics([evaluation.primary_metric, *names], schema, rewards)
    written = {name: metric for name, metric in metrics.items() if metric.needs == "generation"}
    if evaluation.primary_metric not in written:
        raise DataError(
            f"was measured by {evaluation.primary_metric}, which looks at no written answer, so recorded answers have "
            'nothing to meet; set evaluation.task = "text" for the run',
            side.folder,
        )
    predictions = [prediction(row, one) for row, one in zip(rows.examples, rows.old_answers(), strict=True)]
    compared, scores = [], []
    for name, metric in written.items():
        try:
            new_NS = kept_statistics(side.folder, asked.name, name)[list(rows.places)]
            old_NS = np.array(metric.statistics_of(predictions), dtype=np.float64)
        except (NotComparable, EvaluationError) as error:
            raise DataError(str(error), side.folder) from None
        compared.append(_compared(name, "metric", metric, (old_NS, new_NS), rows.groups, rules))
        scores.append((metric, old_NS, new_NS))
    metric, old_NS, new_NS = scores[0]
    both = _who_is_right(old_NS, new_NS) if metric.binary else {}
    return compared, _row_scores(metric, old_NS), _row_scores(metric, new_NS), both


def _rewards(side: Side, not_graded: list[str]) -> dict[str, Any] | None:
    """Settings of the metric `reward` with the run's own graders; None, and why, where one cannot be asked here."""
    settings, host = build(RolloutSettings, side.recipe["rollout"], ["rollout"]), Host(limits=LIMITS)
    try:
        Rewards(settings, host).require()
    except EvaluationError as error:
        not_graded.append(f"reward: {error}")
        return None
    return metric_of(settings, lambda: Hosted(host))


def _compared(
    name: str, kind: Any, metric: Metric, statistics: tuple[Array, Array], groups_N: Groups, rules: _Rules
) -> Compared:
    old_NS, new_NS = statistics
    old, new = (metric_interval(metric, one, rules.confidence, rules.seed, groups_N) for one in statistics)
    found = compare(metric, new_NS, old_NS, rules.confidence, rules.seed, groups_N)
    difference = Difference(
        a="new",
        b="old",
        metric=name,
        difference=finite(found.difference),
        low=finite(found.low),
        high=finite(found.high),
        p_value=finite(found.p_value),
        test=found.test,
        minimum_detectable_effect=finite(minimum_detectable_effect(found.standard_error, rules.confidence)),
    )
    span = abs(metric.best - metric.worst)
    margin = rules.decision.smallest_gain * (span if np.isfinite(span) else abs(old.value))
    return Compared(
        name=name,
        kind=kind,
        lower_is_better=not metric.higher_is_better,
        rows=len(old_NS),
        old=Interval(**old.dump()),
        new=Interval(**new.dump()),
        difference=difference,
        margin=margin,
        outcome=outcome_of(difference, margin, not metric.higher_is_better),
    )


def _who_is_right(old_NS: Array, new_NS: Array) -> dict[str, float]:
    old, new = old_NS[:, 0] > 0, new_NS[:, 0] > 0
    return {
        "both_right": float((old & new).mean()),
        "only_old_right": float((old & ~new).mean()),
        "only_new_right": float((new & ~old).mean()),
    }


def _row_scores(metric: Metric, statistics_NS: Array) -> list[float | None]:
    return [metric.row_score(tuple(row)) for row in statistics_NS.tolist()]


def _alike(rows: _Rows) -> Array:
    """(N,) 1 where both say the same: to the letter, or as JSON."""
    metric = build_metrics(["exact_match"])["exact_match"]
    alike = []
    for row, old, new in zip(rows.examples, rows.old_answers(), rows.new, strict=True):
        alike.append(metric.statistics(Prediction(row.id, row.prompt, new, old.output))[0])
    return np.array(alike, dtype=np.float64)


def _graders(path: Path, rows: _Rows, rules: _Rules) -> tuple[list[Compared], list[str]]:
    """Both by every grader that can be asked here, and what was not graded."""
    host, compared, left = Host(limits=LIMITS), [], []
    for grader in read_graders(path):
        try:
            grader.require(host)
        except EvaluationError as error:
            left.append(f"{grader.name}: {error}")
            continue
        graded = list(_graded(grader, rows, host))
        good = [place for place, (old, new, _) in enumerate(graded) if old is not None and new is not None]
        if len(good) < len(rows.examples):
            why = next(problem for *_, problem in graded if problem)
            left.append(f"{grader.name}: {len(graded) - len(good):,} of {len(graded):,} rows cannot be graded: {why}")
        if good:
            pairs = np.array([graded[place][:2] for place in good], dtype=np.float64)
            ones = np.ones(len(good))
            statistics = (np.stack([pairs[:, 0], ones], 1), np.stack([pairs[:, 1], ones], 1))
            groups = number_groups([str(rows.groups[place]) for place in good])
            metric = REWARDS.get(name_of(grader), _Reward)()
            compared.append(_compared(grader.name, "grader", metric, statistics, groups, rules))
    return compared, left


def _graded(grader: Grader, rows: _Rows, host: Host) -> Iterator[tuple[float | None, float | None, str]]:
    """Of each row the rewards of both answers, None where one cannot be graded, and why."""
    for row, old, new in zip(rows.examples, rows.old, rows.new, strict=True):
        item = _item(row, old)
        rewards, problem = [], ""
        for sample in (_sample_of_message(old), _sample_of_text(new)):
            graded = grader.grade(sample, item, host)
            rewards.append(None if graded.errors.any else graded.reward)
            problem = problem or graded.problem
        yield rewards[0], rewards[1], problem


def _item(row: Conversation, old: Recorded) -> Mapping[str, Any]:
    """What the old Eval read beside the answer; else the row's own fields, as a job's grader does."""
    if old.item is not None:
        return old.item
    target = {} if row.target is None else {"target": row.target}
    return {**row.extra, **target, "messages": [message_values(message) for message in row.messages]}


def _sample_of_message(old: Recorded) -> Sample:
    calls = wire_messages([old.reply])[0].get("tool_calls", ())
    return Sample.of(old.reply.content, calls)


def _sample_of_text(output: str) -> Sample:
    """The new answer, of which the records hold the text; calls in it are found as everywhere."""
    reply = reply_of({"content": output})
    return Sample.of(reply.content, wire_messages([reply])[0].get("tool_calls", ()))


def _old_spent(old: Sequence[Recorded]) -> Spent:
    counted = [one for one in old if one.prompt_tokens is not None and one.completion_tokens is not None]
    seconds = [one.seconds for one in old if one.seconds is not None]
    usd = [one.usd for one in old if one.usd is not None]
    return Spent(
        rows_with_tokens=len(counted),
        prompt_tokens=fmean(one.prompt_tokens or 0 for one in counted) if counted else None,
        completion_tokens=fmean(one.completion_tokens or 0 for one in counted) if counted else None,
        rows_with_seconds=len(seconds),
        seconds=median(seconds) if seconds else None,
        usd_per_thousand=1000 * fmean(usd) if usd else None,
    )


def _new_spent(side: Side, asked: System) -> Spent:
    paid = next((one for one in side.report.cost.systems if one.system == asked.name), None)
    return Spent(
        rows_with_tokens=asked.n if asked.tokens is not None else 0,
        prompt_tokens=None if paid is None else paid.prompt_tokens_per_answer,
        completion_tokens=None if paid is None else paid.completion_tokens_per_answer,
        rows_with_seconds=len(asked.alone_seconds),
        seconds=seconds_of_one(asked),
        usd_per_thousand=None if paid is None else paid.here_usd_per_thousand,
    )


def _pairs(
    rows: _Rows, agreement_N: Array, old_scores: Sequence[float | None], new_scores: Sequence[float | None]
) -> Iterator[Pair]:
    """The rows that differ most by the primary metric; those that were answered alike are none."""

    def gap(place: int) -> float:
        old, new = old_scores[place], new_scores[place]
        return 0.0 if old is None or new is None else abs(old - new)

    differing = [place for place in range(len(rows.examples)) if not agreement_N[place]]
    for place in sorted(differing, key=gap, reverse=True)[:SHOWN_PAIRS]:
        row = rows.examples[place]
        yield Pair(
            id=row.id,
            asked=row.prompt[-1].content if row.prompt else "",
            wanted=message_text(row.completion) if row.completion is not None else str(row.target),
            old=message_text(rows.old[place].reply),
            new=rows.new[place],
            old_score=old_scores[place],
            new_score=new_scores[place],
        )


def _curve(path: Path) -> list[dict[str, float]]:
    try:
        return curve_of(path.read_bytes(), path)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", path) from None
