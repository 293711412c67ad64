"""Rows of every adapter, written in one batch with rows of others, are what they are alone."""

from typing import Any

import pytest
import torch
from tests.contract.test_adapters import CASES, adapter, move
from tests.engine_runs import VOCABULARY, tiny_llama
from tests.quantized import quantize
from torch import Tensor, nn
from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM

from luthier import registry
from luthier.adapters.base import Injected
from luthier.adapters.lora import LoRA
from luthier.errors import ModelError
from luthier.models.decode import Slots
from luthier.models.kernels.low_rank import low_rank_rows, low_rank_rows_plain
from luthier.models.kernels.scaled import scaled_values
from luthier.models.mixed import NO_ADAPTER, Form, MixedLinear, Mixture, twin
from luthier.models.virtual import virtual_ids
from luthier.recipe import QUANTIZERS

CPU = torch.device("cpu")
ONE_BY_ONE = {"peft", "full", "layer_freeze"}
"""Families whose rows cannot share a batch: what they change is not in linear layers, or is the base itself. Nor can
adapters that train rows of embedding and head."""


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Reader:
    """A model of its own that reads a prompt, and goes on alone."""

    def __init__(self, model: Any, ids: list[int]) -> None:
        self.model, self.ids = model, [*virtual_ids(model), *ids]
        self.cache = DynamicCache()
        self._next(self.ids)

    def row(self) -> list[tuple[Tensor, Tensor]]:
        return [(layer.keys[0].clone(), layer.values[0].clone()) for layer in self.cache.layers]

    def alone(self, token: int) -> Tensor:
        """(V,) logits after one more token, by the library's own attention."""
        return self._next([token])

    def _next(self, ids: list[int]) -> Tensor:
        with torch.inference_mode():
            out = self.model(input_ids=torch.tensor([ids]), past_key_values=self.cache, use_cache=True)
        logits: Tensor = out.logits[0, -1]
        return logits


def over(base: Any, name: str, seed: int) -> tuple[Any, Injected]:
    model = twin(base)
    injected = adapter(name).inject(model, seed)
    move(injected)
    model.eval()
    return model, injected


def written(mixture: Mixture, readers: list[Reader], places: list[int], tokens: list[int]) -> Tensor:
    """(rows, V) logits after one token of each row, all rows in one batch."""
    slots = Slots(mixture.model, CPU)
    for reader in readers:
        slots.insert(reader.row())
    mixture.assign(places, CPU)
    return slots.step(torch.tensor(tokens))


