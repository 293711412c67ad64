"""Every metric in the directory: right answers get the best value, garbage the worst, and it can be bootstrapped."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from luthier import registry
from luthier.evaluation.metrics.base import Metric, Prediction, TargetScore
from luthier.evaluation.significance import compare, metric_interval
from luthier.evaluation.task import METRICS, build_metrics
from luthier.examples import Message, ToolCall

NAMES = registry.names(METRICS)
ROWS = 12
SCHEMA = {"type": "object", "required": ["name", "age"], "properties": {"age": {"type": "integer"}}}


@pytest.fixture
def schema_file(tmp_path: Path) -> str:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA), encoding="utf-8")
    return str(path)


def build(name: str, schema_file: str) -> Metric:
    if name == "reward":  # what is worth something, its recipe says
        graded = {"worth": lambda asked: [float(reply.content == json.dumps(item)) for item, reply, _ in asked]}
        return build_metrics([name], rewards=graded)[name]
    return build_metrics([name], schema_file)[name]


def target(name: str, row: int) -> Any:
    """A wanted answer of the kind that the metric is for."""
    if name in ("accuracy", "macro_f1"):
        return ("yes", "no", "maybe")[row % 3]
    if name in (
        "answer_f1",
        "answer_match",
        "rouge_l",
        "chrf",
        "perplexity",
        "token_accuracy",
        "bits_per_byte",
        "pair_accuracy",
        "reward_accuracy",
    ):
        return f"The answer to question {row} is known to everybody here."
    if name == "step_accuracy":
        return {"steps": ["a", "b"], "labels": [1.0, 0.0]}
    return {"name": f"person {row}", "age": row}


TOOLS = (
    {
        "type": "function",
        "function": {"name": "find", "parameters": {"properties": {"who": {"type": "integer"}}, "required": ["who"]}},
    },
)
CALLING = ("call_precision", "call_recall")


def perfect(name: str, row: int) -> Prediction:
    wanted = target(name, row)
    text = wanted if isinstance(wanted, str) else json.dumps(wanted)
    calls = (ToolCall("find", {"who": row}),) if "call_" in name + "_" and row % 4 else ()
    message = Message("assistant", text, tool_calls=calls)
    certain, hopeless = TargetScore(10, 0.0, 10, 40), TargetScore(10, -1e90, 0, 40)
    item = wanted if isinstance(wanted, dict) else {}
    scores = (certain, hopeless, (0.9, 0.1))
    return Prediction(f"r{row}", (), text, wanted, message, message, *scores, tools=TOOLS, item=item)


def garbage(name: str, row: int) -> Prediction:
    """Wrong in every respect; a field metric gets fields, one of arguments calls, and one of calling at all the
    contrary of what is wanted, or there would be nothing to judge."""
    right = perfect(name, row)
    output = '{"zzz": 0}' if name.startswith("field_") else "@@@"
    calls: tuple[ToolCall, ...] = (ToolCall("unheard_of", {}),)
    if name == "call_arguments":
        calls = tuple(ToolCall(call.name, {"who": "nobody"}) for call in right.reply.tool_calls) if right.reply else ()
    elif name in CALLING and right.reply is not None and right.reply.tool_calls:
        calls = ()
    reply = Message("assistant", "@@@", tool_calls=calls)
    certain, hopeless = TargetScore(10, 0.0, 10, 40), TargetScore(10, -1e90, 0, 40)
    scores = (hopeless, certain, (0.1, 0.9))
    return Prediction(right.id, (), output, right.target, right.expected, reply, *scores, tools=TOOLS)


def stack(metric: Metric, predictions: list[Prediction]) -> np.ndarray:
    return np.array([metric.statistics(p) for p in predictions], dtype=np.float64)


def test_the_promised_metrics_are_there() -> None:
    promised = "exact_match json_valid schema_valid field_f1 accuracy macro_f1 rouge_l chrf token_accuracy perplexity"
    scored = {"bits_per_byte", "pair_accuracy", "answer_f1", "answer_match"}
    calls = {"tool_calls", "call_names", "call_arguments", "call_schema_valid", *CALLING}
    assert set(promised.split()) | scored | calls | {"field_precision", "field_recall"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_right_answers_are_best_and_garbage_is_worst(name: str, schema_file: str) -> None:
    metric = build(name, schema_file)
    right = metric.value(stack(metric, [perfect(name, r) for r in range(ROWS)]))
    wrong = metric.value(stack(metric, [garbage(name, r) for r in range(ROWS)]))
    assert right == pytest.approx(1.0 if math.isinf(metric.best) else metric.best)
    if math.isinf(metric.best):
        assert wrong == 0.0
    elif math.isinf(metric.worst):
        assert wrong > 1e80
    else:
        assert wrong == pytest.approx(metric.worst)
    assert (right > wrong) == metric.higher_is_better


@pytest.mark.parametrize("name", NAMES)
def test_a_mixture_lies_between(name: str, schema_file: str) -> None:
    metric = build(name, schema_file)
    mixed = [perfect(name, r) if r % 2 else garbage(name, r) for r in range(ROWS)]
    value = metric.value(stack(metric, mixed))
    low, high = sorted((metric.worst, metric.best))
    assert low < value < high


HOSTILE = ("", "[" * 500 + "]" * 500, "{" * 100_000, '{"a": 1e999}', "\ud800", "\x00", "9" * 5000, '{"a": {"b": [[]]}}')


@pytest.mark.parametrize("name", NAMES)
def test_no_answer_is_an_error(name: str, schema_file: str) -> None:
    """An answer may be anything; only a target can be unfit."""
    metric = build(name, schema_file)
    for output in HOSTILE:
        found = metric.statistics(replace(garbage(name, 1), output=output))
        assert all(map(math.isfinite, found))


@pytest.mark.parametrize("name", NAMES)
def test_no_rows_have_no_value(name: str, schema_file: str) -> None:
    metric = build(name, schema_file)
    assert math.isnan(metric.value(np.zeros((0, 3))))
    assert math.isnan(metric_interval(metric, np.zeros((0, 3))).low)


@pytest.mark.parametrize("name", NAMES)
def test_counting_a_row_twice_is_having_it_twice(name: str, schema_file: str) -> None:
    """The vectorized bootstrap stands on this: counts must mean what repeating rows means."""
    metric = build(name, schema_file)
    statistics = stack(metric, [perfect(name, r) if r % 3 else garbage(name, r) for r in range(ROWS)])
    rng = np.random.default_rng(0)
    for _ in range(5):
        counts = rng.multinomial(ROWS, [1 / ROWS] * ROWS)
        repeated = np.repeat(statistics, counts, axis=0)
        expected = metric.value(repeated)
        found = metric.values(statistics, counts[None].astype(np.float64))
        assert found.shape == (1,)
        assert found[0] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_order_of_rows_does_not_matter(name: str, schema_file: str) -> None:
    metric = build(name, schema_file)
    statistics = stack(metric, [perfect(name, r) if r % 3 else garbage(name, r) for r in range(ROWS)])
    assert metric.value(statistics) == pytest.approx(metric.value(statistics[::-1]))


@pytest.mark.parametrize("name", NAMES)
def test_intervals_and_differences(name: str, schema_file: str) -> None:
    metric = build(name, schema_file)
    good = stack(metric, [perfect(name, r) if r % 4 else garbage(name, r) for r in range(ROWS)])
    bad = stack(metric, [perfect(name, r) if r % 4 == 1 else garbage(name, r) for r in range(ROWS)])
    interval = metric_interval(metric, good)
    assert interval.low <= interval.value <= interval.high
    assert interval.low < interval.high
    change = compare(metric, good, bad)
    assert change.difference == pytest.approx(metric.value(good) - metric.value(bad))
    assert change.low <= change.difference <= change.high
    assert 0 < change.p_value <= 1
    same = compare(metric, good, good)
    assert same.difference == 0 and same.p_value == 1


@pytest.mark.parametrize("name", NAMES)
def test_row_scores(name: str, schema_file: str) -> None:
    metric = build(name, schema_file)
    score = metric.row_score(metric.statistics(perfect(name, 1)))
    if not metric.scores_rows:
        assert score is None
        return
    assert score == pytest.approx(1.0 if math.isinf(metric.best) else metric.best)
    wrong = metric.row_score(metric.statistics(garbage(name, 1)))
    assert wrong is not None and score is not None and (wrong < score) == metric.higher_is_better
    if metric.binary:
        assert (score, wrong) == (1.0, 0.0)


@pytest.mark.parametrize("name", NAMES)
def test_declarations_are_consistent(name: str, schema_file: str) -> None:
    metric = build(name, schema_file)
    assert (metric.best > metric.worst) == metric.higher_is_better
    assert metric.binary or not metric.counts_failures, "failures can only be counted where a row is right or wrong"
    widths = {len(metric.statistics(p(name, r))) for p in (perfect, garbage) for r in range(ROWS)}
    assert len(widths) == 1
