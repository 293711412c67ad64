"""Our reward loss against that of `trl`, on the same rewards."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from luthier.examples import Row
from luthier.models.forest import HeadValues, build_batch
from luthier.objectives.base import Models
from luthier.objectives.reward import Reward

pytestmark = pytest.mark.numerics

PAIRS = 7


class Given:
    """A policy whose rewards are given: R rows that alternate chosen, rejected."""

    def __init__(self, reward_R: Tensor) -> None:
        self.reward_R = reward_R

    def head_values(self, batch: Any) -> HeadValues:
        return HeadValues(self.reward_R[:, None], torch.zeros(len(batch.row_K), 1))


@pytest.mark.parametrize("has_margin", [False, True])
@pytest.mark.parametrize("centering", [0.0, 0.01, 0.5])
def test_loss_gradient_and_metrics_are_trl_s(has_margin: bool, centering: float) -> None:
    from trl import RewardTrainer

    generator = torch.Generator().manual_seed(3)
    reward_R = (2 * torch.randn(2 * PAIRS, generator=generator, dtype=torch.float64)).requires_grad_()
    margin_P = torch.rand(PAIRS, generator=generator) if has_margin else torch.zeros(PAIRS)
    rows = [Row((i, i + 1), (0.0, 1.0), str(i), {"margin": float(margin_P[i // 2])}) for i in range(2 * PAIRS)]
    batch = build_batch(rows, min_shared=1000)
    policy: Any = Given(reward_R)
    mine = Reward(centering=centering).loss(Models(policy), batch)
    (gradient,) = torch.autograd.grad(mine.total / PAIRS, reward_R)

    theirs_R = torch.cat([reward_R.detach()[0::2], reward_R.detach()[1::2]]).requires_grad_()  # all chosen come first
    told: dict[str, dict[str, list[float]]] = {"eval": {name: [] for name in METRICS}}
    trainer: Any = SimpleNamespace(
        model=SimpleNamespace(training=False),
        args=SimpleNamespace(center_rewards_coefficient=centering or None),
        accelerator=SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x),
        _metrics=told,
        _total_train_tokens=0,
        _tp_size=1,
    )
    inputs: dict[str, Any] = {"margin": margin_P.double()} if has_margin else {}
    loss = RewardTrainer.compute_loss(trainer, lambda **_: SimpleNamespace(logits=theirs_R[:, None]), inputs)
    (wanted,) = torch.autograd.grad(loss, theirs_R)

    assert float(mine.total.detach()) / PAIRS == pytest.approx(float(loss.detach()), abs=1e-6)
    torch.testing.assert_close(gradient, torch.stack([wanted[:PAIRS], wanted[PAIRS:]], 1).flatten(), atol=1e-6, rtol=0)
    found = {name: mine.metrics[name].value() for name in ("accuracy", "margin", "reward")}
    assert found["accuracy"] == pytest.approx(told["eval"]["accuracy"][0])
    assert found["margin"] == pytest.approx(told["eval"]["margin"][0])
    assert found["reward"] == pytest.approx(told["eval"]["mean_reward"][0])


METRICS = ("num_tokens", "min_reward", "mean_reward", "max_reward", "accuracy", "margin")
