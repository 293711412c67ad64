"""Attention level by level, and compiled layers, against the forest's plain attention. GPUs run the same calls."""

import random
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, LlamaForCausalLM

from luthier.adapters.lora import LoRA
from luthier.examples import Row
from luthier.models import attention
from luthier.models.attention import _node_by_node
from luthier.models.forest import Batch, build_batch
from luthier.models.kernels.compiled import PAYS_FROM, compile_layers, pays
from luthier.models.kernels.levels import level_attention, levels_of
from luthier.models.scorer import Scorer

CPU = torch.device("cpu")


def drawn(generator: random.Random, count: int) -> tuple[int, ...]:
    return tuple(generator.randrange(100) for _ in range(count))


def batch_of(generator: random.Random, prefixes: list[tuple[int, ...]]) -> Batch:
    """A row behind each prefix, its own tokens trained on."""
    rows = []
    for number, prefix in enumerate(prefixes):
        own = drawn(generator, generator.randint(1, 40))
        rows.append(Row(prefix + own, (0.0,) * len(prefix) + (1.0,) * len(own), str(number)))
    return build_batch(rows)


def forests() -> Iterator[tuple[str, Batch, int]]:
    generator = random.Random(0)
    a, b, c = (drawn(generator, n) for n in (40, 30, 20))
    yield "one row", batch_of(generator, [()]), 1
    yield "rows apart", batch_of(generator, [()] * 6), 1
    yield "one prefix", batch_of(generator, [a] * 5), 2
    yield "prefixes and rows without", batch_of(generator, [a, (), a, b, (), b]), 2
    yield "a deep tree", batch_of(generator, [a, a + b, a + b + c, a + b + c, a + c, (), b, b + c, b + c]), 4


@pytest.mark.parametrize(("batch", "depths"), [pytest.param(b, d, id=name) for name, b, d in forests()])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_levels_compute_what_nodes_one_by_one_do(batch: Batch, depths: int, kv_heads: int) -> None:
    forest = batch.forest
    levels = levels_of(forest.starts, forest.ends, forest.parents, CPU)
    assert len(levels.sizes) == 2 * depths - 1
    torch.manual_seed(0)
    heads = [4, kv_heads, kv_heads]
    given = [torch.randn(len(forest.ids_N), h, 8, dtype=torch.float64, requires_grad=True) for h in heads]
    q, k, v = given
    found = level_attention(q, k, v, levels, 0.3)
    q, k, v = (x.transpose(0, 1)[None] for x in given)
    wanted = _node_by_node(q, k, v, forest, 0.3, None)[0].transpose(0, 1)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    into = torch.randn_like(found)
    for mine, other in zip(
        torch.autograd.grad(found, given, into), torch.autograd.grad(wanted, given, into), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-12)


def test_levels_can_be_computed_again_in_the_backward_pass() -> None:
    """As gradient checkpointing does, which lets each saved tensor be read once."""
    *_, (_, batch, _) = forests()
    levels = levels_of(batch.forest.starts, batch.forest.ends, batch.forest.parents, CPU)
    given = [torch.randn(len(batch.forest.ids_N), 2, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return level_attention(q, k, v, levels, 0.3)

    wanted = torch.autograd.grad(attend(*given).square().sum(), given)
    again = torch.autograd.grad(checkpoint(attend, *given, use_reentrant=False).square().sum(), given)
    assert all(torch.equal(a, b) for a, b in zip(again, wanted, strict=True))


def model() -> tuple[LlamaForCausalLM, list[torch.nn.Parameter]]:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "vocab_size": 100}
    made = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)).train()
    trained = list(LoRA(rank=4).inject(made, 0).trainable.values())
    for parameter in trained:
        parameter.data.normal_(0, 0.1)
    return made, trained


def scored(made: LlamaForCausalLM, trained: list[torch.nn.Parameter], batch: Batch) -> tuple[Tensor, Tensor]:
    logprobs = Scorer(made).token_logprobs(batch)
    gradients = torch.autograd.grad(logprobs.sum(), trained)
    return logprobs.detach(), torch.cat([g.flatten() for g in gradients])


@pytest.mark.slow
def test_a_model_scores_alike_by_levels_and_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """One compilation for all layers and for all forests of as many levels."""
    made, trained = model()
    batches = [batch for _, batch, depths in forests() if depths == 2]
    batches += [batch_of(random.Random(7), [drawn(random.Random(8), 25)] * 3)]
    plain = [scored(made, trained, batch) for batch in batches]
    monkeypatch.setattr(attention, "serves", lambda *_: True)
    by_levels = [scored(made, trained, batch) for batch in batches]
    assert compile_layers(made, backend="aot_eager") == 3
    counters.clear()
    compiled = [scored(made, trained, batch) for batch in batches]
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
    for wanted, *found in zip(plain, by_levels, compiled, strict=True):
        for values, gradient in found:
            torch.testing.assert_close(values, wanted[0], rtol=0, atol=1e-5)
            torch.testing.assert_close(gradient, wanted[1], rtol=1e-4, atol=1e-4)


def test_compiled_layers_serve_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    made, _ = model()
    monkeypatch.setattr(attention, "serves", lambda *_: True)
    compile_layers(made, backend="a backend that there is not")
    with torch.no_grad():
        Scorer(made.eval()).token_logprobs(batch_of(random.Random(0), [()] * 2))
        made(torch.tensor([[1, 2, 3]]))
        with pytest.raises(RuntimeError):
            Scorer(made.train()).token_logprobs(batch_of(random.Random(0), [()] * 2))


def test_levels_are_for_flash_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not where there are none, and not for windows shorter than a row."""
    forest = batch_of(random.Random(0), [()] * 2).forest
    config = LlamaConfig(hidden_size=32, num_attention_heads=4)
    assert attention.levels_for(config, forest, torch.bfloat16) is None
    monkeypatch.setattr(attention, "serves", lambda *_: True)
    assert attention.levels_for(config, forest, torch.bfloat16) is not None
    longest = int(forest.positions_N.max())
    for window, served in ((longest, False), (longest + 1, True)):
        config.sliding_window = window
        assert (attention.levels_for(config, forest, torch.bfloat16) is not None) is served


def test_long_trainings_on_a_gpu_are_compiled() -> None:
    cuda = torch.device("cuda")
    enough = int(PAYS_FROM / 6 / 1e9)
    assert pays(cuda, 10**9, enough + 1) and not pays(cuda, 10**9, enough - 1)
    assert not pays(CPU, 10**9, 10 * enough)
