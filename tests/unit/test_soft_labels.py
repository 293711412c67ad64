"""A pair's own probability: the cross-entropy with a soft label, for `dpo` and `reward`, beside the closed form."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine_runs import make_run

from luthier.data.templates import Template, build_template
from luthier.engine.run import Run
from luthier.errors import DataError
from luthier.examples import Message, Preference, Where
from luthier.models.forest import Batch, build_batch
from luthier.models.load import LoadedModel
from luthier.objectives.dpo import DPO
from luthier.objectives.reward import Reward

PAIR = Preference(
    (Message("user", "Which number is larger?"),),
    (Message("assistant", "Nine."),),
    (Message("assistant", "I do not know."),),
    where=Where("pairs.jsonl", 7),
)
PROBABILITIES = (1.0, 0.9, 0.5, 0.2)


@pytest.fixture
def template(tiny_loaded: LoadedModel) -> Template:
    return build_template(tiny_loaded, "model")


def moved(folder: Path, **objective: Any) -> tuple[Run, Batch]:
    """A float64 run whose adapter has moved, and its first step with a soft label for each pair."""
    run = make_run(folder, torch.float64, objective=objective)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in run.injected.trainable.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * 0.1)
    rows = [
        replace(row, values={**row.values, "probability": probability})
        for unit, probability in zip(run.source.step(1), PROBABILITIES, strict=True)
        for row in unit
    ]
    return run, build_batch(rows)


def cross_entropy(logit: float, probability: float) -> float:
    """-p log sigmoid(x) - (1 - p) log sigmoid(-x), as (1 - p) x + log(1 + exp(-x))."""
    return (1 - probability) * logit + math.log1p(math.exp(-logit))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_dpo_is_the_cross_entropy_with_the_soft_label(smoothing: float, tmp_path: Path) -> None:
    run, batch = moved(tmp_path, type="dpo", beta=0.3, label_smoothing=smoothing)
    assert run.models.reference is not None
    with torch.no_grad():
        policy_R = batch.sum_rows(run.models.policy.token_logprobs(batch) * batch.loss_mask_K)
        reference_R = batch.sum_rows(run.models.reference.token_logprobs(batch) * batch.loss_mask_K)
    margins = [0.3 * float(value) for value in (policy_R - reference_R)[0::2] - (policy_R - reference_R)[1::2]]
    assert min(map(abs, margins)) > 1e-3
    # smoothing and the row's own doubt are two coins that may each turn the label
    sure = [p * (1 - smoothing) + (1 - p) * smoothing for p in PROBABILITIES]
    wanted = sum(map(cross_entropy, margins, sure))
    # float32 holds the probabilities of a batch
    assert float(run.objective.loss(run.models, batch).total) == pytest.approx(wanted, abs=1e-6)


def test_reward_is_the_cross_entropy_with_the_soft_label(tmp_path: Path) -> None:
    run, batch = moved(tmp_path, type="reward")
    with torch.no_grad():
        reward_R = run.models.policy.head_values(batch).rows_RO[:, 0]
    wanted = sum(map(cross_entropy, (reward_R[0::2] - reward_R[1::2]).tolist(), PROBABILITIES))
    assert float(run.objective.loss(run.models, batch).total) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("kind", ["dpo", "reward"])
def test_an_even_label_pulls_both_replies_together_and_a_sure_one_apart(kind: str, tmp_path: Path) -> None:
    run, batch = moved(tmp_path, type=kind)
    gradients = {}
    for probability in (1.0, 0.5, 0.0):
        even = replace(batch, values_R={**batch.values_R, "probability": torch.full((8,), probability)})
        run.objective.loss(run.models, even).total.backward()
        gradients[probability] = torch.cat(
            [p.grad.flatten() for p in run.injected.trainable.values() if p.grad is not None]
        )
        run.optimizer.zero_grad()
    # the loss is linear in the label
    torch.testing.assert_close(gradients[0.5], (gradients[1.0] + gradients[0.0]) / 2, atol=1e-6, rtol=1e-4)
    assert float(torch.dot(gradients[1.0], gradients[0.0])) < 0


def test_without_a_label_every_pair_is_certain(tmp_path: Path, template: Template) -> None:
    run, batch = moved(tmp_path, type="dpo")
    certain = replace(batch, values_R={"probability": torch.ones(8)})
    plain = replace(batch, values_R={})
    assert float(run.objective.loss(run.models, certain).total) == float(run.objective.loss(run.models, plain).total)
    assert [row.values for row in DPO().rows(PAIR, template)] == [{"probability": 1.0}] * 2


@pytest.mark.parametrize("objective", [DPO(), Reward()], ids=["dpo", "reward"])
def test_the_label_is_a_field_of_the_row(objective: DPO | Reward, template: Template) -> None:
    for row in objective.rows(replace(PAIR, extra={"probability": "0.75"}), template):
        assert row.values["probability"] == 0.75


@pytest.mark.parametrize("given", [1.5, -0.1, "likely", True])
@pytest.mark.parametrize("objective", [DPO(), Reward()], ids=["dpo", "reward"])
def test_what_is_no_probability_is_refused_with_its_line(
    objective: DPO | Reward, given: Any, template: Template
) -> None:
    with pytest.raises(DataError, match=r"pairs.jsonl, line 7: 'probability' is .*expected a number"):
        objective.rows(replace(PAIR, extra={"probability": given}), template)


def test_a_penalty_that_knows_no_soft_label_refuses_one(template: Template) -> None:
    soft, certain = (replace(PAIR, extra={"probability": p}) for p in (0.9, 1.0))
    for penalty in ("hinge", ("sigmoid", "sft")):
        with pytest.raises(DataError, match=r"line 7: 'probability' = 0\.9 is a soft label"):
            DPO(penalty=penalty).rows(soft, template)  # type: ignore[arg-type]
        assert DPO(penalty=penalty).rows(certain, template)  # type: ignore[arg-type]
