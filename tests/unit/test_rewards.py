"""Reward models: what the losses are, what is read where, and that a rule is learned where there is one."""

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.reward import prepare
from tests.engine_runs import make_run, random_units, tiny_llama

from luthier.data.formats import stepwise
from luthier.data.read import Record
from luthier.data.source import Source, Unit
from luthier.data.templates import Template, build_template
from luthier.engine import checkpoint
from luthier.engine.heads import settle_head
from luthier.engine.loop import train
from luthier.errors import DataError, EvaluationError
from luthier.evaluation.ensemble import combine
from luthier.evaluation.rewards import RewardModel
from luthier.evaluation.significance import clopper_pearson
from luthier.examples import Conversation, Message, Preference, Row, Where
from luthier.models.forest import build_batch
from luthier.models.heads import HeadShape, head_of
from luthier.models.load import LoadedModel
from luthier.models.scorer import Scorer
from luthier.objectives.process_reward import ProcessReward, ends_of, line_ends, stepwise_row
from luthier.objectives.reward import Reward
from luthier.objectives.sft import SFT

ASKED = (Message("user", "Which number is larger?"),)
PAIR = Preference(ASKED, (Message("assistant", "Nine."),), (Message("assistant", "I do not know."),), id="p")
SHAPE = HeadShape("reward", normalized=True, bias=False, start="normal")


@pytest.fixture
def template(tiny_loaded: LoadedModel) -> Template:
    return build_template(tiny_loaded, "model")


def pairs(count: int, seed: int) -> list[Unit]:
    return random_units(count, 2, seed, values={"margin": 0.0})


# the loss


@pytest.mark.parametrize(("margin", "centering"), [(0.0, 0.0), (1.5, 0.0), (0.0, 0.01), (1.5, 0.2)])
def test_the_loss_is_the_formula(margin: float, centering: float, tmp_path: Path) -> None:
    run = make_run(tmp_path, torch.float64, objective={"type": "reward", "centering": centering})
    rows = [replace(row, values={"margin": margin}) for unit in run.source.step(1) for row in unit]
    batch = build_batch(rows)
    rewards = run.models.policy.head_values(batch).rows_RO[:, 0].tolist()
    loss = run.objective.loss(run.models, batch)
    wanted = sum(
        math.log1p(math.exp(-(a - b - margin))) + centering * (a + b) ** 2
        for a, b in zip(rewards[0::2], rewards[1::2], strict=True)
    )
    assert float(loss.total.detach()) == pytest.approx(wanted, abs=1e-9)
    assert loss.metrics["reward"].value() == pytest.approx(sum(rewards) / len(rewards))
    assert (run.injected.head is not None) and (run.injected.head.bias is not None) == (centering > 0)


@pytest.mark.parametrize("kind", ["reward", "process_reward"])
def test_a_head_of_zeros_begins_at_ln_2_and_half_right(kind: str, tmp_path: Path) -> None:
    run = make_run(tmp_path, objective={"type": kind, "head_start": "zeros"})
    metrics = run.objective.loss(run.models, build_batch([r for unit in run.source.step(1) for r in unit])).metrics
    assert metrics["loss"].value() == pytest.approx(0.6931472, abs=1e-6) and metrics["accuracy"].value() == 0.5


def test_a_row_ends_with_its_turn_where_the_head_reads(template: Template) -> None:
    for row in Reward().rows(PAIR, template):
        assert (
            row.ids[-1] == template.end_of_turn_id
            and row.loss_mask[-1] == 1
            and row.values == {"margin": 0.0, "probability": 1.0}
        )
        batch = build_batch([row])
        assert int(batch.forest.ids_N[batch.last_R[0]]) == template.end_of_turn_id


@pytest.mark.parametrize(("given", "margin"), [(2, 2.0), (0.5, 0.5), (None, 0.0), ("1.5", 1.5), ("", 0.0)])
def test_a_margin_is_a_field_of_the_row(given: Any, margin: float, template: Template) -> None:
    for row in Reward().rows(replace(PAIR, extra={"margin": given}), template):
        assert row.values == {"margin": margin, "probability": 1.0}


@pytest.mark.parametrize("given", ["much", True, float("nan"), [1]])
def test_a_margin_that_is_no_number_is_refused_with_its_line(given: Any, template: Template) -> None:
    wrong = replace(PAIR, extra={"margin": given}, where=Where("rows.jsonl", 3))
    with pytest.raises(DataError, match=r"rows.jsonl, line 3: 'margin' is .*expected a number"):
        Reward().rows(wrong, template)


# learning


def ranked(count: int, seed: int, score: Callable[[list[Row]], list[float]]) -> list[Unit]:
    """Random pairs that the score tells well apart, the better one of each first."""
    units = pairs(count, seed)
    scores = score([row for unit in units for row in unit])
    scored = zip(units, scores[0::2], scores[1::2], strict=True)
    return [unit if a > b else unit[::-1] for unit, a, b in scored if abs(a - b) > 0.3]


