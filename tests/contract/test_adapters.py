"""What every adapter must do; cases are found by listing the directory."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine_runs import random_units, tiny_llama

from luthier import registry
from luthier.adapters.base import Adapter, Injected, standing_in
from luthier.config import build
from luthier.errors import ModelError, RecipeError
from luthier.examples import Row
from luthier.models.decode import Slots, evaluating
from luthier.models.forest import build_batch
from luthier.models.scorer import Scorer
from luthier.models.virtual import virtual_ids
from luthier.recipe import ADAPTERS

# every adapter with its defaults, and variants that compute something of their own
VARIANTS: dict[str, dict[str, Any]] = {
    "lora-sqrt_rank": {"scaling": "sqrt_rank", "rank": 4},
    "lora-gaussian": {"init": "gaussian"},
    "lora-orthogonal": {"init": "orthogonal", "rank": 4},
    "lora-pissa": {"init": "pissa", "rank": 4},
    "lora-olora": {"init": "olora", "rank": 4, "scaling": "sqrt_rank"},
    "lora-eva": {"init": "eva", "rank": 4},
    "lora-new_tokens": {"new_tokens": ("57", "58")},
    "dora-new_tokens": {"new_tokens": ("57", "58"), "targets": ("q_proj",)},
    "lora-patterns": {"ranks": {"down_proj": 3}, "alphas": {"q_proj": 5.0}, "layers": (1,)},
    "lora-pissa-patterns": {"init": "pissa", "rank": 4, "ranks": {"down_proj": 3}, "alphas": {"q_proj": 5.0}},
    "bottleneck-houlsby": {"placement": "houlsby", "activation": "gelu"},
    "oft-series": {"series": True, "block_size": 8, "targets": ("q_proj", "down_proj")},
    "p_tuning-lstm": {"network": "lstm"},
    "prefix-reparametrize": {"reparametrize": True},
    "layer_freeze-norms": {"layers": 0, "norms": True, "embeddings": True},
    "peft-oft": {"method": "oft", "settings": {"oft_block_size": 8, "target_modules": ["q_proj"]}},
    "peft-loha": {"method": "loha", "settings": {"r": 4}},
}
NAMES = [*registry.names(ADAPTERS), *VARIANTS]
CASES = [*registry.names(ADAPTERS), *(pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS)]
BATCH = build_batch([row for unit in random_units(3) for row in unit])


NORM = "model.norm.weight"
EXACT = {name: 2e-5 for name in NAMES if name.startswith(("prefix", "lora-pissa", "lora-olora", "lora-orthogonal"))}


def logprobs(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return Scorer(model).token_logprobs(BATCH)


def adapter(name: str) -> Adapter:
    kind = registry.load_class(ADAPTERS, name.partition("-")[0], Adapter)  # type: ignore[type-abstract]
    return kind(**VARIANTS.get(name, {})).reading(lambda text: [int(text)] if text.isdigit() else [])


def move(injected: Injected) -> None:
    """Change every trained tensor, the same way each time."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in injected.trainable.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)


@pytest.mark.parametrize("name", CASES)
def test_injected_model_computes_what_its_base_computed(name: str) -> None:
    base, model = tiny_llama(), tiny_llama()
    injected = adapter(name).inject(model, seed=0)
    assert torch.equal(logprobs(base), logprobs(model)) is injected.starts_as_base


@pytest.mark.parametrize("name", CASES)
def test_exactly_the_trainable_tensors_ask_for_gradients_and_are_float32(name: str) -> None:
    model = tiny_llama(dtype=torch.bfloat16)
    trainable = adapter(name).inject(model, seed=0).trainable
    wanted = {id(p) for p in model.parameters() if p.requires_grad}
    assert wanted == {id(p) for p in trainable.values()}
    assert all(p.dtype == torch.float32 for p in trainable.values())


@pytest.mark.parametrize("name", CASES)
def test_a_bfloat16_base_computes_the_same_with_the_adapter_in(name: str) -> None:
    base, model = tiny_llama(dtype=torch.bfloat16), tiny_llama(dtype=torch.bfloat16)
    overwrites = adapter(name).overwrites_base
    if not adapter(name).inject(model, seed=0).starts_as_base:
        return
    autocast = torch.bfloat16 if overwrites else None
    with torch.no_grad():
        wanted, found = Scorer(base).token_logprobs(BATCH), Scorer(model, autocast).token_logprobs(BATCH)
    assert torch.allclose(wanted, found, rtol=0, atol=5e-3)  # autocast leaves sums in float32


