"""The loop: what a step does, when it stops, and that it is exact."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine_runs import make_run, random_units

from luthier import registry
from luthier.data.source import Source, Unit, order
from luthier.engine import checkpoint
from luthier.engine.loop import train, validation_loss, validation_metrics
from luthier.engine.run import Run
from luthier.engine.schedules.base import Schedule
from luthier.errors import NonFiniteStep
from luthier.models.forest import build_batch
from luthier.recipe import SCHEDULES


def weights(run: Run) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in run.injected.trainable.items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


DROPOUT: dict[str, Any] = {
    "adapter": {"type": "lora", "dropout": 0.2},
    "training": {"steps": 7, "rows_per_step": 4, "save_every": 1, "patience": 100},
}


@pytest.mark.parametrize("adapter", ["lora", "full"])
@pytest.mark.parametrize("stop", [1, 3, 6])
def test_a_resumed_run_ends_with_bit_identical_weights(adapter: str, stop: int, tmp_path: Path) -> None:
    tables: dict[str, Any] = {
        **DROPOUT,
        "adapter": {"type": adapter, **({"dropout": 0.2} if adapter == "lora" else {})},
    }
    whole = make_run(tmp_path / "whole", **tables)
    steps = [step.metrics for step in train(whole)]
    first = make_run(tmp_path / "parts", **tables)
    for step in train(first):
        if step.number == stop:
            break
    torch.manual_seed(123)  # another process has other random numbers
    second = make_run(tmp_path / "parts", **tables)
    found = checkpoint.latest(second.checkpoints)
    assert found is not None and found.step == stop
    checkpoint.restore(second, found.folder)
    rest = [step.metrics for step in train(second)]
    assert equal(weights(whole), weights(second))
    assert rest == steps[stop:]
    assert whole.state.tokens == second.state.tokens and whole.state.best_loss == second.state.best_loss


def test_the_learning_rate_follows_the_schedule_and_warms_up(tmp_path: Path) -> None:
    run = make_run(
        tmp_path,
        training={"steps": 10, "rows_per_step": 2, "patience": 100},
        schedule={"type": "linear", "warmup_share": 0.2},
    )
    rates = [step.metrics["learning_rate"] for step in train(run)]
    expected = [1 / 3, 2 / 3] + [1 - i / 8 for i in range(8)]
    assert rates == pytest.approx([1e-2 * f for f in expected])


@pytest.mark.parametrize("name", registry.names(SCHEDULES))
def test_schedules_stay_between_0_and_1(name: str) -> None:
    schedule = registry.load_class(SCHEDULES, name, Schedule)()  # type: ignore[type-abstract]
    for steps in (1, 2, 3, 10, 997):
        factors = [schedule.factor(step, steps) for step in range(1, steps + 1)]
        assert all(0 <= f <= 1 for f in factors)
        assert max(factors) == pytest.approx(1.0)


def test_a_non_finite_gradient_stops_before_the_update_and_names_the_rows(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    steps = train(run)
    next(steps)
    before = weights(run)
    with torch.no_grad():
        run.model.get_parameter("model.norm.weight").fill_(math.nan)
    with pytest.raises(NonFiniteStep, match=r"step 2.*weights were not updated.*Rows of the step: \d+/0"):
        next(steps)
    assert equal(before, weights(run))


def test_a_base_that_computes_nan_is_refused_before_step_1(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with torch.no_grad():
        run.model.get_parameter("model.norm.weight").fill_(math.nan)
    with pytest.raises(NonFiniteStep, match="step 0: the validation loss of the untrained model is nan"):
        next(train(run))
    assert not run.checkpoints.exists()


def test_early_stopping_keeps_the_best_checkpoint(tmp_path: Path) -> None:
    run = make_run(
        tmp_path,
        training={"steps": 200, "rows_per_step": 10, "validate_every": 2, "patience": 3, "keep": 1},
        optimizer={"learning_rate": 5e-2},
        schedule={"type": "constant"},
    )
    steps = list(train(run))
    assert run.state.stopped_early and len(steps) < 200
    assert run.state.best_step == run.state.step - 2 * 3
    measured = {s.number: s.metrics["validation_loss"] for s in steps if "validation_loss" in s.metrics}
    assert run.state.best_loss == measured[run.state.best_step] == min(measured.values())
    checkpoint.load_weights(run, checkpoint.best(run).folder)
    assert validation_loss(run) == run.state.best_loss


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_token_accuracy_is_the_weighted_share_of_first_choices(adapter: str, tmp_path: Path) -> None:
    run = make_run(
        tmp_path, adapter={"type": adapter}, training={"steps": 2, "rows_per_step": 4, "micro_batch_tokens": 40}
    )
    run.validation = [_half(unit) if number % 2 else unit for number, unit in enumerate(run.validation)]
    for step in train(run):
        assert 0 <= step.metrics["token_accuracy"] <= 1
    found = validation_metrics(run)["token_accuracy"]
    assert step.metrics["validation_token_accuracy"] == found
    right = weight = 0.0
    for unit in run.validation:
        for row in unit:
            batch = build_batch([row])
            with torch.no_grad():
                chosen_H = run.models.policy.logits(batch).argmax(-1)
            right_K = (chosen_H[batch.hidden_Q] == batch.target_Q)[batch.prediction_K]
            right += float((right_K * batch.loss_mask_K).sum())
            weight += float(batch.loss_mask_K.sum())
    assert found == pytest.approx(right / weight, abs=1e-9) and 0 < right < weight


def _half(unit: Unit) -> Unit:
    return tuple(replace(row, loss_mask=tuple(weight / 2 for weight in row.loss_mask)) for row in unit)


def test_what_preferences_tell_of_the_validation_rows_is_noted_too(tmp_path: Path) -> None:
    run = make_run(tmp_path, objective={"type": "dpo"}, training={"steps": 2, "rows_per_step": 4})
    *_, last = train(run)
    assert {name for name in last.metrics if name.startswith("validation_")} == {
        "validation_loss",
        "validation_margin",
        "validation_accuracy",
        "validation_chosen_reward",
        "validation_rejected_reward",
    }


def test_clipping_bounds_the_update(tmp_path: Path) -> None:
    norms = []
    for limit in (1e9, 1e-3):
        run = make_run(tmp_path / str(limit), training={"steps": 1, "rows_per_step": 4, "max_grad_norm": limit})
        (step,) = train(run)
        norms.append(step.metrics["grad_norm"])
        gradient_memory = [v["exp_avg"].norm() for v in run.optimizer.state.values()]
        total = float(torch.stack(gradient_memory).norm()) * 10  # after one step exp_avg = (1 - 0.9) gradient
        assert total == pytest.approx(min(limit, norms[-1]), rel=1e-3)
    assert norms[0] == norms[1]


def test_gradient_checkpointing_changes_nothing(tmp_path: Path) -> None:
    plain = make_run(tmp_path / "a")
    list(train(plain))
    run = make_run(tmp_path / "b")
    run.model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    list(train(run))
    assert equal(weights(plain), weights(run))


def test_the_peak_of_an_earlier_process_is_not_forgotten(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.state.peak_memory_bytes = 2**50  # more than this machine has
    list(train(run))
    again = make_run(tmp_path)
    found = checkpoint.latest(again.checkpoints)
    assert found is not None
    checkpoint.restore(again, found.folder)
    assert again.state.peak_memory_bytes == 2**50
    other = make_run(tmp_path / "other")
    list(train(other))
    assert 2**20 < other.state.peak_memory_bytes < 2**50


@pytest.mark.parametrize("name", registry.names(SCHEDULES))
def test_every_step_learns(name: str) -> None:
    """A schedule that falls to zero reaches it after the last step, as in transformers."""
    schedule = registry.load_class(SCHEDULES, name, Schedule)()  # type: ignore[type-abstract]
    for steps in (1, 2, 3, 10, 997):
        assert min(schedule.factor(step, steps) for step in range(1, steps + 1)) > 0


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_schedules_without_warm_up_are_those_of_transformers(name: str) -> None:
    from transformers import get_scheduler

    schedule = registry.load_class(SCHEDULES, name, Schedule)(warmup_share=0)  # type: ignore[type-abstract]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = get_scheduler(name, optimizer, num_warmup_steps=0, num_training_steps=10)
    for step in range(1, 11):
        assert schedule.factor(step, 10) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


def test_order_is_a_permutation_that_differs_by_epoch_and_seed() -> None:
    first = order(1000, seed=0, epoch=0)
    assert sorted(first.tolist()) == list(range(1000))
    assert first.tolist() == order(1000, 0, 0).tolist()
    assert first.tolist() != order(1000, 0, 1).tolist() != order(1000, 1, 0).tolist()
    # near uniform: the mean rank of the first half of the rows stays near the middle
    assert abs(first[:500].mean() - 499.5) < 50


@pytest.mark.parametrize(("count", "per_step"), [(10, 4), (7, 3), (3, 8), (16, 4)])
def test_each_epoch_sees_every_row_once(count: int, per_step: int) -> None:
    source = Source(random_units(count), per_step, seed=1)
    seen = [unit[0].id for number in range(1, 3 * count + 1) for unit in source.step(number)]
    for epoch in range(len(seen) // count):
        assert len(set(seen[epoch * count : (epoch + 1) * count])) == count
    again = Source(random_units(count), per_step, seed=1)
    assert [u[0].id for u in again.step(5)] == [u[0].id for u in source.step(5)]