@pytest.mark.slow
@pytest.mark.parametrize("labels", ["true", "shuffled"])
def test_a_hidden_linear_rule_is_learned_and_shuffled_labels_are_not(labels: str, tmp_path: Path) -> None:
    """The rule is a head over the base's hidden states that nobody shows; what a coin says of one pair tells nothing of
    another, unless something leaks."""
    model = tiny_llama()
    teacher = head_of(model, SHAPE, seed=77)

    def score(rows: list[Row]) -> list[float]:
        with torch.no_grad():
            found: list[float] = Scorer(model, head=teacher).head_values(build_batch(rows)).rows_RO[:, 0].tolist()
        return found

    def toss(rows: list[Row]) -> list[float]:
        found: list[float] = torch.randn(len(rows), generator=torch.Generator().manual_seed(len(rows))).tolist()
        return found

    settings = {"steps": 80, "rows_per_step": 12, "patience": 1000, "validate_every": 80}
    tables: dict[str, Any] = {"adapter": {"type": "ia3"}, "optimizer": {"learning_rate": 5e-2}}
    run = make_run(tmp_path, objective={"type": "reward"}, training=settings, **tables)
    rule = score if labels == "true" else toss
    run.source, run.validation = Source(ranked(800, 1, rule), 12, 0), ranked(16, 2, rule)
    for _ in train(run):
        pass
    held_out = ranked(250, 3, rule)
    with torch.no_grad():
        batch = build_batch([row for unit in held_out for row in unit])
        found = run.objective.loss(run.models, batch).metrics["accuracy"].value()
    if labels == "true":
        assert found > 0.95
    else:
        low, high = clopper_pearson(round(found * len(held_out)), len(held_out))
        assert low <= 0.5 <= high


@pytest.mark.parametrize("kind", ["reward", "process_reward"])
def test_a_resumed_training_ends_with_the_same_bits_of_adapter_and_head(kind: str, tmp_path: Path) -> None:
    settings = {"steps": 6, "rows_per_step": 4, "save_every": 3}
    whole, first, again = (
        make_run(tmp_path / name, objective={"type": kind}, training=settings) for name in ("whole", "cut", "cut")
    )
    for _ in train(whole):
        pass
    for step in train(first):
        if step.number == 3:
            break
    found = checkpoint.latest(again.checkpoints)
    assert found is not None and found.step == 3
    checkpoint.restore(again, found.folder)
    for _ in train(again):
        pass
    assert "head.weight" in whole.injected.trainable
    for name, parameter in whole.injected.trainable.items():
        assert torch.equal(parameter, again.injected.trainable[name]), name


def test_rewards_are_told_by_mean_and_spread_of_the_validation_rows(tmp_path: Path) -> None:
    run = make_run(tmp_path, objective={"type": "reward"})
    head = run.injected.head
    assert head is not None
    settle_head(run)
    rows = [row for unit in run.validation for row in unit]
    with torch.no_grad():
        told = head.normal(run.models.policy.head_values(build_batch(rows)).rows_RO)
    assert float(told.mean()) == pytest.approx(0, abs=1e-5)
    assert float(told.std(correction=0)) == pytest.approx(1, abs=1e-5)
    head.settle(torch.ones(4, 1))
    assert float(head.std) == 1, "rewards that are all alike are not divided by 0"


# what is read


def model(loaded: LoadedModel, shape: HeadShape = SHAPE) -> RewardModel:
    return RewardModel(loaded, build_template(loaded, "model"), head_of(loaded.model, shape, seed=1))


def test_a_reply_is_judged_alike_alone_and_beside_others(tiny_loaded: LoadedModel) -> None:
    chats = [Conversation((*ASKED, Message("assistant", "Nine. " * n))) for n in (1, 5, 2, 30)]
    judge = model(tiny_loaded)
    together = [one.reward for one in judge.judge(chats)]
    assert together == pytest.approx([judge.judge([chat])[0].reward for chat in chats], abs=1e-5)
    assert len(set(together)) == 4


def test_what_cannot_be_judged_is_one_clear_message(tiny_loaded: LoadedModel) -> None:
    judge = model(tiny_loaded)
    with pytest.raises(EvaluationError, match="ends with a user message"):
        judge.judge([Conversation(ASKED, id="c")])
    with pytest.raises(EvaluationError, match=r"^c has \d+ tokens, and the model's context ends at 1024"):
        judge.judge([Conversation((*ASKED, Message("assistant", "word " * 3000)), id="c")])
    with pytest.raises(EvaluationError, match="a head of kind 'value'"):
        model(tiny_loaded, HeadShape("value"))
    with pytest.raises(EvaluationError, match="no head"):
        RewardModel(tiny_loaded, build_template(tiny_loaded, "model"), None)


# steps


STEPS = {"prompt": "Add 2 and 3.", "completions": ["2 and 3 are 5.", "So 6.", "Done"], "labels": [True, False, 0.5]}