@pytest.mark.parametrize("name", CASES)
def test_a_bfloat16_model_answers_by_the_probabilities_that_it_is_scored_by(name: str) -> None:
    model = tiny_llama(dtype=torch.bfloat16)
    injected = adapter(name).inject(model, seed=0)
    move(injected)
    narrow = torch.bfloat16 if adapter(name).overwrites_base else None
    ids = [3, 1, 4, 1, 5, 9, 2, 6]
    batch = build_batch([Row(tuple(ids), (0.0,) * 4 + (1.0,) * 4)])
    with torch.no_grad(), evaluating(model):
        scored = Scorer(model, narrow).logits(batch).float()
    slots = Slots(model, torch.device("cpu"))
    steps = [slots.prefill([[*virtual_ids(model), *ids[:4]]], [1])]
    steps += [slots.step(torch.tensor([token])) for token in ids[4:-1]]
    torch.testing.assert_close(torch.cat(steps).float(), scored, atol=0.06, rtol=0.05)


def test_weights_that_train_follow_small_updates_when_they_are_seen_in_bfloat16() -> None:
    """An update of a tenth of the grid moves a tenth of the weights, not none of them."""
    model = tiny_llama(dtype=torch.bfloat16)
    model.get_input_embeddings().weight.data[0] = 0  # type: ignore[union-attr, operator, index]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainable = adapter("full").inject(model, seed=3).trainable
    assert all(torch.equal(before[name], p.bfloat16()) for name, p in trainable.items())
    assert not trainable["model.embed_tokens.weight"][0].any(), "exact zeros stay"
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight  # type: ignore[union-attr, operator]
    for name, p in trainable.items():
        if p.dim() == 2 and p.numel() > 1000:
            update = 0.1 * p.detach().abs() * 2**-8  # 128 to 256 steps of the grid make a number
            assert torch.equal((before[name].float() + update).bfloat16(), before[name])
            seen = ((p + update).bfloat16().double() - p.bfloat16().double()).mean() / update.double().mean()
            assert 0.7 < seen < 1.3, name
    again, other = (tiny_llama(dtype=torch.bfloat16) for _ in range(2))
    same = adapter("full").inject(again, seed=3).trainable
    assert all(torch.equal(p, same[name]) for name, p in trainable.items() if name != "model.embed_tokens.weight")
    assert not torch.equal(adapter("full").inject(other, seed=4).trainable[NORM], same[NORM])


@pytest.mark.parametrize("name", CASES)
def test_every_trainable_tensor_is_reached_by_the_gradient_once_it_moves(name: str) -> None:
    model = tiny_llama()
    injected = adapter(name).inject(model, seed=0)
    move(injected)
    Scorer(model).token_logprobs(BATCH).sum().backward()
    for tensor_name, parameter in injected.trainable.items():
        assert parameter.grad is not None and parameter.grad.norm() > 0, tensor_name


@pytest.mark.parametrize("name", CASES)
def test_save_and_restore_give_equal_logits_in_a_fresh_model(name: str, tmp_path: Path) -> None:
    model = tiny_llama()
    injected = adapter(name).inject(model, seed=0)
    move(injected)
    injected.save(tmp_path, "tiny")
    fresh = tiny_llama()
    adapter(name).restore(fresh, tmp_path)
    # a kept start comes back as its difference, and turned keys are turned back
    torch.testing.assert_close(logprobs(model), logprobs(fresh), atol=EXACT.get(name, 0.0), rtol=0)
    assert not torch.equal(logprobs(fresh), logprobs(tiny_llama()))


