"""What every objective must do; cases are found by listing the directory."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine_runs import make_run

from luthier import registry
from luthier.data.source import micro_batches
from luthier.engine.run import Run
from luthier.examples import Row
from luthier.models.forest import MIN_SHARED, Batch, build_batch
from luthier.objectives.base import Objective, merge_metrics
from luthier.objectives.dpo import SMOOTHED
from luthier.recipe import OBJECTIVES

NAMES = registry.names(OBJECTIVES)


def told(run: Run, groups: Iterable[Sequence[Row]], min_shared: int = MIN_SHARED) -> list[Batch]:
    """The micro-batches of a step as the engine gives them to the objective."""
    batches = [build_batch(rows, min_shared) for rows in groups]
    with torch.no_grad():
        return list(run.objective.whole_step(run.models, batches, {}))


def gradient(run: Run, max_tokens: int, min_shared: int, backwards: bool = False) -> torch.Tensor:
    """The gradient of step 1, flattened, for one way of cutting the step up."""
    units = run.source.step(1)
    batches = told(run, micro_batches(units[::-1] if backwards else units, max_tokens), min_shared)
    weight = sum(run.objective.weight(batch) for batch in batches)
    for batch in batches:
        (run.objective.loss(run.models, batch).total / weight).backward()
    flat = torch.cat([p.grad.flatten() for p in run.injected.trainable.values() if p.grad is not None])
    run.optimizer.zero_grad()
    return flat


def double_run(name: str, tmp_path: Path) -> Run:
    """A float64 run whose adapter has moved, so that every gradient is alive."""
    run = make_run(tmp_path, torch.float64, objective={"type": name})
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in run.injected.trainable.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * 0.1)
    return run


@pytest.mark.parametrize("name", NAMES)
def test_how_a_step_is_cut_up_cannot_change_its_gradient(name: str, tmp_path: Path) -> None:
    run = double_run(name, tmp_path)
    whole = gradient(run, max_tokens=10_000, min_shared=1)
    assert whole.norm() > 0
    for max_tokens, min_shared, backwards in ((1, 1, False), (60, 1, False), (60, 16, True), (10_000, 10_000, True)):
        other = gradient(run, max_tokens, min_shared, backwards)
        assert (whole - other).norm() / whole.norm() < 1e-6, (max_tokens, min_shared)


@pytest.mark.parametrize("name", NAMES)
def test_metrics_of_parts_add_up_to_those_of_the_whole(name: str, tmp_path: Path) -> None:
    run = double_run(name, tmp_path)
    rows = [row for unit in run.source.step(1) for row in unit]
    (step,) = told(run, [rows])
    whole = run.objective.loss(run.models, step).metrics
    parts = [run.objective.loss(run.models, b).metrics for b in told(run, micro_batches(run.source.step(1), 1))]
    merged = merge_metrics(list(parts))
    assert {n: m.value() for n, m in merged.items()} == pytest.approx(
        {n: m.value() for n, m in whole.items()}, abs=1e-6
    )


@pytest.mark.parametrize("name", NAMES)
def test_loss_is_a_sum(name: str, tmp_path: Path) -> None:
    run = double_run(name, tmp_path)
    units = run.source.step(1)
    once = [row for unit in units for row in unit]
    steps = [told(run, [rows])[0] for rows in (once, once + once)]
    loss = [run.objective.loss(run.models, batch).total for batch in steps]
    weight = [run.objective.weight(build_batch(rows)) for rows in (once, once + once)]
    assert float(loss[1].detach()) == pytest.approx(2 * float(loss[0].detach()), rel=1e-9)
    assert weight[1] == pytest.approx(2 * weight[0])


@pytest.mark.parametrize("name", NAMES)
def test_training_lowers_the_loss(name: str, tmp_path: Path) -> None:
    from luthier.engine.loop import train

    run = make_run(
        tmp_path,
        objective={"type": name},
        adapter={"type": "full"},  # a random base has nothing that a low-rank update could bring out
        schedule={"type": "constant"},
        training={"steps": 40, "rows_per_step": 10, "patience": 1000},
        optimizer={"learning_rate": 1e-2},
    )
    losses = [step.metrics["loss"] for step in train(run)]
    assert losses[-1] < 0.5 * losses[0]


def test_dpo_starts_at_ln_2_with_ties(tmp_path: Path) -> None:
    run = make_run(tmp_path, objective={"type": "dpo"})
    batch = build_batch([row for unit in run.source.step(1) for row in unit])
    metrics = run.objective.loss(run.models, batch).metrics
    assert metrics["loss"].value() == pytest.approx(0.6931472, abs=1e-6)
    assert metrics["margin"].value() == 0 and metrics["accuracy"].value() == 0.5


LN_2 = 0.6931472
# what the papers' formulas are where neither reply has gained; q (log q - log p) of EXO with q = 1/2
STEP_0: Mapping[str, float] = {
    "sigmoid": LN_2,
    "hinge": 1.0,
    "ipo": 25.0,
    "robust": LN_2,
    "exo": -LN_2 - 0.5 * math.log(0.2) - 0.5 * math.log(0.8),
    "nca": 2 * LN_2,
    "bco": 2 * LN_2,
    "sppo": 50.0,
    "aot": LN_2,
    "aot_unpaired": LN_2,
    "apo_zero": 1.0,
    "apo_down": 1.0,
    "discopop": (LN_2 + 1) / 2,
    "sigmoid_norm": LN_2,
}


@pytest.mark.parametrize(("penalty", "value"), STEP_0.items())
def test_dpo_penalties_at_step_0(penalty: str, value: float, tmp_path: Path) -> None:
    smoothing = 0.2 if penalty in SMOOTHED else 0.0  # cDPO begins at ln 2 whatever it is
    objective = {"type": "dpo", "penalty": penalty, "beta": 0.1, "label_smoothing": smoothing}
    run = make_run(tmp_path, objective=objective)
    assert run.objective.loss_at_start() == pytest.approx(value, abs=1e-6)
    (batch,) = told(run, [[row for unit in run.source.step(1) for row in unit]])
    assert run.objective.loss(run.models, batch).metrics["loss"].value() == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize(
    ("objective", "value"),
    [
        ({"type": "kto"}, 0.5),
        ({"type": "kto", "penalty": "apo_zero", "desirable_weight": 3.0, "undesirable_weight": 3.0}, 1.5),
        ({"type": "bco"}, LN_2),
    ],
)
def test_judged_replies_at_step_0(objective: dict[str, Any], value: float, tmp_path: Path) -> None:
    run = make_run(tmp_path, objective=objective)
    (batch,) = told(run, [[row for unit in run.source.step(1) for row in unit]])
    metrics = run.objective.loss(run.models, batch).metrics
    assert metrics["loss"].value() == pytest.approx(value, abs=1e-6) == run.objective.loss_at_start()
    assert metrics["chosen_reward"].value() == metrics["rejected_reward"].value() == 0


def test_every_objective_is_one(tmp_path: Path) -> None:
    for name in NAMES:
        cls = registry.load_class(OBJECTIVES, name, Objective)  # type: ignore[type-abstract]
        assert cls().accepts
