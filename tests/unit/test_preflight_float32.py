"""`in_float32`: gates compare in float32 whatever the weights are held in, and the model is not copied for it."""

import copy
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from tests.mutants import parts
from tests.mutants.bench import Bench, dpo_bench, full_bench

from luthier.examples import Row
from luthier.models.forest import TokenScores, build_batch
from luthier.models.scorer import Scorer, chosen_scores
from luthier.objectives.base import Models
from luthier.preflight._probe import in_float32, plain_logprobs, scored
from luthier.preflight.base import Subject, run_gates

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 61,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**SMALL),
    "qwen3": lambda: transformers.Qwen3Config(**SMALL, head_dim=8),
    "gemma3": lambda: transformers.Gemma3TextConfig(**SMALL, head_dim=8, sliding_window=8),
    "mixtral": lambda: transformers.MixtralConfig(**SMALL, num_local_experts=4),  # weights of experts are stacked
    "gpt2": lambda: transformers.GPT2Config(  # layers are transposed, and normalized with a mean
        n_embd=32, n_layer=2, n_head=4, vocab_size=61, bos_token_id=1, eos_token_id=2
    ),
}


def narrow_model(family: str) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = FAMILIES[family]()
        return transformers.AutoModelForCausalLM.from_config(config).eval().bfloat16()


def rows() -> list[Row]:
    rng = random.Random(0)
    shared = [rng.randrange(3, 61) for _ in range(20)]
    tails = [[rng.randrange(3, 61) for _ in range(length)] for length in (4, 9, 6)]
    return [Row((*shared, *tail), (0.0,) * 20 + (1.0,) * len(tail)) for tail in tails]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_held_in_bfloat16_scores_and_learns_as_its_float32_copy(family: str) -> None:
    model = narrow_model(family)
    wide = copy.deepcopy(model).float()
    for row in rows():
        found: list[torch.Tensor] = []
        wanted: list[torch.Tensor] = []
        for held, into in ((model, found), (wide, wanted)):
            first = next(p for p in held.parameters() if p.ndim == 1)
            with in_float32():
                logprobs = plain_logprobs(held, row, torch.device("cpu"))
                into += [logprobs.detach(), *torch.autograd.grad(logprobs.sum(), [first])]
        assert torch.equal(found[0], wanted[0])
        assert torch.equal(found[1], wanted[1].bfloat16()), "a gradient is rounded to its tensor's type, and only then"
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())


def test_the_graph_keeps_no_float32_copy_of_a_weight() -> None:
    model = narrow_model("llama")
    weight = model.model.layers[0].mlp.up_proj.weight
    kept: list[torch.Size] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.shape)
        return tensor

    x = torch.ones(3, 32, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), in_float32():
        y = torch.nn.functional.linear(x, weight.detach())
    assert y.dtype == torch.float32 and weight.shape not in kept
    (grad,) = torch.autograd.grad(y.sum(), [x])
    assert torch.equal(grad[0], weight.detach().float().sum(0))


def test_autocast_is_off_inside_and_on_again_after() -> None:
    model, batch = narrow_model("llama").float(), build_batch(rows())
    plain = torch.cat(scored(Scorer(model), batch))
    cast = Scorer(model, torch.bfloat16)

    def is_float32() -> bool:  # another order of additions, not another type
        return torch.allclose(torch.cat(scored(cast, batch)), plain, rtol=0, atol=1e-5)

    assert not is_float32()
    with in_float32():
        assert is_float32()
    assert not is_float32()


def narrow(bench: Bench) -> Subject:
    subject = bench.with_model(lambda model: model.bfloat16())
    return replace(subject, loaded=replace(subject.need_model(), dtype=torch.bfloat16))


@pytest.mark.parametrize("make", [Bench, dpo_bench, full_bench])
def test_a_correct_run_in_bfloat16_keeps_the_limits_of_float32(make: Callable[[], Bench]) -> None:
    results = {r.gate: r for r in run_gates(narrow(make()), "model")}
    assert {name: r.message for name, r in results.items() if not r.passed} == {}
    assert results["forest_equivalence"].details["allowed_largest"] == 5e-4
    assert results["forest_equivalence"].details["largest_difference"] < 5e-5


def test_a_fault_that_bfloat16_would_hide_is_refused() -> None:
    subject = narrow(Bench())

    class Warm(parts.OneWayScorer):
        def token_scores(self, batch: Any) -> TokenScores:
            return chosen_scores(self.logits(batch) * 0.999, batch)

    subject.models = Models(Warm(subject.need_model().model))
    refused = {r.gate for r in run_gates(subject, "model") if not r.passed}
    assert {"forest_equivalence", "base_loss"} <= refused


@pytest.mark.parametrize("fault", [parts.weaken_backward, parts.flatten_decoding])
def test_faults_of_one_pass_only_are_refused_in_bfloat16_too(fault: Callable[[Any], None]) -> None:
    subject = narrow(Bench())
    fault(subject.need_model().model)
    expected = "gradient_equivalence" if fault is parts.weaken_backward else "decode_equivalence"
    assert [r.gate for r in run_gates(subject, "model") if not r.passed] == [expected]
