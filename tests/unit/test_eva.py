"""EVA: A begins as the directions of the layers' inputs on the rows that will be trained on."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine_runs import make_run, random_units, tiny_llama
from torch import Tensor

from luthier.adapters._eva import fold
from luthier.adapters._low_rank import InjectedLoRA
from luthier.adapters.lora import LoRA
from luthier.engine import checkpoint
from luthier.engine.loop import observe, train
from luthier.errors import ModelError
from luthier.examples import Row
from luthier.models.forest import Batch, build_batch
from luthier.models.scorer import Scorer

EVA = {"type": "lora", "init": "eva", "rank": 4}


def batches() -> list[Batch]:
    units = random_units(12)
    return [build_batch([row for unit in units[i : i + 4] for row in unit]) for i in range(0, 12, 4)]


def inputs_of(model: Any, name: str) -> Tensor:
    """What the layer of the plain model is given for each token of the batches."""
    found: list[Tensor] = []
    layer = model.get_submodule(name)
    handle = layer.register_forward_pre_hook(lambda _, given: found.append(given[0][0]))
    with torch.no_grad():
        for batch in batches():
            Scorer(model).token_logprobs(batch)
    handle.remove()
    return torch.cat(found)


def observed(rank: int) -> Any:
    model = tiny_llama()
    injected = LoRA(init="eva", rank=rank).inject(model, seed=0)
    injected.observe(iter(batches()), Scorer(model).token_logprobs)
    return injected


@pytest.mark.parametrize("name", ["self_attn.k_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"])
def test_a_holds_the_directions_in_which_the_inputs_vary_most(name: str) -> None:
    layer = f"model.layers.1.{name}"
    inputs = inputs_of(tiny_llama(), layer)
    _, s, v = torch.linalg.svd(inputs, full_matrices=False)
    a = observed(rank=4).layers[layer].a.detach()
    torch.testing.assert_close(a @ a.t(), torch.eye(4), atol=1e-4, rtol=0)
    captured = float((inputs @ a.t()).square().sum() / s[:4].square().sum())
    assert captured > 0.97, "what is cut while folding costs a little"
    whole = observed(rank=16).layers[layer].a.detach()  # 32 directions are kept: all that 32 inputs have
    if inputs.shape[1] == 32:
        cosines = (whole[:4] * v[:4]).sum(1).abs()
        torch.testing.assert_close(cosines, torch.ones(4), atol=1e-3, rtol=0)


def test_folding_in_parts_is_the_decomposition_of_the_whole_where_nothing_is_cut() -> None:
    x = torch.randn(60, 12, generator=torch.Generator().manual_seed(0))
    folded = None
    for part in x.split(7):
        folded = fold(folded, part, 12)
    assert folded is not None
    torch.testing.assert_close(folded.t() @ folded, x.t() @ x, atol=1e-3, rtol=1e-5)
    torch.testing.assert_close(folded.norm(dim=1), torch.linalg.svdvals(x), atol=1e-3, rtol=1e-5)


def test_it_sees_no_more_than_it_needs_once_and_the_model_computes_what_it_did() -> None:
    model, asked = tiny_llama(), 0

    def endless() -> Iterator[Batch]:
        nonlocal asked
        while True:
            asked += 1
            yield batches()[asked % 3]

    injected = LoRA(init="eva").inject(model, seed=0)
    kaiming = {name: layer.a.detach().clone() for name, layer in injected.layers.items()}
    injected.observe(endless(), Scorer(model).token_logprobs)
    assert asked == 16 and not any(torch.equal(kaiming[n], layer.a) for n, layer in injected.layers.items())
    injected.observe(endless(), Scorer(model).token_logprobs)
    assert asked == 16
    with torch.no_grad():
        for batch in batches():
            same = (Scorer(each).token_logprobs(batch) for each in (model, tiny_llama()))
            assert torch.equal(*same)
    assert not any(layer._forward_pre_hooks for layer in injected.layers.values())


def test_other_starts_look_at_nothing() -> None:
    model = tiny_llama()
    LoRA().inject(model, seed=0).observe(iter(lambda: pytest.fail("looked"), None), Scorer(model).token_logprobs)


def test_more_directions_than_the_rows_have_are_refused_by_name() -> None:
    model = tiny_llama()
    injected = LoRA(init="eva", rank=16).inject(model, seed=0)
    few = build_batch([Row((3, 4, 3, 5, 4, 3), (0.0,) * 5 + (1.0,))])
    with pytest.raises(ModelError, match=r"layers\.0\.self_attn\.q_proj vary in \d directions, and its rank is 16"):
        injected.observe(iter([few]), Scorer(model).token_logprobs)
    with pytest.raises(ModelError, match="vary in 0 directions"):
        LoRA(init="eva").inject(tiny_llama(), seed=0).observe(iter([]), Scorer(model).token_logprobs)


def test_a_resumed_run_takes_its_start_from_the_checkpoint_and_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole = make_run(tmp_path / "whole", adapter=EVA)
    list(train(whole))
    stopped = make_run(tmp_path / "stopped", adapter=EVA, training={"steps": 6, "rows_per_step": 4, "save_every": 2})
    observe(stopped)  # as before the pre-flight; the loop finds it done
    list(islice(train(stopped), 4))
    again = make_run(tmp_path / "stopped", adapter=EVA, training={"steps": 6, "rows_per_step": 4, "save_every": 2})
    found = checkpoint.latest(again.checkpoints)
    assert found is not None and 0 < found.step < 6
    checkpoint.restore(again, found.folder)
    list(train(again))
    assert isinstance(again.injected, InjectedLoRA) and again.injected.waits_for_rows, "it did not look again"
    assert isinstance(whole.injected, InjectedLoRA) and not whole.injected.waits_for_rows
    ended, wanted = again.injected.trainable, whole.injected.trainable
    assert all(torch.equal(ended[name], wanted[name]) for name in wanted)
