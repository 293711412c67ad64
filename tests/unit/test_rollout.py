"""Rollouts: what is sampled is a pure function, kept as it was, scored as it was drawn, and credited as it deserves."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine_runs import make_run

from luthier.data.templates import Template, build_template
from luthier.engine import checkpoint
from luthier.engine.loop import train
from luthier.engine.rollout import Cast, Grade, Plan, Prompt, Rollouts, Written
from luthier.engine.writing import OneTurn, OwnSampler
from luthier.errors import DataError, ModelError
from luthier.examples import Message
from luthier.models.heads import head_of
from luthier.models.load import LoadedModel
from luthier.models.scorer import Scorer
from luthier.objectives.base import Models, OnlineObjective
from luthier.objectives.grpo import GRPO
from luthier.objectives.ppo import PPO
from luthier.objectives.reinforce_plus_plus import ReinforcePlusPlus
from luthier.objectives.rloo import RLOO

PLAN = Plan(prompts_per_step=2, group_size=3, max_new_tokens=6, temperature=1.0, seed=0)
Graded = Callable[[Sequence[tuple[Prompt, Written]]], list[Grade]]


def by_length(answers: Sequence[tuple[Prompt, Written]]) -> list[Grade]:
    """The first token decides, so that replies differ."""
    return [Grade(float(written.ids[0] % 7), {"first": float(written.ids[0] % 7)}) for _, written in answers]


def prompts(template: Template, count: int = 5) -> list[Prompt]:
    asked = [(Message("user", f"Say the number {i}."),) for i in range(count)]
    return [Prompt(f"p{i}", tuple(template.prompt_ids(m)), m, {"number": i}) for i, m in enumerate(asked)]


@pytest.fixture
def loaded(make_tiny: Callable[..., LoadedModel]) -> LoadedModel:
    return make_tiny()


def rollouts(
    loaded: LoadedModel,
    folder: Path,
    plan: Plan = PLAN,
    grade: Graded = by_length,
    objective: OnlineObjective | None = None,
    key: str = "run",
    write: Any = None,
    models: Models | None = None,
) -> Rollouts:
    template = build_template(loaded, "model")
    write = write or OneTurn(OwnSampler(loaded, template.stop_ids), template, plan.max_new_tokens)
    models = models or Models(Scorer(loaded.model))
    cast = Cast(objective or GRPO(), models.at(plan.temperature), loaded.model, loaded.device, write, grade)
    asked = prompts(template)
    return Rollouts(plan, asked, asked[:2], cast, folder, key)


def unable(*_: Any) -> Any:
    raise AssertionError("sampled again")


def test_a_rollout_is_a_pure_function_of_seed_and_number(loaded: LoadedModel, tmp_path: Path) -> None:
    first, again = (rollouts(loaded, tmp_path / name) for name in "ab")
    assert first.step(1) == again.step(1)
    assert again.step(2) == rollouts(loaded, tmp_path / "c").step(2)  # whatever was sampled before
    other = rollouts(loaded, tmp_path / "d", replace(PLAN, seed=1))
    assert {row.ids for unit in other.step(1) for row in unit} != {row.ids for unit in first.step(1) for row in unit}
    assert any(len({row.ids for row in unit}) > 1 for unit in first.step(1))


def test_what_is_kept_is_read_and_not_sampled_again(loaded: LoadedModel, tmp_path: Path) -> None:
    whole = rollouts(loaded, tmp_path, replace(PLAN, updates=2))
    steps = [whole.step(number) for number in (1, 2, 3)]
    validated = whole.validating([], 3)
    reads = rollouts(loaded, tmp_path, replace(PLAN, updates=2), write=unable)
    assert [reads.step(number) for number in (1, 2, 3)] == steps
    assert reads.validating([], 3) == validated
    with pytest.raises(AssertionError, match="sampled again"):
        rollouts(loaded, tmp_path, key="another training", write=unable).step(1)


def test_a_reply_may_hold_any_end_of_a_line(loaded: LoadedModel, tmp_path: Path) -> None:
    step = rollouts(loaded, tmp_path).step(1)
    path = tmp_path / "rollout-000001.jsonl"
    lines = [json.loads(line) for line in path.read_bytes().split(b"\n") if line]
    texts = [line | {"text": "one\u2028two\x85three"} if "text" in line else line for line in lines]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in texts), encoding="utf-8")
    assert rollouts(loaded, tmp_path, write=unable).step(1) == step


def test_what_a_killed_process_left_unfinished_is_removed(loaded: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / ".rollout-000001.jsonl.0123456789ab.tmp").write_text('{"key"', encoding="utf-8")
    rollouts(loaded, tmp_path).step(1)
    assert [path.name for path in tmp_path.iterdir()] == ["rollout-000001.jsonl"]


def test_a_damaged_file_is_named(loaded: LoadedModel, tmp_path: Path) -> None:
    rollouts(loaded, tmp_path).step(1)
    (tmp_path / "rollout-000001.jsonl").write_text('{"key": "run"', encoding="utf-8")
    with pytest.raises(DataError, match=r"rollout-000001\.jsonl: is damaged"):
        rollouts(loaded, tmp_path).step(1)


def test_a_file_tells_texts_rewards_and_drift(loaded: LoadedModel, tmp_path: Path) -> None:
    rollouts(loaded, tmp_path).step(1)
    header, *lines = map(json.loads, (tmp_path / "rollout-000001.jsonl").read_text(encoding="utf-8").splitlines())
    assert header["rollout"] == 1 and len(header["places"]) == 2 and len(lines) == 6
    for line in lines:
        assert line["rewards"] == {"first": line["ids"][0] % 7} and line["values"]["reward"] == line["reward"]
        assert line["sampler_drift"] < 1e-5 and isinstance(line["text"], str)
        assert len(line["ids"]) == len(line["token_values"]["sampled_logprob"])


def test_a_sampler_with_other_weights_is_refused(
    loaded: LoadedModel, make_tiny: Callable[..., LoadedModel], tmp_path: Path
) -> None:
    template, other = build_template(loaded, "model"), make_tiny()
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)), alpha=0.3)
    for model, name in ((loaded, "own"), (other, "other")):
        write = OneTurn(OwnSampler(model, template.stop_ids), template, 6)
        source = rollouts(loaded, tmp_path / name, write=write)
        source.cast = replace(source.cast, most_drift=1.0)
        if model is loaded:
            assert source.rollout(1)[0]["sampler_drift"] < 1e-5
            continue
        with pytest.raises(ModelError, match=r"rollout 1: the sampler's log-probabilities are [\d.]+ nats a token"):
            source.step(1)


def test_passes_and_parts_take_each_prompt_once(loaded: LoadedModel, tmp_path: Path) -> None:
    source = rollouts(loaded, tmp_path, replace(PLAN, updates=2, minibatches=2))
    ids = [[unit[0].id for unit in source.step(number)] for number in range(1, 9)]
    assert all(len(step) == 2 for step in ids)
    for first in (0, 4):  # the two rollouts, of four prompts each
        one, two = (ids[first] + ids[first + 1], ids[first + 2] + ids[first + 3])
        assert sorted(one) == sorted(two) and len(set(one)) == 4
    assert {p.name for p in tmp_path.iterdir()} == {"rollout-000001.jsonl", "rollout-000002.jsonl"}
    assert "old_logprob" in source.step(1)[0][0].token_values
    assert "old_logprob" not in rollouts(loaded, tmp_path / "one").step(1)[0][0].token_values


def test_at_another_temperature_training_scores_what_was_drawn(loaded: LoadedModel, tmp_path: Path) -> None:
    plan = replace(PLAN, temperature=0.6, updates=2)
    source = rollouts(loaded, tmp_path, plan)

    def drift(models: Models) -> float:
        from luthier.models.forest import build_batch

        batch = build_batch([row for unit in source.step(1) for row in unit])
        with torch.no_grad():
            return float((models.policy.token_logprobs(batch) - batch.values_K["sampled_logprob"]).abs().max())

    assert drift(source.cast.models) < 1e-4
    assert drift(Models(Scorer(loaded.model))) > 0.05


def test_groups_of_equal_rewards_are_replaced_within_a_bound(loaded: LoadedModel, tmp_path: Path) -> None:
    def only_later(answers: Sequence[tuple[Prompt, Written]]) -> list[Grade]:
        """Prompts 0 to 2 always get the same reward."""
        return [Grade(0.5 if p.item["number"] < 3 else float(i)) for i, (p, _) in enumerate(answers)]

    def dead(source: Rollouts) -> tuple[int, int]:
        header, *_ = source.rollout(1)
        flags = [row.values["dead"] for unit in source.step(1) for row in unit]
        assert sum(flags) == header["dead_groups"] * PLAN.group_size
        return header["dead_groups"], header["replaced_groups"]

    plan = replace(PLAN, prompts_per_step=4)
    none, some = (rollouts(loaded, tmp_path / str(n), replace(plan, resample=n), only_later) for n in (0, 6))
    assert dead(none) == (dead(none)[0], 0) and dead(none)[0] >= 2
    left, replaced = dead(some)
    assert left < dead(none)[0] and replaced >= dead(none)[0]
    always = rollouts(loaded, tmp_path / "always", replace(plan, resample=2), lambda a: [Grade(1.0) for _ in a])
    assert dead(always) == (4, 8)
    assert all(row.values["advantage"] == 0 for unit in always.step(1) for row in unit)


@pytest.mark.parametrize(
    ("objective", "dead"),
    [(GRPO(), 1.0), (RLOO(), 1.0), (ReinforcePlusPlus(baseline=True), 1.0), (ReinforcePlusPlus(), 0.0), (PPO(), 0.0)],
)
def test_equal_replies_teach_nothing_where_they_are_compared_with_one_another(
    objective: OnlineObjective, dead: float, loaded: LoadedModel, tmp_path: Path
) -> None:
    def of_the_prompt(answers: Sequence[tuple[Prompt, Written]]) -> list[Grade]:
        return [Grade(float(prompt.item["number"])) for prompt, _ in answers]

    objective = objective.model_copy(update={"beta": 0.0})
    head = None if (shape := objective.head()) is None else head_of(loaded.model, shape, 0)
    models = Models(Scorer(loaded.model, head=head))
    source = rollouts(loaded, tmp_path / "a", grade=of_the_prompt, objective=objective, models=models)
    assert source.first()["dead"] == dead
    rows = [row for unit in source.step(1) for row in unit]
    taught = {
        value for row in rows for value in (row.values.get("advantage", 0.0), *row.token_values.get("advantage", ()))
    }
    assert (taught == {0.0}) == (dead == 1.0)
    same = rollouts(loaded, tmp_path / "b", grade=lambda a: [Grade(1.0) for _ in a], objective=objective, models=models)
    assert same.first()["dead"] == 1.0


def test_rows_replies_are_worth_nothing_where_only_an_environment_rewards(loaded: LoadedModel, tmp_path: Path) -> None:
    source = rollouts(loaded, tmp_path, grade=lambda answers: [Grade(0.0) for _ in answers])
    source.prompts = [replace(prompt, reference=Message("assistant", "4")) for prompt in source.prompts]
    assert source.reference_rewards(3) == []
    unread = {"number": "no number"}
    source.cast = replace(source.cast, grade=lambda answers: [Grade(0.0, {"number": 0.0}, unread) for _ in answers])
    assert source.reference_rewards(2) == [(row, 0.0, 0.0, "no number") for row in ("p0", "p2")]
    assert len(source.reference_rewards(3)) == 3


def test_replies_that_were_cut_off_can_be_left_out(loaded: LoadedModel, tmp_path: Path) -> None:
    template = build_template(loaded, "model")
    one = OneTurn(OwnSampler(loaded, template.stop_ids), template, PLAN.max_new_tokens)

    def first_ends(asked: Sequence[Prompt], seeds: Sequence[int], temperature: float) -> list[Written]:
        found = one(asked, seeds, temperature)
        return [replace(written, truncated=i > 0) for i, written in enumerate(found)]

    plan = replace(PLAN, mask_truncated=True)
    rows = [row for unit in rollouts(loaded, tmp_path / "a", plan, write=first_ends).step(1) for row in unit]
    assert [row.trained_tokens > 0 for row in rows] == [True] + [False] * 5
    assert [row.values["truncated"] for row in rows] == [0.0] + [1.0] * 5
    with pytest.raises(DataError, match=r"raise rollout\.max_new_tokens"):
        cut = lambda *a: [replace(w, truncated=True) for w in one(*a)]  # noqa: E731
        rollouts(loaded, tmp_path / "b", plan, write=cut).step(1)


def test_the_reward_falls_towards_the_limit(loaded: LoadedModel, tmp_path: Path) -> None:
    plan = replace(PLAN, overlong_tokens=4)
    lines = rollouts(loaded, tmp_path, plan, lambda answers: [Grade(1.0) for _ in answers]).rollout(1)[1:]
    for line in lines:
        assert line["reward"] == 1 - max(len(line["ids"]) - 2, 0) / 4


@pytest.mark.parametrize("name", ["grpo", "rloo", "reinforce_plus_plus", "ppo"])
def test_the_one_rewarded_token_becomes_certain(name: str, loaded: LoadedModel, tmp_path: Path) -> None:
    run = make_run(
        tmp_path,
        base=lambda dtype: loaded.model,
        objective={"type": name, "beta": 0.0},
        adapter={"type": "lora"},
        schedule={"type": "linear"},
        optimizer={"learning_rate": 1e-2},
        training={"steps": 40, "rows_per_step": 2, "patience": False, "validate_every": 40, "save_every": 1000},
    )
    plan = replace(PLAN, group_size=16, max_new_tokens=1)
    template = build_template(loaded, "model")
    with torch.no_grad():
        logits = loaded.model(torch.tensor([prompts(template)[0].ids])).logits[0, -1]
    wanted = int(logits.argsort(descending=True)[2])

    def grade(answers: Sequence[tuple[Prompt, Written]]) -> list[Grade]:
        return [Grade(float(written.ids[0] == wanted)) for _, written in answers]

    assert isinstance(run.objective, OnlineObjective)
    source = rollouts(loaded, tmp_path / "rollouts", plan, grade, run.objective, models=run.models)
    run.source, run.models, run.validation = source, source.cast.models, source.planned_validation()
    steps = list(train(run))
    assert steps[0].metrics["reward"] < 0.5 and steps[0].metrics["ratio"] == 1 and steps[0].metrics["approx_kl"] == 0
    assert steps[0].metrics["clip_fraction"] == 0 and steps[0].metrics["sampler_drift"] < 1e-5
    assert steps[-1].metrics["reward"] > 0.9
    with torch.no_grad():
        assert float(loaded.model(torch.tensor([prompts(template)[0].ids])).logits[0, -1].softmax(0)[wanted]) > 0.9
    assert steps[-1].metrics["validation_loss"] == -1.0


def test_what_one_rollout_hands_to_the_next_is_the_memory_of_checkpoints(loaded: LoadedModel, tmp_path: Path) -> None:
    run = make_run(
        tmp_path,
        base=lambda dtype: loaded.model,
        objective={"type": "ppo", "beta": 0.1, "kl_target": 1.0, "kl_horizon": 24},
        training={"steps": 4, "rows_per_step": 2, "patience": False, "validate_every": 4, "save_every": 3},
    )
    assert isinstance(run.objective, OnlineObjective)
    plan = replace(PLAN, updates=2)
    source = rollouts(loaded, tmp_path / "rollouts", plan, objective=run.objective, models=run.models)
    run.source, run.models, run.validation = source, source.cast.models, source.planned_validation()
    told = [step.metrics["kl_coefficient"] for step in train(run)]
    # policy and reference are one here: the divergence is 0, so a fifth comes off for each 24 replies
    after = [0.1, 0.1 * (1 - 0.2 * 6 / 24), 0.1 * (1 - 0.2 * 6 / 24) ** 2]
    assert told == pytest.approx([after[0], after[0], after[1], after[1]])
    assert run.state.memory == pytest.approx({"kl_coefficient": after[2]})
    run.state.memory = {}
    checkpoint.restore(run, run.checkpoints / "step-000003")
    assert run.state.memory == pytest.approx({"kl_coefficient": after[2]})
