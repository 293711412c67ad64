"""Calibration and thresholds by themselves, exact values at step 0, and what words and numbers of heads mean."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.engine_runs import make_run
from tests.small_encoders import write_encoder

from luthier.config import build
from luthier.data.formats import text_number, text_spans
from luthier.data.read import Record
from luthier.data.templates import build_template
from luthier.engine.heads import PENALTIES, SLACK, probe
from luthier.engine.loop import validation_loss
from luthier.errors import DataError, EvaluationError, RecipeError
from luthier.evaluation.calibration import (
    calibration_error,
    find_threshold,
    fit_temperature,
    fit_temperatures,
    lower_bound,
    rows_to_show,
    softmax,
)
from luthier.evaluation.metrics.base import Prediction
from luthier.evaluation.metrics.r_squared import RSquared
from luthier.evaluation.said import reading_of
from luthier.evaluation.systems.linear_probe import choose_penalty, fit, scores_of
from luthier.examples import NOWHERE, Conversation, Message
from luthier.models.forest import build_batch
from luthier.models.heads import Head, HeadShape
from luthier.models.load import LoadedModel
from luthier.models.scorer import Scorer
from luthier.objectives.classify import Classify
from luthier.objectives.multi_label import MultiLabel
from luthier.objectives.regress import Regress
from luthier.objectives.token_classify import Span, TokenClassify, read_after, spans_from, tags_of, words_of


def labeled(text: str, target: Any, system: str = "") -> Conversation:
    lead = (Message("system", system),) if system else ()
    return Conversation((*lead, Message("user", text)), target=target, id=text)


@pytest.mark.parametrize(
    ("objective", "value"),
    [("classify", math.log(3)), ("multi_label", math.log(2)), ("token_classify", math.log(3)), ("regress", 0.5 * 1.0)],
)
def test_a_head_of_zeros_begins_at_the_loss_of_knowing_nothing(objective: str, value: float, tmp_path: Path) -> None:
    settings = {"distance": "huber"} if objective == "regress" else {}
    run = make_run(tmp_path, objective={"type": objective, "head_start": "zeros", **settings})
    wanted = 1.5 - 0.5 if objective == "regress" else value  # 1.5 deviations off, of which one counts squared
    assert validation_loss(run) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("objective", ["classify", "multi_label", "token_classify", "regress"])
def test_a_head_begins_as_the_best_one_that_the_model_has_before_training(objective: str, tmp_path: Path) -> None:
    """Any step away is worse by the formula; and the model is as it was."""
    run = make_run(tmp_path, dtype=torch.float64, objective={"type": objective})
    head, zeros = run.injected.head, validation_loss(run)
    assert head is not None and not head.weight.any()
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    assert probe(run) == 10 and probe(run) == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.model.state_dict().items())

    def least(weight: torch.Tensor, penalty: float) -> float:
        batches = [build_batch([row for unit in run.source.units for row in unit])]  # type: ignore[attr-defined]
        through = Head(HeadShape("states", head.weight.shape[1], bias=False), head.weight.shape[1], 0).double()
        with torch.no_grad():
            through.weight.copy_(torch.eye(head.weight.shape[1]))
            states = Scorer(run.model, head=through).head_values(batches[0])
            read = states.tokens_KO if objective == "token_classify" else states.rows_RO
            spread = (read - read.mean(0)).square().sum(1).mean()
            kept = head.weight.clone()
            head.weight.copy_(weight)
            loss = run.objective.loss(run.models, batches[0]).total / run.objective.weight(batches[0])
            head.weight.copy_(kept)
            return float(loss + penalty / 2 * spread * weight.square().sum())

    found = head.weight.detach().clone()
    pushes = torch.randn(20, *found.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 1e-2
    at = {penalty: least(found, SLACK * penalty) for penalty in PENALTIES}
    assert any(all(least(found + push, SLACK * p) > value for push in pushes) for p, value in at.items())
    assert validation_loss(run) != zeros


def test_class_weights_and_smoothing_are_those_of_the_formula() -> None:
    logits = torch.tensor([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3]])

    class Policy:
        def head_values(self, _batch: Any) -> Any:
            return type("Values", (), {"rows_RO": logits})

    class Batch:
        row_count = 3

        def __init__(self, labels: list[float]) -> None:
            self.values_R = {"label": torch.tensor(labels)}

    objective = build(Classify, {"labels": ["a", "b", "c"], "class_weights": "balanced", "counts": [6, 3, 0]})
    smooth = objective.model_copy(update={"label_smoothing": 0.3})
    models: Any = type("Models", (), {"policy": Policy()})
    batch: Any = Batch([0.0, 1.0])
    logs = logits.log_softmax(-1)
    weights = (9 / (3 * 6), 9 / (3 * 3))
    assert objective.weight(batch) == pytest.approx(sum(weights))
    expected = -(weights[0] * logs[0, 0] + weights[1] * logs[1, 1])
    assert float(objective.loss(models, batch).total) == pytest.approx(float(expected), rel=1e-6)
    spread = [0.7 * logs[i, i] + 0.1 * logs[i].sum() for i in (0, 1)]
    expected = -(weights[0] * spread[0] + weights[1] * spread[1])
    assert float(smooth.loss(models, batch).total) == pytest.approx(float(expected), rel=1e-6)
    unknown: Any = Batch([0.0, -1.0])
    assert objective.weight(unknown) == pytest.approx(weights[0])
    assert float(objective.loss(models, unknown).total) == pytest.approx(-float(weights[0] * logs[0, 0]), rel=1e-6)
    assert objective.loss(models, unknown).metrics["accuracy"].value() == 0.5, "what is unknown is wrong"


def test_labels_are_settled_from_training_rows() -> None:
    rows = [labeled("x", "b", "S"), labeled("y", "a", "S"), labeled("z", "b", "S")]
    settled = Classify(class_weights="balanced").settled(rows)
    assert (settled.labels, settled.counts, settled.system) == (("a", "b"), (1, 2), "S")
    assert settled.settled(rows[:1]) == settled, "what is settled stays, whatever rows are left out"
    assert settled.unknown([labeled("w", "new"), rows[0]]) == {"new": 1}
    assert Classify().settled([*rows, labeled("v", "a")]).system is None, "several system messages"
    with pytest.raises(RecipeError, match="not known before training rows are read"):
        Classify().head()
    for wrong, said in (
        ({"labels": ["a", "a"]}, "names a label twice"),
        ({"labels": ["a", "b"], "counts": [1]}, "1 numbers for 2 labels"),
        ({"counts": [1, 2]}, "2 numbers for 0 labels"),
    ):
        with pytest.raises(RecipeError, match=said):
            build(Classify, wrong, ["objective"])
    with pytest.raises(DataError, match="one label, a string or a whole number"):
        Classify().settled([labeled("x", [1, 2])])
    several = MultiLabel(positive_weights="balanced").settled([labeled("x", ["a", "b"]), labeled("y", [])])
    assert (several.labels, several.weights) == (("a", "b"), (1.0, 1.0))
    number = Regress().settled([labeled("x", 1.0), labeled("y", "3")])
    assert (number.mean, number.std) == (2.0, 1.0)
    for rows, said in (([labeled("x", 2)] * 2, "the number 2"), ([labeled("x", "many")], "expected a number")):
        with pytest.raises(DataError, match=said):
            Regress().settled(rows)


def test_a_temperature_is_found_again() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 5)) * 2
    labels = [int(rng.choice(5, p=p)) for p in softmax(logits)]
    assert fit_temperature(3 * logits, labels) == pytest.approx(3, rel=0.06)
    assert fit_temperature(logits, [-1] * 4000) == 1.0
    certain = np.eye(3)[[0, 1, 2] * 10] * 5
    assert fit_temperature(certain, [0, 1, 2] * 10) > 0.3, "rows that are all right do not call for certainty"
    wanted = (rng.random((4000, 5)) < 1 / (1 + np.exp(-logits))).astype(float)
    assert fit_temperatures(logits * np.array([1, 2, 4, 1, 0.5]), wanted) == pytest.approx([1, 2, 4, 1, 0.5], rel=0.15)


def test_calibration_error_is_that_of_the_bins() -> None:
    sure = np.array([0.95, 0.95, 0.55, 0.55, 1.0])
    right = np.array([1.0, 0.0, 1.0, 1.0, 1.0])
    expected = (2 * abs(0.95 - 0.5) + 2 * abs(0.55 - 1.0)) / 5
    assert calibration_error(sure, right, 20)[0] == pytest.approx(expected)
    assert calibration_error(sure, right, 1)[0] == pytest.approx(abs(sure.mean() - right.mean()))


def test_a_threshold_holds_as_often_as_its_bound_says() -> None:
    """Of 300 draws in which right answers are as probable as confidence says, the true share right among those given
    is below what was wanted at most as often as a bound at 95 % allows, and a few by chance."""
    rng = np.random.default_rng(1)
    broken = found = 0
    for _ in range(300):
        sure = rng.beta(6, 1, size=300)
        threshold = find_threshold(sure, (rng.random(300) < sure).astype(float), 0.9)
        if threshold is None:
            continue
        found += 1
        true = rng.beta(6, 1, size=200_000)
        broken += true[true >= threshold.confidence].mean() < 0.9
        assert threshold.low >= 0.9 and threshold.answered <= threshold.rows == 300
    assert found > 150 and broken <= 0.08 * found


def test_a_threshold_needs_rows_enough() -> None:
    assert find_threshold(np.ones(50), np.ones(50), 0.95) is None
    assert lower_bound(58, 58, 0.95) < 0.95 <= lower_bound(59, 59, 0.95)
    assert [find_threshold(np.linspace(1, 0.5, n), np.ones(n), 0.95) is None for n in (58, 59)] == [True, False]
    assert lower_bound(91, 92, 0.95) < 0.95 <= lower_bound(92, 93, 0.95)
    assert find_threshold(np.linspace(1, 0.5, 93), np.arange(93) != 0, 0.95) is not None, "one of 93 may be wrong"
    assert find_threshold(np.linspace(1, 0.5, 100), np.ones(100), 1.0) is None, "no rows show that all are right"
    whole = find_threshold(np.linspace(1, 0.5, 100), np.ones(100), 0.95)
    assert whole is not None and whole.answered == 100 and whole.confidence == 0.5
    tied = find_threshold(np.array([0.9] * 95 + [0.8] * 95), np.array([1.0] * 95 + [0.0] * 95), 0.95)
    assert tied is not None and (tied.answered, tied.confidence) == (95, 0.9)


@pytest.mark.parametrize("rows", [60, 300])
def test_as_many_rows_as_were_told_mostly_show_a_threshold(rows: int) -> None:
    """Of texts of which the surest two thirds are right in 0.99."""

    def drawn(rows: int, rng: np.random.Generator) -> tuple[Any, Any]:
        sure = rng.random(rows)
        return sure, (rng.random(rows) < np.where(sure > 1 / 3, 0.99, 0.5)).astype(float)

    rng = np.random.default_rng(0)
    without = [one for one in (drawn(rows, rng) for _ in range(100)) if find_threshold(*one, 0.95) is None]
    told = [found for one in without if (found := rows_to_show(*one, 0.95)) is not None]
    assert len(told) > 20 and len(told) > 0.8 * len(without)
    enough = int(np.median(told))
    assert rows < enough <= 10 * rows
    assert np.mean([find_threshold(*drawn(enough, rng), 0.95) is not None for _ in range(100)]) > 0.6


def test_rows_that_are_wrong_too_often_are_never_enough() -> None:
    assert rows_to_show(np.linspace(1, 0.5, 200), np.arange(200) % 10 != 0, 0.95) is None
    assert rows_to_show(np.linspace(1, 0.5, 40), np.ones(40), 0.95) == 80, "59 were enough"
    assert rows_to_show(np.zeros(0), np.zeros(0), 0.95) is None is find_threshold(np.zeros(0), np.zeros(0), 0.95)


def test_two_wrong_answers_among_the_surest_end_no_search() -> None:
    """Each start has its share of the error and takes over what passed the ones before it."""
    right = np.ones(1000)
    right[[5, 40]] = 0
    found = find_threshold(np.linspace(1, 0.5, 1000), right, 0.95)
    assert found is not None and found.answered == 1000
    assert found.low == pytest.approx(lower_bound(998, 1000, 1 - 0.05 * 2 / 3)), "the first of three starts failed"
    right[[5, 40]] = 1
    found = find_threshold(np.linspace(1, 0.5, 1000), right, 0.95)
    assert found is not None and found.low == pytest.approx(lower_bound(1000, 1000)), "all three passed"


def test_a_precision_that_is_missed_everywhere_is_seldom_found() -> None:
    rng = np.random.default_rng(2)
    draws = [
        find_threshold(np.linspace(1, 0.5, 800), (rng.random(800) < 0.949).astype(float), 0.95) for _ in range(400)
    ]
    assert sum(found is not None for found in draws) <= 400 * 0.075


def test_words_carry_tags_and_give_their_spans_back(tiny_loaded: LoadedModel) -> None:
    text = "Meet Ada-Lovelace in New York, né 1815 😀 end."
    spans = [Span(5, 17, "person"), Span(21, 29, "place"), Span(31, 33, "word")]
    words = words_of(text)
    tags = tags_of(words, spans)
    assert tags[:6] == ["O", "B-person", "I-person", "I-person", "O", "B-place"]
    assert spans_from(words, tags) == spans
    assert spans_from([(0, 1), (2, 3), (4, 5)], ["I-a", "B-a", "I-b"]) == [
        Span(0, 1, "a"),
        Span(2, 3, "a"),
        Span(4, 5, "b"),
    ]
    template = build_template(tiny_loaded)
    ids, read, follows = read_after(text, template)
    tokens = template.text_spans(text)
    assert len(tokens) == len(ids) - 1 and list(ids[:-1]) == template.text_ids(text)
    assert all(a < b for a, b in itertools.pairwise(follows)), "each word has a token of its own"
    for (start, end), at in zip(read, follows, strict=True):
        assert tokens[at - 1][0] < end and (at == len(tokens) or tokens[at][0] >= end or tokens[at][1] <= start + 1)
    objective = TokenClassify(labels=("person", "place", "word"))
    example = labeled(text, [vars(span) for span in spans])
    (row,) = objective.rows(example, template)
    assert row.trained_tokens == len(read) and objective.head().outputs == 7
    held_out = labeled(text, [{"start": 0, "end": 4, "label": "new"}])
    (strange,) = objective.rows(held_out, template)
    assert min(strange.token_values["tag"]) == -1
    with pytest.raises(DataError, match="the text has"):
        objective.rows(labeled("short", [{"start": 0, "end": 99, "label": "person"}]), template)


def test_numbers_of_heads_mean_what_their_kind_says() -> None:
    number = Head(HeadShape("regress", bias=False, reading={"input": "text", "mean": 10.0, "std": 2.0}), 4, 0)
    reading = reading_of(number)
    assert [one.item["value"] for one in reading.say(np.array([[0.5], [-1.0]]))] == [11.0, 8.0]
    large = Head(HeadShape("regress", bias=False, reading={"input": "text", "mean": 1.7e9, "std": 2.0}), 4, 0)
    assert [one.output for one in reading_of(large).say(np.array([[0.5], [-1.0]]))] == ["1700000001", "1699999998"]
    number.found = reading.calibrate(np.arange(20.0)[:, None] / 10, {"number": np.zeros(20)})
    assert reading_of(number).told(0.9) == {"within": pytest.approx(3.6), "wanted_share": 0.9}
    assert reading_of(number).told(0.99)["within"] is None, "20 rows cannot tell"
    several = Head(HeadShape("multi_label", 2, labels=("a", "b"), reading={"input": "text"}), 4, 0)
    several.found = {"temperature": [1.0, 2.0]}
    (said,) = reading_of(several).say(np.array([[-1.0, 4.0]]))
    assert said.output == '["b"]' and said.probabilities["b"] == pytest.approx(1 / (1 + math.exp(-2)))
    with pytest.raises(EvaluationError, match="reads texts, not words"):
        reading_of(several).say_words(labeled("x", []), None, np.zeros((1, 2)))  # type: ignore[arg-type]


def test_numbers_far_from_zero_are_explained_like_others() -> None:
    metric, counts = RSquared(), np.ones((1, 4))

    def told(wanted: list[float], said: list[float]) -> float:
        rows = [Prediction(str(i), (), repr(b), a) for i, (a, b) in enumerate(zip(wanted, said, strict=True))]
        return float(metric.values(np.array(metric.statistics_of(rows)), counts)[0])

    near, off = [1.0, 2.0, 3.0, 4.0], [1.5, 2.0, 3.0, 4.0]
    assert told(near, off) == pytest.approx(0.95)
    assert told([1e12 + x for x in near], [1e12 + x for x in off]) == pytest.approx(0.95)
    assert math.isnan(told([0.1] * 4, [0.1, 0.2, 0.1, 0.1])), "no spread, whatever digits squares lose"
    for odd in (True, 1e60, 10**400):
        with pytest.raises(EvaluationError, match="expected a number below"):
            metric.statistics(Prediction("odd", (), "1", odd))


@pytest.mark.parametrize(
    ("values", "target", "reply"),
    [
        ({"text": "x", "number": 1234567.5}, 1234567.5, "1234567.5"),
        ({"text": "x", "number": 4}, 4.0, "4"),
        (
            {"text": "x y", "tokens": 2, "spans": [{"start": 0, "end": 1, "label": "a"}]},
            [{"text": "x", "start": 0, "end": 1, "label": "a"}],
            '[{"text": "x", "start": 0, "end": 1, "label": "a"}]',
        ),
    ],
)
def test_rows_say_what_they_hold(values: dict[str, Any], target: Any, reply: str) -> None:
    parse = text_number.parse if "number" in values else text_spans.parse
    example = parse(Record(values, NOWHERE))
    assert example.target == target and example.completion is not None and example.completion.content == reply


def test_the_linear_probe_finds_the_least_and_chooses_its_penalty() -> None:
    rng = np.random.default_rng(0)
    centers = np.eye(3, 8)
    wanted = np.arange(150) % 3
    vectors = centers[wanted] + 0.3 * rng.normal(size=(150, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    penalty, losses = choose_penalty(vectors, wanted, 3, folds=5)
    weights = fit(vectors, wanted, 3, penalty)
    assert (scores_of(weights, vectors).argmax(1) == wanted).mean() > 0.9
    assert penalty == min(losses, key=lambda one: one[1])[0] and len({loss for _, loss in losses}) > 3
    p_NC = softmax(scores_of(weights, vectors))
    onehot = np.eye(3)[wanted]
    gradient = (p_NC - onehot).T @ vectors + penalty * weights[:, :-1]
    assert np.abs(gradient).max() < 1e-2 and np.abs((p_NC - onehot).sum(0)).max() < 1e-2, "at the least it is 0"


def test_the_probe_answers_with_a_real_encoder(tmp_path: Path, tiny_loaded: LoadedModel) -> None:
    from luthier.evaluation.metrics.accuracy import Accuracy
    from luthier.evaluation.systems.base import Context
    from luthier.evaluation.systems.linear_probe import LinearProbe

    words = ("river", "city", "bridge")

    def rows(count: int, name: str) -> list[Conversation]:
        asked = [
            (Message("user", f"{words[i % 3]} {name} {i}"), Message("assistant", words[i % 3])) for i in range(count)
        ]
        return [Conversation(messages, id=f"{name}{i}") for i, messages in enumerate(asked)]

    context = Context(
        tiny_loaded, build_template(tiny_loaded), torch.no_grad, rows(30, "a"), rows(9, "b"), 4, "label", Accuracy(), ""
    )
    test = rows(12, "c")
    answers = LinearProbe(embedder=str(write_encoder(tmp_path / "encoder"))).answer(test, context)
    right = [a.output == row.messages[-1].content for a, row in zip(answers.answers, test, strict=True)]
    assert sum(right) >= 9 and answers.details["penalty"] > 0
    assert all(sum(a.probabilities.values()) == pytest.approx(1) for a in answers.answers if a.probabilities)
