"""What every way to hold a matrix in fewer bits must do, alone and under an adapter; cases are found by listing."""

import copy
from typing import Any

import pytest
import torch
from tests.engine_runs import random_units, tiny_llama
from tests.quantized import dequantized, layer, quantize
from torch import Tensor, nn

from luthier import registry
from luthier.adapters._low_rank import LoRALinear
from luthier.adapters._starts import kaiming
from luthier.adapters.base import Adapter
from luthier.adapters.lora import LoRA
from luthier.errors import ModelError
from luthier.models.forest import build_batch
from luthier.models.packed import quantizer
from luthier.models.quantize.base import QuantizedLinear
from luthier.models.scorer import Scorer
from luthier.recipe import ADAPTERS, QUANTIZERS

NAMES = registry.names(QUANTIZERS)
BATCH = build_batch([row for unit in random_units(3) for row in unit])
TYPES = [torch.float32, torch.bfloat16]

every = pytest.mark.parametrize("name", NAMES)
both_types = pytest.mark.parametrize("dtype", TYPES, ids=str)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@every
@both_types
@pytest.mark.parametrize(("out", "width"), [(1, 32), (70, 96), (33, 640)])
def test_the_compiled_and_the_plain_version_agree_to_the_last_bit(
    name: str, dtype: torch.dtype, out: int, width: int
) -> None:
    """The kernels serve no float64, so it is packed and expanded by the plain version, which computes in float32."""
    made = layer(name, out, width)
    assert torch.equal(made.dense(dtype), made.dense(torch.float64).to(dtype))
    kind, weight = quantizer(name), draw(out, width).to(dtype)
    parts, again = kind.pack(weight), kind.pack(weight.double())
    assert parts.keys() == again.keys() and all(torch.equal(parts[n], again[n]) for n in parts)


@every
@both_types
def test_some_rows_are_the_rows_of_the_whole(name: str, dtype: torch.dtype) -> None:
    made = layer(name, 37, 320)
    assert torch.equal(made.lent(dtype, 5, 19), made.dense(dtype)[5:19])
    assert torch.equal(made.dense(torch.float32).to(torch.bfloat16), made.dense(torch.bfloat16))


@every
def test_the_error_is_small_and_zeros_stay_zeros(name: str) -> None:
    weight = draw(64, 256)
    weight[3] = 0
    weight[:, 7] = 0
    kind = quantizer(name)
    made = kind((64, 256), kind.pack(weight), None, torch.float32).dense(torch.float32)
    assert (made - weight).norm() / weight.norm() < (0.1 if name == "nf4" else 0.01)
    assert not made[3].any() and not made[:, 7].any()


@every
def test_numbers_that_are_not_finite_are_refused(name: str) -> None:
    for bad in (float("nan"), float("inf")):
        weight = draw(8, 64)
        weight[5, 3] = bad
        with pytest.raises(ModelError, match="not finite"):
            quantizer(name).pack(weight)


@every
def test_parts_of_another_matrix_are_refused(name: str) -> None:
    kind = quantizer(name)
    parts = kind.pack(draw(8, 64))
    with pytest.raises(ModelError, match="damaged or was written for another shape"):
        kind((8, 128), parts, None, torch.float32)
    first = next(iter(parts))
    with pytest.raises(ModelError, match=first):
        kind((8, 64), {n: p for n, p in parts.items() if n != first} | {"other": parts[first]}, None, torch.float32)


@every
def test_parts_never_change_their_type_and_go_through_a_state_dict(name: str) -> None:
    made = layer(name, 16, 64, bias=True)
    before = {n: p.clone() for n, p in made.parts.items()}
    for moved in (made.to(torch.bfloat16), made.double(), made.half()):
        assert all(p.dtype == before[n].dtype and torch.equal(p, before[n]) for n, p in moved.parts.items())
    assert made.dtype == torch.float16 and made.bias is not None and made.bias.dtype == torch.float16
    other = layer(name, 16, 64, bias=True)
    other.get_buffer(next(iter(before))).zero_()
    other.load_state_dict(made.state_dict())
    assert torch.equal(other.dense(torch.float32), layer(name, 16, 64).dense(torch.float32))


@every
@both_types
@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_computes_what_its_dense_one_computes(name: str, dtype: torch.dtype, bias: bool) -> None:
    made = layer(name, 48, 96, dtype, bias)
    linear = made.to_dense()
    assert linear.weight.dtype == dtype
    x = draw(2, 19, 96).to(dtype)
    found, wanted = (_with_gradient(m, x) for m in (made, linear))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def _with_gradient(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    y = module(leaf)
    (gradient,) = torch.autograd.grad(y, leaf, torch.linspace(-1, 1, y.numel()).view(y.shape).to(y.dtype))
    return y.detach(), gradient


def adapted(base: nn.Linear | QuantizedLinear, scale: float, dropout: float) -> LoRALinear:
    a, b = kaiming(base, 4, scale, torch.Generator().manual_seed(0))
    return LoRALinear(base, 4, scale, dropout, a, b).train()


@every
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("bias", [False, True])
def test_the_graph_keeps_no_dense_matrix(name: str, dropout: float, bias: bool) -> None:
    made = layer(name, 512, 256, torch.bfloat16, bias)
    lora = adapted(made, 1.0, dropout)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):  # type: ignore[func-returns-value]
        lora(draw(8, 256).bfloat16().requires_grad_())
        made(draw(8, 256).bfloat16().requires_grad_())
    assert kept and max(kept) < 512 * 256 / 8