@pytest.mark.parametrize("name", CASES)
def test_a_renamed_or_missing_tensor_is_refused(name: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = tiny_llama()
    adapter(name).inject(model, seed=0).save(tmp_path, "tiny")
    (path,) = tmp_path.glob("*.safetensors")
    tensors = load_file(path)
    first = next(iter(tensors))
    tensors[first + ".inner"] = tensors.pop(first)
    save_file(tensors, path)
    with pytest.raises(ModelError, match="missing"):
        adapter(name).restore(tiny_llama(), tmp_path)


@pytest.mark.parametrize("name", CASES)
def test_merged_model_equals_adapted_model_and_has_the_base_s_shape(name: str) -> None:
    base, model = tiny_llama(), tiny_llama()
    injected = adapter(name).inject(model, seed=0)
    move(injected)
    adapted = logprobs(model)
    try:
        injected.merge()
    except NotImplementedError:
        assert torch.equal(logprobs(model), adapted)
        return
    assert {n for n, _ in model.named_parameters()} == {n for n, _ in base.named_parameters()}
    torch.testing.assert_close(logprobs(model), adapted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_disabled_is_the_base_bit_for_bit_or_is_refused(name: str) -> None:
    model = tiny_llama()
    injected = adapter(name).inject(model, seed=0)
    move(injected)
    adapted = logprobs(model)
    try:
        context = injected.disabled()
    except NotImplementedError:
        return
    with context:
        assert torch.equal(logprobs(model), logprobs(tiny_llama()))
    assert torch.equal(logprobs(model), adapted)


@pytest.mark.parametrize("name", CASES)
def test_an_artifact_is_read_back_into_the_adapter_that_wrote_it(name: str, tmp_path: Path) -> None:
    """A run whose best checkpoint is damaged takes its weights from the artifact, and goes on being what it was."""
    model = tiny_llama()
    injected = adapter(name).inject(model, seed=0)
    move(injected)
    wanted = logprobs(model)
    injected.save(tmp_path, "tiny")
    move(injected)
    assert not torch.equal(logprobs(model), wanted)
    injected.load(tmp_path)
    torch.testing.assert_close(logprobs(model), wanted, atol=EXACT.get(name, 0.0), rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_learning_rates_are_changed_for_trained_tensors_alone(name: str) -> None:
    injected = adapter(name).inject(tiny_llama(), seed=0)
    factors = injected.rate_factors()
    assert factors.keys() <= injected.trainable.keys() and all(factor > 0 for factor in factors.values())


def test_the_network_of_a_prefix_learns_as_slowly_as_it_is_wide() -> None:
    """Its last layer moves a key by as many steps as it has inputs: at the prefix's own rate it ruined the model."""
    injected = adapter("prefix-reparametrize").inject(tiny_llama(), seed=0)
    factors = injected.rate_factors()
    assert set(factors.values()) == {1 / 512} and set(factors) == {n for n in injected.trainable if "network" in n}
    assert not adapter("prefix").inject(tiny_llama(), seed=0).rate_factors()


@pytest.mark.parametrize("name", CASES)
def test_equal_seeds_give_equal_adapters(name: str) -> None:
    first, second = (adapter(name).inject(tiny_llama(), seed=7).trainable for _ in range(2))
    assert all(torch.equal(first[n], second[n]) for n in first)


def mixtral() -> Any:
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return MixtralForCausalLM(MixtralConfig(**sizes, num_key_value_heads=2, vocab_size=61, num_local_experts=4))


def test_all_linear_refuses_to_leave_experts_out_silently() -> None:
    from luthier.adapters.lora import LoRA

    with pytest.raises(
        ModelError, match=r"would leave out 6 matrices.*experts.*adapter.targets = \['k_proj', 'o_proj'"
    ):
        LoRA().inject(mixtral(), seed=0)
    assert len(LoRA(targets=("q_proj", "v_proj")).inject(mixtral(), seed=0).layers) == 4


def test_a_model_without_linear_layers_is_refused() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    from luthier.adapters.lora import LoRA

    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 64, "vocab_size": 61}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    for targets in (("all_linear",), ("c_attn",)):
        with pytest.raises(ModelError, match="GPT2LMHeadModel has no linear layer"):
            LoRA(targets=targets).inject(model, seed=0)


def test_a_folder_of_full_fine_tuning_says_the_type_of_its_weights(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = tiny_llama()
    model.config.dtype = torch.bfloat16  # what a base that was loaded in bfloat16 says
    injected = adapter("full").inject(model, seed=0)
    move(injected)
    injected.save(tmp_path, "tiny")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert plain.dtype == torch.float32
    assert torch.equal(logprobs(plain), logprobs(model))


def test_lora_names_its_targets_or_refuses() -> None:
    from luthier.adapters.lora import LoRA

    injected = LoRA(targets=("q_proj",)).inject(tiny_llama(), seed=0)
    assert len(injected.layers) == 2 and all(n.endswith("q_proj") for n in injected.layers)
    with pytest.raises(ModelError, match=r"query.*matches no linear layer.*q_proj"):
        LoRA(targets=("query",)).inject(tiny_llama(), seed=0)
    with pytest.raises(ModelError, match="lm_head"):  # tied to the embedding: merging would write the update twice
        LoRA(targets=("lm_head",)).inject(tiny_llama(), seed=0)


def small_qwen() -> Any:
    """Three of its seven linear layers have a bias, which is not zero here."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(Qwen2Config(**sizes, num_key_value_heads=2, vocab_size=61)).eval()
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.data.normal_()
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_biases_are_merged_where_all_layers_have_one_and_refused_unchanged_elsewhere(dtype: torch.dtype) -> None:
    """Qwen 2 has biases in three of its seven linear layers."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from luthier.adapters.bitfit import BitFit

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = Qwen2ForCausalLM(Qwen2Config(**sizes, num_key_value_heads=2, vocab_size=61)).to(dtype).eval()
    base = logprobs(model)
    injected = BitFit().inject(model, seed=0)
    move(injected)
    adapted = logprobs(model)
    with pytest.raises(NotImplementedError, match="without a bias"):
        injected.merge()
    assert torch.equal(logprobs(model), adapted)
    with injected.disabled():
        assert torch.equal(logprobs(model), base)
    other = Qwen2ForCausalLM(model.config).to(dtype).eval()
    partial = BitFit(targets=("q_proj", "k_proj", "v_proj")).inject(other, seed=0)
    move(partial)
    adapted = logprobs(other)
    partial.merge()
    torch.testing.assert_close(logprobs(other), adapted, atol=1e-5 if dtype == torch.float32 else 2e-2, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_a_training_that_continues_begins_as_the_earlier_one_ended(name: str, tmp_path: Path) -> None:
    """Before its first step it scores as the earlier model does by the path of serving, whatever the seeds."""
    if adapter(name).overwrites_base:
        with pytest.raises(RecipeError, match=r"adapter.start_from = 'runs/first'.*model.name = 'runs/first/adapter'"):
            build(type(adapter(name)), {"start_from": "runs/first"})
        return
    injected = adapter(name).inject(tiny_llama(), seed=1)
    for seed in (2, 3):  # the last goes on from one that went on itself
        earlier = tmp_path / f"before {seed}"
        move(injected)
        injected.save(earlier, "tiny")
        served, model = tiny_llama(), tiny_llama()
        adapter(name).restore(served, earlier)
        trained, injected = injected.trainable.keys(), adapter(name).inject(model, seed)
        injected.start_at(earlier)
        torch.testing.assert_close(logprobs(model), logprobs(served), atol=EXACT.get(name, 0.0), rtol=0)
        assert not torch.equal(logprobs(model), logprobs(tiny_llama()))
        assert injected.trainable.keys() == trained
        assert not injected.starts_as_base and not injected.observe([], lambda batch: None)


@pytest.mark.parametrize("init", ["pissa", "orthogonal"])
def test_a_kept_start_is_told_from_the_file_and_not_worked_out_again(init: str, tmp_path: Path) -> None:
    """Another machine may turn singular vectors otherwise, and another seed draws others."""
    from luthier.adapters.lora import LoRA

    first = LoRA(init=init, rank=4).inject(tiny_llama(), seed=1)  # type: ignore[arg-type]
    move(first)
    first.save(tmp_path, "tiny")
    served, model = tiny_llama(), tiny_llama()
    LoRA().restore(served, tmp_path)
    second = LoRA(init=init, rank=4).inject(model, seed=1)  # type: ignore[arg-type]
    for layer in second.layers.values():
        assert layer.start is not None
        layer.start = torch.ones_like(layer.a), torch.ones_like(layer.b)
    second.start_at(tmp_path)
    torch.testing.assert_close(logprobs(model), logprobs(served), atol=2e-5, rtol=0)


def test_a_bias_in_bfloat16_continues_where_the_earlier_seed_had_placed_it(tmp_path: Path) -> None:
    def inject(seed: int) -> tuple[Any, Injected]:
        model = small_qwen().to(torch.bfloat16)
        return model, adapter("bitfit").inject(model, seed)

    (_, first), (model, second), (other, third) = (inject(seed) for seed in (1, 2, 1))
    move(first)
    first.save(tmp_path / "first", "tiny")
    second.start_at(tmp_path / "first")
    third.load(tmp_path / "first")
    assert torch.equal(logprobs(model), logprobs(other))
    second.save(tmp_path / "second", "tiny")
    served = small_qwen().to(torch.bfloat16)
    adapter("bitfit").restore(served, tmp_path / "second")
    assert torch.equal(logprobs(served), logprobs(model))


@pytest.mark.parametrize("name", CASES)
def test_other_numbers_stand_in_and_leave_a_graph_as_it_was(name: str, tmp_path: Path) -> None:
    """A reference that is scored between forward and backward changes no gradient, and is what it was."""
    if adapter(name).overwrites_base:
        return
    model = tiny_llama()
    injected = adapter(name).inject(model, seed=0)
    move(injected)
    start = {key: p.detach().clone() for key, p in injected.trainable.items()}
    before = logprobs(model)
    move(injected)
    moved = logprobs(model)
    gradients = []
    for between in (False, True):
        loss = Scorer(model).token_logprobs(BATCH).sum()
        if between:
            with standing_in(injected.trainable, start):
                assert torch.equal(logprobs(model), before) and not torch.equal(before, moved)
        gradients.append(torch.autograd.grad(loss, list(injected.trainable.values())))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert torch.equal(logprobs(model), moved)
