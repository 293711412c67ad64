"""Objectives over preferences: the known optimum, what a whole step tells, what is remembered, what is refused."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine_runs import make_run, random_units, tiny_llama, verdicts
from tests.policies import Unasked
from torch import Tensor

from luthier import assemble
from luthier.config import build
from luthier.data.source import micro_batches
from luthier.data.templates import build_template
from luthier.engine import checkpoint
from luthier.engine.loop import train
from luthier.engine.run import Run
from luthier.errors import DataError, RecipeError
from luthier.examples import Conversation, Judged, Message, Row, Where
from luthier.models.forest import Batch, build_batch
from luthier.models.load import LoadedModel
from luthier.models.scorer import Scorer
from luthier.objectives._pairs import places
from luthier.objectives.base import Models, Objective
from luthier.objectives.cpo import CPO
from luthier.objectives.dpo import DPO
from luthier.objectives.kto import KTO, _mismatched
from luthier.recipe import OBJECTIVES, Recipe, build_part

# the closed form


class Bandit(Unasked):
    """A model of one question whose answers are one token each."""

    def __init__(self, logits_V: Tensor) -> None:
        self.logits_V = logits_V

    def token_logprobs(self, batch: Batch) -> Tensor:
        return self.logits_V.log_softmax(0)[batch.target_Q[batch.prediction_K]]


def cast(policy: Any, reference: Any = None) -> Models:
    """A cast that is asked for log-probabilities alone."""
    return Models(policy, reference)


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "js_divergence"])
def test_dpo_ends_at_the_known_optimum(divergence: Any) -> None:
    """All pairs, as often as people of Bradley and Terry would choose them: f'(pi / ref) is r / beta and a constant;
    for the reverse KL pi is in proportion to ref * exp(r / beta)."""
    beta, reward_V = 0.5, torch.tensor([1.0, 0.2, -0.4, 0.0], dtype=torch.float64)
    reference_V = torch.tensor([0.1, 0.9, -0.3, 0.5], dtype=torch.float64)
    logits_V = reference_V.clone().requires_grad_()
    models = cast(Bandit(logits_V), Bandit(reference_V))
    objective = DPO(beta=beta, f_divergence=divergence)
    pairs = list(itertools.permutations(range(4), 2))
    batches = [build_batch([Row((9, token), (0.0, 1.0)) for token in pair]) for pair in pairs]
    shares = [float(torch.sigmoid(reward_V[good] - reward_V[bad])) for good, bad in pairs]
    optimizer = torch.optim.LBFGS([logits_V], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-10)

    def closure() -> float:
        optimizer.zero_grad()
        total = torch.stack([share * objective.loss(models, b).total for share, b in zip(shares, batches, strict=True)])
        total.sum().backward()
        return float(total.sum())

    optimizer.step(closure)
    found_V, held_V = logits_V.detach().softmax(0), reference_V.softmax(0)
    ratio_V = found_V / held_V
    seen_V = {
        "reverse_kl": ratio_V.log(),
        "forward_kl": 1 - 1 / ratio_V,
        "js_divergence": torch.log(2 * ratio_V / (1 + ratio_V)),
    }[divergence]
    torch.testing.assert_close(seen_V - seen_V.mean(), (reward_V - reward_V.mean()) / beta, atol=1e-2, rtol=0)
    if divergence == "reverse_kl":
        torch.testing.assert_close(found_V, (reference_V + reward_V / beta).softmax(0), atol=1e-3, rtol=0)


# what a whole step tells


def sharp(seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """A model with opinions: that of random weights gives every token the same chance, and lengths alone would rank."""
    model = tiny_llama(seed, dtype)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)
    return model


def apart(folder: Path, objective: dict[str, Any], seed: int) -> Run:
    """A float64 run whose policy and reference are two models."""
    run = make_run(folder, torch.float64, objective=objective, adapter={"type": "full"}, base=sharp)
    run.models = Models(run.models.policy, Scorer(sharp(1 + seed, torch.float64).eval()))
    return run


def step_of(run: Run, groups: Sequence[Sequence[Row]]) -> tuple[float, Tensor]:
    """The loss of a step in these micro-batches, and its gradient."""
    with torch.no_grad():
        batches = list(run.objective.whole_step(run.models, [build_batch(group) for group in groups], {}))
    total = 0.0
    for batch in batches:
        loss = run.objective.loss(run.models, batch).total
        loss.backward()
        total += float(loss.detach())
    gradient = torch.cat([p.grad.flatten() for p in run.injected.trainable.values() if p.grad is not None])
    run.model.zero_grad()
    return total, gradient


@pytest.mark.parametrize(
    "objective",
    [
        {"type": "dpo", "penalty": "aot"},
        {"type": "dpo", "penalty": "aot_unpaired"},
        {"type": "kto"},
    ],
    ids=lambda objective: str(objective.get("penalty", objective["type"])),
)
def test_what_compares_rows_of_a_step_does_not_see_its_micro_batches(objective: dict[str, Any], tmp_path: Path) -> None:
    for seed in range(20):  # until rows of other units matter, so that there is something to see
        run = apart(tmp_path, objective, seed)
        units = run.source.step(1)
        whole, gradient = step_of(run, [[row for unit in units for row in unit]])
        if abs(sum(step_of(run, [list(unit)])[0] for unit in units) - whole) > 1e-3:
            break
    else:
        pytest.fail("every unit by itself has the loss that it has in its step")
    for parts in (micro_batches(units, 1), micro_batches(units[::-1], 60)):
        total, other = step_of(run, list(parts))
        assert total == pytest.approx(whole, rel=1e-9)
        assert (gradient - other).norm() <= 1e-6 * gradient.norm()


def test_kto_puts_replies_behind_other_prompts() -> None:
    rows = [row for unit in verdicts(random_units(5)) for row in unit]
    start = _start(rows[0])
    twin = Row((*rows[0].ids[:start], 1, 2), (*rows[0].loss_mask[:start], 1.0, 1.0), "0/1")
    rows.insert(1, twin)  # another reply to the first prompt, as of a pair
    made = [row for _, row in _mismatched(rows)]
    assert len(made) == len(rows)
    for before, row in zip(rows, made, strict=True):
        start = _start(before)
        assert row.ids[:start] == before.ids[:start] and not any(row.loss_mask[:start]) and all(row.loss_mask[start:])
        replies = [other.ids[_start(other) :] for other in rows if other.ids[: _start(other)] != before.ids[:start]]
        assert row.ids[start:] in replies
    assert list(_mismatched(rows[:2])) == []  # all rows have one prompt


def test_a_mismatched_row_is_no_longer_than_rows_may_be(tiny_loaded: LoadedModel) -> None:
    def judged(prompt: int, reply: int) -> Judged:
        texts = " ".join("word" for _ in range(prompt)), " ".join("word" for _ in range(reply))
        return Judged((Message("user", texts[0]),), (Message("assistant", texts[1]),), True, id=str(prompt))

    template = build_template(tiny_loaded, "model", max_tokens=60)
    rows = [row for one in (judged(40, 1), judged(1, 40)) for row in KTO().rows(one, template)]
    lengths = [len(row.ids) for _, row in _mismatched(rows)]
    assert max(lengths) == 60 and len(lengths) == 2


def _start(row: Row) -> int:
    return row.loss_mask.index(1.0)


def test_a_step_without_bad_replies_tells_nothing_of_them(tmp_path: Path) -> None:
    run = make_run(tmp_path, objective={"type": "kto"})
    good = [row for unit in run.source.step(1) for row in unit if row.values["good"]]
    with torch.no_grad():
        (batch,) = run.objective.whole_step(run.models, [build_batch(good)], {})
        assert run.objective.loss(run.models, batch).metrics.keys() == {"loss", "kl", "chosen_reward"}


def test_places_count_within_each_row() -> None:
    rows = [Row((1, 2, 3, 4), (0, 1, 1, 1), "a"), Row((1, 5), (0, 0), "b"), Row((1, 6, 7), (0, 1, 0.5), "c")]
    assert places(build_batch(rows)).tolist() == [0, 1, 2, 0, 1]


# what is remembered


@pytest.mark.parametrize("objective", [{"type": "bco"}, {"type": "dpo", "penalty": ["sigmoid", "bco", "sft"]}], ids=str)
def test_the_center_is_the_mean_of_earlier_steps_and_survives_a_stop(objective: dict[str, Any], tmp_path: Path) -> None:
    whole = make_run(tmp_path / "whole", objective=objective)
    rewards = []
    for step in train(whole):
        assert set(whole.state.memory) == {
            f"{k}_reward_{p}" for k in ("chosen", "rejected") for p in ("total", "count")
        }
        rewards.append(step.metrics["chosen_reward"])
    memory = whole.state.memory
    assert abs(memory["chosen_reward_total"]) > 1e-4
    if objective["type"] == "dpo":  # 4 pairs in every step
        assert memory["chosen_reward_count"] == 24
        assert memory["chosen_reward_total"] / 24 == pytest.approx(sum(rewards) / 6)

    stopped = make_run(tmp_path / "stopped", objective=objective)
    for step in train(stopped):
        if step.number == 3:
            checkpoint.save(stopped)
            break
    resumed = make_run(tmp_path / "stopped", objective=objective)
    found = checkpoint.latest(resumed.checkpoints)
    assert found is not None and found.step == 3
    checkpoint.restore(resumed, found.folder)
    list(train(resumed))
    assert resumed.state.memory == memory
    for name, parameter in resumed.injected.trainable.items():
        assert torch.equal(parameter, whole.injected.trainable[name])
    with torch.no_grad():
        (batch,) = whole.objective.whole_step(whole.models, [build_batch(whole.source.step(1)[0])], memory)
    halves = [memory[f"{kind}_reward_total"] / memory[f"{kind}_reward_count"] / 2 for kind in ("chosen", "rejected")]
    assert float(batch.values_R["center"][0]) == pytest.approx(sum(halves))


# what is refused


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"type": "dpo", "penalty": "sigmod"}, "did you mean 'sigmoid'"),
        ({"type": "dpo", "penalty": "hinge", "label_smoothing": 0.1}, "label_smoothing means nothing for hinge"),
        ({"type": "dpo", "penalty": ["sigmoid", "ipo"], "label_smoothing": 0.1}, "means nothing for ipo"),
        ({"type": "dpo", "penalty": "robust"}, "robust needs label_smoothing above 0"),
        ({"type": "dpo", "penalty": "exo"}, "exo needs label_smoothing above 0"),
        ({"type": "dpo", "penalty": "nca", "f_divergence": "forward_kl"}, "f_divergence means nothing for nca"),
        ({"type": "dpo", "f_alpha": 0.3}, "f_alpha is the coefficient"),
        ({"type": "dpo", "f_divergence": "alpha_divergence", "f_alpha": 1.0}, "is the reverse KL"),
        ({"type": "dpo", "tau": 0.3}, "tau belongs to"),
        ({"type": "dpo", "penalty": ["sft"]}, "one that compares the pair"),
        ({"type": "dpo", "penalty": ["aot", "aot_unpaired"]}, "expected one of them"),
        ({"type": "dpo", "penalty": ["sigmoid", "sft"], "weights": [1.0]}, "a number above 0 for each"),
        ({"type": "dpo", "weights": [2.0]}, "a number above 0 for each"),
        ({"type": "cpo", "penalty": "hinge", "label_smoothing": 0.1}, "means nothing for hinge"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_would_be_ignored_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        build_part(OBJECTIVES, settings, "sft", ["objective"])


def of(objective: str, **training: Any) -> Recipe:
    tables = {"model": {"name": "tiny"}, "data": {"train": "x"}, "adapter": {"type": "ia3"}}
    return build(Recipe, {**tables, "objective": {"type": objective}, "training": training})


def test_a_step_of_one_row_is_refused_where_rows_are_compared(
    make_tiny: Callable[[], LoadedModel], tmp_path: Path
) -> None:
    def begin(objective: str) -> Run:
        recipe, loaded = of(objective, rows_per_step=1, steps=1), make_tiny()
        units = {"train": random_units(2, 2), "validation": random_units(2, 2)}
        return assemble.build_run(recipe, loaded, assemble.make_trainable(recipe, loaded), units, "", tmp_path)

    with pytest.raises(RecipeError, match=r"'kto' compares the rows of a step: set training.rows_per_step to 2"):
        begin("kto")
    assert begin("dpo").steps == 1


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        ("kto", "'kto' trains on judged replies .* or preference pairs .* but this row is a conversation.*'sft'"),
        ("reward", "'reward' trains on preference pairs .*, but this row is a conversation"),
    ],
)
def test_rows_of_another_kind_are_refused_in_words(objective: str, said: str, tiny_loaded: LoadedModel) -> None:
    chat = Conversation((Message("user", "a"), Message("assistant", "b")), where=Where("rows.jsonl", 3))
    with pytest.raises(DataError, match=f"rows.jsonl, line 3: objective.type = {said}"):
        list(assemble.units_of(of(objective), [chat], build_template(tiny_loaded, "model")))


def test_without_a_reference_dpo_is_cpo_without_its_supervised_term() -> None:
    lengths = [4, 6, 3, 3]
    rows = [Row((9, *range(length)), (0.0, *(1.0,) * length), str(n)) for n, length in enumerate(lengths)]
    models = cast(Bandit(torch.randn(12, generator=torch.Generator().manual_seed(0))))
    batch = build_batch(rows)
    free: Objective = build(DPO, {"reference_free": True, "label_smoothing": 0.1})
    assert not free.uses_reference and free.loss_at_start() is None
    other = CPO(sft_weight=0.0, label_smoothing=0.1)
    torch.testing.assert_close(free.loss(models, batch).total, other.loss(models, batch).total)