@every
@both_types
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("bias", [False, True])
def test_an_adapted_layer_computes_what_the_adapted_dense_one_does(
    name: str, dtype: torch.dtype, dropout: float, bias: bool
) -> None:
    made = layer(name, 48, 96, dtype, bias)
    found, wanted = (_adapted(base, dropout, draw(21, 96).to(dtype)) for base in (made, made.to_dense()))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def _adapted(base: Any, dropout: float, x: Tensor) -> list[Tensor]:
    lora = adapted(base, 2.0, dropout)
    lora.b.data = draw(48, 4, seed=3)
    torch.manual_seed(7)
    leaf = x.clone().requires_grad_()
    y = lora(leaf)
    gradients = torch.autograd.grad(y.float().square().sum(), [leaf, lora.a, lora.b])
    return [y.detach(), *gradients]


def _gradients(model: Any) -> list[Tensor]:
    Scorer(model).token_logprobs(BATCH).sum().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def _lora(model: Any) -> Any:
    injected = LoRA(rank=4).inject(model, seed=0)
    with torch.no_grad():
        for i, p in enumerate(injected.trainable.values()):
            p.add_(draw(*p.shape, seed=i) * 0.05)
    return injected


@every
@both_types
def test_after_an_evaluation_gradients_and_merge_equal_the_dequantized_model_s(name: str, dtype: torch.dtype) -> None:
    """A known library packs 4-bit weights anew at the first evaluation on some CPUs; then both are wrong, silently."""
    model = quantize(tiny_llama(dtype=dtype), name)
    wanted = dequantized(model)
    mine, theirs = _lora(model), _lora(wanted)
    ids = torch.arange(20)[None] % 61
    for each in (model, wanted):
        each.eval()
        with torch.no_grad():
            each(ids)
        with torch.inference_mode():
            each.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0)
            Scorer(each).token_logprobs(BATCH)
        each.train()
    found, right = _gradients(model), _gradients(wanted)
    assert len(found) == len(right) == 28
    assert all(torch.equal(a, b) for a, b in zip(found, right, strict=True))
    mine.merge()
    theirs.merge()
    assert not any(isinstance(m, QuantizedLinear) for m in model.modules())
    merged, expected = model.state_dict(), wanted.state_dict()
    assert merged.keys() == expected.keys()
    assert all(torch.equal(merged[n], expected[n]) and merged[n].dtype == dtype for n in merged)


@every
def test_with_the_adapter_off_or_fresh_the_base_computes_what_it_did(name: str) -> None:
    model = quantize(tiny_llama(), name)
    base = copy.deepcopy(model)
    with torch.no_grad():
        before = Scorer(base).token_logprobs(BATCH)
        injected = LoRA().inject(model, seed=0)
        assert torch.equal(Scorer(model).token_logprobs(BATCH), before)
        for p in injected.trainable.values():
            p.add_(0.1)
        assert not torch.equal(Scorer(model).token_logprobs(BATCH), before)
        with injected.disabled():
            assert torch.equal(Scorer(model).token_logprobs(BATCH), before)


@every
def test_a_head_that_is_quantized_scores_as_its_dense_one(name: str) -> None:
    model = tiny_llama()
    kind = quantizer(name)
    weight = draw(61, 32, seed=4) * 0.3
    head = kind((61, 32), kind.pack(weight), None, torch.float32)
    results = []
    for made in (head, head.to_dense()):
        copied = copy.deepcopy(model)
        copied.set_output_embeddings(made)
        copied.config.tie_word_embeddings = False
        _lora(copied)
        logprobs = Scorer(copied).token_logprobs(BATCH)
        results.append([logprobs.detach(), *_gradients(copied)])
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@every
def test_full_fine_tuning_of_a_quantized_model_is_refused(name: str) -> None:
    from luthier.adapters.full import Full

    with pytest.raises(ModelError, match=r"model.quantize = 'none'"):
        Full().inject(quantize(tiny_llama(), name), seed=0)


ADAPTED = [name for name in registry.names(ADAPTERS) if name not in ("full", "layer_freeze", "peft")]


@pytest.mark.slow
@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("adapter", ADAPTED)
def test_every_adapter_computes_over_a_quantized_base_what_it_does_over_the_dense_one(
    name: str, adapter: str, dtype: torch.dtype
) -> None:
    """Scores, gradients after an evaluation, the base with the adapter off, and the merged model where there is one."""
    base = quantize(tiny_llama(dtype=dtype), name)
    models = copy.deepcopy(base), dequantized(base)
    results = []
    for model in models:
        injected = registry.load_class(ADAPTERS, adapter, Adapter)().inject(model, seed=0)  # type: ignore[type-abstract]
        with torch.no_grad():
            for i, p in enumerate(injected.trainable.values()):
                p.add_(draw(*p.shape, seed=i) * 0.05)
            Scorer(model.eval()).token_logprobs(BATCH)
        model.train()
        logprobs = Scorer(model).token_logprobs(BATCH)
        gradients = torch.autograd.grad(logprobs.sum(), list(injected.trainable.values()))
        with torch.no_grad(), injected.disabled():
            off = Scorer(model).token_logprobs(BATCH)
        results.append([logprobs.detach(), off, *gradients])
        try:
            injected.merge()
        except NotImplementedError:
            continue
        with torch.no_grad():
            results[-1].append(Scorer(model).token_logprobs(BATCH))
    with torch.no_grad():
        assert torch.equal(results[0][1], Scorer(base).token_logprobs(BATCH))
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@every
@pytest.mark.parametrize("adapter", ["full", "layer_freeze"])
def test_weights_that_are_held_quantized_are_not_trained(name: str, adapter: str) -> None:
    model = quantize(tiny_llama(), name)
    with pytest.raises(ModelError, match="held quantized cannot train"):
        registry.load_class(ADAPTERS, adapter, Adapter)().inject(model, seed=0)  # type: ignore[type-abstract]
