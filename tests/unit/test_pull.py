"""L2-SP: the pull of trained tensors to where they started."""

import math
from pathlib import Path

import pytest
import torch
from tests.engine_runs import make_run, tiny_llama

from luthier.engine import checkpoint
from luthier.engine.loop import train
from luthier.engine.optimizers.adamw import AdamW
from luthier.engine.run import Run


def pulled(folder: Path, pull: float, adapter: str = "full", steps: int = 12) -> Run:
    return make_run(
        folder,
        adapter={"type": adapter},
        optimizer={"learning_rate": 1e-2, "pull_to_start": pull},
        training={"steps": steps, "rows_per_step": 4, "patience": False, "save_every": 1, "keep": 100},
    )


def moved(run: Run, start: dict[str, torch.Tensor]) -> float:
    parts = [float((p.detach() - start[name]).square().sum()) for name, p in run.injected.trainable.items()]
    return math.sqrt(sum(parts))


def test_one_step_is_the_closed_form() -> None:
    """w <- w - rate * pull * (w - start), then AdamW's own update; the first step has nothing to pull."""
    plain, both = (torch.nn.Parameter(torch.tensor([[1.0, -2.0]], dtype=torch.float64)) for _ in range(2))
    one, two = (AdamW(pull_to_start=pull).build({"w": p}, 0.1) for pull, p in ((0.0, plain), (3.0, both)))
    for number, gradient in enumerate(([0.5, -1.0], [0.2, 0.1], [-0.3, 0.4])):
        before = both.detach().clone()
        plain.data = before - 0.1 * 3.0 * (before - torch.tensor([[1.0, -2.0]])) if number else before.clone()
        for parameter, optimizer in ((plain, one), (both, two)):
            parameter.grad = torch.tensor([gradient], dtype=torch.float64)
            optimizer.step()
        assert torch.allclose(plain, both, atol=1e-15), number
        assert not torch.equal(both, before)


def test_a_stronger_pull_ends_nearer_to_the_base(tmp_path: Path) -> None:
    start = dict(tiny_llama().named_parameters())
    distances, losses = [], []
    for number, pull in enumerate((0.0, 10.0, 50.0)):
        run = pulled(tmp_path / str(number), pull)
        losses.append(list(train(run))[-1].metrics["loss"])
        distances.append(moved(run, start))
    assert distances[0] > 1.1 * distances[1] > 1.1 * 1.1 * distances[2] > 0
    assert losses[0] < losses[1] < losses[2]


def test_the_start_of_a_lora_is_no_update(tmp_path: Path) -> None:
    run = pulled(tmp_path, 1e9, "lora")  # the whole way, at every step
    list(train(run))
    for name, parameter in run.injected.trainable.items():
        state = run.optimizer.state[parameter]
        if name.endswith("lora_B"):
            assert torch.equal(state["start"], torch.zeros_like(parameter))
            assert parameter.abs().max() <= 1.1e-2, "one step's update is all that is left"


@pytest.mark.parametrize("adapter", ["full", "lora"])
@pytest.mark.parametrize("stopped", [0, 1, 5])
def test_a_resumed_run_pulls_to_the_same_place_and_ends_with_the_same_bits(
    adapter: str, stopped: int, tmp_path: Path
) -> None:
    whole = pulled(tmp_path / "whole", 30.0, adapter, 8)
    list(train(whole))
    resumed = pulled(tmp_path / "resumed", 30.0, adapter, 8)
    checkpoint.restore(resumed, tmp_path / f"whole/checkpoints/step-{stopped:06d}")
    list(train(resumed))
    for name, parameter in whole.injected.trainable.items():
        other = resumed.injected.trainable[name]
        assert torch.equal(parameter, other), name
        assert torch.equal(whole.optimizer.state[parameter]["start"], resumed.optimizer.state[other]["start"])


def test_a_tensor_that_gets_no_gradient_at_first_is_pulled_to_its_start_later() -> None:
    late, other = (torch.nn.Parameter(torch.ones(2, 2)) for _ in range(2))
    optimizer = AdamW(pull_to_start=1.0).build({"late": late, "other": other}, 0.1)
    for number in range(4):
        other.grad = torch.ones(2, 2)
        late.grad = torch.ones(2, 2) if number >= 2 else None
        optimizer.step()
        assert ("start" in optimizer.state.get(late, {})) == (number >= 2)
    assert torch.equal(optimizer.state[late]["start"], torch.ones(2, 2))


def test_memory_counts_the_start() -> None:
    assert (AdamW().state_numbers, AdamW(pull_to_start=1.0).state_numbers) == (2, 3)