def check(base: Any, name: str) -> None:
    mixture = Mixture(twin(base))
    adapted = [over(base, name, seed=1), over(base, "lora", seed=2), over(base, name, seed=3)]
    places = [mixture.put(parts) for _, injected in adapted if (parts := injected.parts()) is not None]
    assert places == [1, 2, 3]
    models = [twin(base), *(model for model, _ in adapted), adapted[0][0]]
    rows = [NO_ADAPTER, *places, places[0]]
    readers = [Reader(model, [3 + i, 40, 7, 20 - i]) for i, model in enumerate(models)]
    tokens = [9, 10, 11, 12, 13]
    found = written(mixture, readers, rows, tokens)
    wanted = torch.stack([reader.alone(token) for reader, token in zip(readers, tokens, strict=True)])
    torch.testing.assert_close(found, wanted, atol=2e-4, rtol=0)
    assert (wanted[1] - Reader(twin(base), [4, 40, 7, 19]).alone(10)).abs().max() > 2e-3, "the adapter does something"
    mixture.take_out(places[0])
    readers = [Reader(adapted[2][0], [5, 6, 7]), Reader(twin(base), [5, 6, 7])]
    found = written(mixture, readers, [places[2], NO_ADAPTER], [8, 8])
    torch.testing.assert_close(found, torch.stack([r.alone(8) for r in readers]), atol=2e-4, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_rows_beside_those_of_others_are_as_alone(name: str) -> None:
    base = tiny_llama().eval()
    before = {key: value.clone() for key, value in base.state_dict().items()}
    if name.partition("-")[0] in ONE_BY_ONE or name.endswith("new_tokens"):
        assert over(base, name, seed=1)[1].parts() is None
        return
    check(base, name)
    assert all(torch.equal(value, before[key]) for key, value in base.state_dict().items())


@pytest.mark.parametrize("quantizer", registry.names(QUANTIZERS))
@pytest.mark.parametrize("name", ["lora", "dora", "ia3", "bitfit", "vera", "bottleneck", "prompt"])
def test_so_they_are_over_a_quantized_base(quantizer: str, name: str) -> None:
    check(quantize(tiny_llama().eval(), quantizer), name)


@pytest.mark.parametrize("name", ["lora", "dora", "ia3", "bitfit"])
def test_layers_that_have_biases_keep_them(name: str) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    base = Qwen2ForCausalLM(Qwen2Config(**sizes, num_key_value_heads=2, vocab_size=VOCABULARY)).eval()
    for key, parameter in base.named_parameters():
        if key.endswith("bias"):
            parameter.data = draw(*parameter.shape, seed=len(key)) * 0.1
    check(base, name)


@pytest.mark.parametrize("name", ["lora", "dora", "ia3", "bitfit"])
def test_in_bfloat16_a_mixed_row_is_as_near_to_the_exact_one_as_a_row_alone(name: str) -> None:
    """Small updates, too: what is rounded twice would lose those of less than half a step of the grid."""
    holder: Any = Holder(draw(128, 256).bfloat16())
    weight = holder.k_proj.weight
    injected = adapter(name).inject(holder, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in injected.trainable.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.002)
    x = draw(64, 256, seed=2).bfloat16()
    part = (injected.parts() or {})["k_proj"]
    assert isinstance(part, Form)
    with torch.no_grad():
        alone = holder.k_proj(x).float()
        exact, update = exactly(weight, part, x), exactly(weight, part, x) - exactly(weight, Form(), x)
        mixture = Mixture(Holder(weight))
        model: Any = mixture.model
        place = mixture.put({"k_proj": part})
        mixture.assign([place] * 63 + [NO_ADAPTER], CPU)
        mixed = model.k_proj(x).float()
        plain = (x @ weight.t()).float()
    assert torch.equal(mixed[-1], plain[-1]), "a row without an adapter is the base's, bit for bit"
    assert (mixed - exact)[:-1].abs().mean() < 1.6 * (alone - exact)[:-1].abs().mean()
    # along the update nothing is lost on average
    seen, seen_alone = (((y - plain)[:-1] * update[:-1]).sum() / update[:-1].square().sum() for y in (mixed, alone))
    assert 0.85 < seen < 1.15, (seen, seen_alone)


class Holder(nn.Module):
    """The least that an adapter takes for a model."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        for name in ("k_proj", "v_proj", "down_proj"):
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            linear.weight = nn.Parameter(weight, requires_grad=False)
            self.register_module(name, linear)

    def get_output_embeddings(self) -> None:
        return None


def exactly(weight: Tensor, form: Form, x: Tensor) -> Tensor:
    wide, w = x.double(), weight.double()
    y = (wide if form.cols is None else wide * form.cols.double()) @ w.t()
    if form.low is not None:
        y = y + wide @ form.low[0].double().t() @ form.low[1].double().t()
    y = y if form.rows is None else y * form.rows.double()
    return (y if form.bias is None else y + form.bias.double()).float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [1, 7])
def test_the_kernel_agrees_with_its_reference(dtype: torch.dtype, rows: int) -> None:
    x, a, b = (draw(*shape, seed=i).to(dtype) for i, shape in enumerate([(rows, 70), (4, 5, 70), (4, 5, 33)]))
    which = torch.tensor([2, 0, 3, 3, 1, 0, 2])[:rows]
    found, wanted = low_rank_rows(x, a, b, which), low_rank_rows_plain(x.double(), a.double(), b.double(), which)
    torch.testing.assert_close(found.double(), wanted, atol=1e-4 if dtype == torch.float32 else 0.3, rtol=1e-2)
    assert not found[which == 0].any()


def test_scaling_by_one_keeps_every_bit_and_by_less_than_a_step_moves_a_share() -> None:
    x = draw(20, 4096).abs().bfloat16()
    x[0, 0] = 0
    assert torch.equal(scaled_values(x, torch.ones(4096)), x)
    moved = scaled_values(x, torch.full((4096,), 1.0005))
    assert 0.8 < float((moved.double() - x.double()).sum() / (x.double() * 0.0005).sum()) < 1.2


def test_adapters_come_and_go_without_a_trace() -> None:
    base = tiny_llama().eval()
    mixture = Mixture(twin(base))
    adapted = [over(base, "lora", seed=i) for i in range(5)]
    places = [mixture.put(injected.parts() or {}) for _, injected in adapted]
    for gone in (1, 3):
        mixture.take_out(places[gone])
    again = mixture.put(adapted[3][1].parts() or {})
    assert again in (places[1], places[3]), "a place that is free is taken again"
    order = [(adapted[4][0], places[4]), (adapted[3][0], again), (adapted[0][0], places[0]), (twin(base), NO_ADAPTER)]
    readers = [Reader(model, [5, 6, 7]) for model, _ in order]
    found = written(mixture, readers, [place for _, place in order], [8] * 4)
    torch.testing.assert_close(found, torch.stack([r.alone(8) for r in readers]), atol=2e-4, rtol=0)
    for place in (places[0], places[2], places[4], again):
        mixture.take_out(place)
    layers = [m for m in mixture.model.modules() if isinstance(m, MixedLinear)]
    assert layers and not any(layer._low or layer._vectors or layer._asked for layer in layers)


def test_half_an_adapter_does_not_stay() -> None:
    base = tiny_llama().eval()
    mixture = Mixture(twin(base))
    (_, injected) = over(base, "lora", seed=1)
    parts = dict(injected.parts() or {})
    with pytest.raises(AttributeError, match="no_layer"):
        mixture.put({**parts, "model.no_layer": next(iter(parts.values()))})
    assert mixture.put(parts) == 1


def test_a_twin_shares_every_tensor_and_no_structure() -> None:
    base = tiny_llama()
    other = twin(base)
    assert all(a is b for a, b in zip(base.parameters(), other.parameters(), strict=True))
    LoRA().inject(other, seed=0)
    assert not any("lora" in name.lower() for name, _ in base.named_parameters())
    with pytest.raises(ModelError):
        LoRA(targets=("nothing",)).inject(other, seed=0)