def steps_row(**changes: Any) -> Conversation:
    return stepwise.parse(Record({**STEPS, **changes}, Where("rows.jsonl", 7)))


def test_each_step_is_read_at_its_own_end(template: Template, tiny_loaded: LoadedModel) -> None:
    example = steps_row()
    assert example.messages[-1].content == "2 and 3 are 5.\nSo 6.\nDone"
    (row,) = ProcessReward().rows(example, template)
    reply = next(i for i, weight in enumerate(row.loss_mask) if weight)
    places = [i for i, is_step in enumerate(row.token_values["step"]) if is_step]
    assert [row.token_values["label"][i] for i in places] == [1.0, 0.0, 0.5]
    read = [tiny_loaded.tokenizer.decode(row.ids[reply:i]).rstrip("\n") for i in places]
    assert read == ["2 and 3 are 5.", "2 and 3 are 5.\nSo 6.", "2 and 3 are 5.\nSo 6.\nDone"]
    assert row.ids[places[-1]] == template.end_of_turn_id
    cut = ProcessReward().rows(example, build_template(tiny_loaded, "model", max_tokens=places[1]))[0]
    assert sum(cut.token_values["step"]) == 1


def test_steps_of_a_served_reply_are_its_lines(template: Template, tiny_loaded: LoadedModel) -> None:
    text = "2 and 3 are 5.\n\nSo 6.\n"
    assert [text[:end] for end in line_ends(text)] == ["2 and 3 are 5.", "2 and 3 are 5.\n\nSo 6."]
    assert line_ends("a\nb") == ends_of(["a", "b"])
    judge = model(tiny_loaded, HeadShape("process_reward", start="normal"))
    (found,) = judge.judge([Conversation((*ASKED, Message("assistant", "a\nb c")))])
    assert found.steps is not None and len(found.steps) == 2 and found.reward == min(found.steps)
    row = stepwise_row(template, Conversation((*ASKED, Message("assistant", "a\nb c"))), line_ends("a\nb c"))
    batch = build_batch([row])
    with torch.no_grad():
        raw = Scorer(tiny_loaded.model, head=judge.head).head_values(batch).tokens_KO[batch.values_K["step"] > 0, 0]
    assert found.steps == pytest.approx(raw.sigmoid().tolist(), abs=1e-6)
    with pytest.raises(EvaluationError, match="no line that says something"):
        judge.judge([Conversation((*ASKED, Message("assistant", " \n")))])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": [True]}, "3 steps in 'completions' but 1 in 'labels'"),
        ({"completions": ["a", "", "b"]}, "step 2 of 'completions'"),
        ({"completions": []}, "'completions' is"),
        ({"labels": [True, 2, False]}, "label 2 is 2; expected true or false, or a number from 0 to 1"),
        ({"target": "x"}, "both 'labels' and 'target'"),
    ],
)
def test_steps_that_cannot_be_read_are_refused_with_their_line(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        steps_row(**changes)


def test_judged_steps_are_learned_by_no_objective_that_would_learn_the_wrong_ones(template: Template) -> None:
    with pytest.raises(DataError, match="and sft would learn them all"):
        SFT().rows(steps_row(), template)
    with pytest.raises(DataError, match="process_reward needs judged steps"):
        ProcessReward().rows(Conversation((*ASKED, Message("assistant", "x"))), template)
    earlier = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    (row,) = ProcessReward().rows(steps_row(prompt=earlier), template)
    assert row.trained_tokens == ProcessReward().rows(steps_row(), template)[0].trained_tokens


# several models


def test_rewards_of_several_models_become_one() -> None:
    assert combine([1.0, 3.0]) == 2.0
    assert combine([1.0, 3.0], "minimum") == 1.0
    assert combine([1.0, 3.0], "deviation") == 1.0
    assert combine([1.0, 3.0], "deviation", k=2.5) == -0.5
    assert combine([0.3], "deviation", k=9.0) == pytest.approx(0.3)


# the benchmark


def test_a_benchmark_never_tells_the_figures_of_other_options(tmp_path: Path) -> None:
    def asked(characters: int) -> argparse.Namespace:
        return argparse.Namespace(data=tmp_path, out=tmp_path / "out", pairs=2, characters=characters)

    def row(length: int) -> str:
        sides = {name: [{"role": "assistant", "content": name * length}] for name in ("chosen", "rejected")}
        return json.dumps({"prompt": [{"role": "user", "content": "a"}], **sides})

    (tmp_path / "preference").mkdir()
    (tmp_path / "preference/train.jsonl").write_text(f"{row(1)}\n{row(9)}\n", encoding="utf-8")
    place = prepare(asked(20), "tiny", "true", 0)
    assert len((place / "train.jsonl").read_text(encoding="utf-8").splitlines()) == 1
    assert prepare(asked(20), "tiny", "true", 0) == place
    with pytest.raises(SystemExit, match="is of other rows or settings than these"):
        prepare(asked(200), "tiny", "true", 0)
