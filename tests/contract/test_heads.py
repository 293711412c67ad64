"""A head beside every adapter: one more thing that trains, is saved and comes back, and changes nothing else."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.contract.test_adapters import BATCH, CASES, adapter, logprobs, move
from tests.engine_runs import random_units, tiny_llama
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from luthier.adapters._head import WithHead
from luthier.assemble import head_over_base
from luthier.config import build
from luthier.errors import ModelError
from luthier.models.forest import HeadValues, build_batch
from luthier.models.heads import FILE, Head, HeadShape, head_of
from luthier.models.load import LoadedModel
from luthier.models.scorer import Scorer, forest_mode
from luthier.models.virtual import virtual_ids
from luthier.preflight._probe import plain_value
from luthier.recipe import Recipe

ROWS = [row for unit in random_units(3) for row in unit]
SHAPE = HeadShape("reward", outputs=2, start="normal")


def with_head(name: str, model: Any, shape: HeadShape = SHAPE, seed: int = 0) -> WithHead:
    return WithHead(adapter(name).inject(model, seed), head_of(model, shape, seed))


def values(model: Any, head: Head, batch: Any = BATCH) -> HeadValues:
    with torch.no_grad():
        return Scorer(model, head=head).head_values(batch)


def tiny_gemma() -> Any:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Gemma3ForCausalLM(Gemma3TextConfig(**sizes, num_key_value_heads=1, head_dim=16, vocab_size=61)).eval()


@pytest.mark.parametrize("name", CASES)
def test_a_head_reads_the_end_of_each_row_however_rows_are_packed(name: str) -> None:
    model = tiny_llama()
    injected = with_head(name, model)
    move(injected)
    head = injected.head
    together = values(model, head)
    for index, row in enumerate(ROWS):
        with torch.no_grad():
            plain = plain_value(model, head, row, torch.device("cpu"))
        alone = values(model, head, build_batch([row]))
        torch.testing.assert_close(together.rows_RO[index], plain, atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(together.rows_RO[index], alone.rows_RO[0], atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(together.tokens_KO[BATCH.row_K == index], alone.tokens_KO, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gemma])
def test_one_pass_gives_what_two_give(make: Any) -> None:
    """A model with a plain output layer, and one whose logits are its own business."""
    model = make()
    head = head_of(model, SHAPE, seed=0)
    scorer, passes = Scorer(model, head=head), []
    counting = model.base_model.register_forward_hook(lambda *_: passes.append(1))
    with torch.no_grad():
        logprobs_K, found = scorer.logprobs_and_values(BATCH)
        assert len(passes) == 1
        counting.remove()
        assert torch.equal(logprobs_K, scorer.token_logprobs(BATCH))
        for one, other in zip(found, scorer.head_values(BATCH), strict=True):
            assert torch.equal(one, other)
    assert not model.base_model._forward_hooks


def test_values_of_tokens_are_read_where_the_token_is_predicted() -> None:
    model = tiny_llama()
    head = head_of(model, SHAPE, seed=0)
    (row,) = random_units(1)[0]
    first = next(i for i, weight in enumerate(row.loss_mask) if weight)
    found = values(model, head, build_batch([row]))
    for number, position in enumerate(range(first, len(row.ids))):
        with torch.no_grad():
            wanted = plain_value(model, head, row.first(position), torch.device("cpu"))
        torch.testing.assert_close(found.tokens_KO[number], wanted, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_a_head_trains_beside_the_adapter_and_changes_nothing_that_is_written(name: str) -> None:
    model, plain = tiny_llama(dtype=torch.bfloat16), tiny_llama(dtype=torch.bfloat16)
    injected, alone = with_head(name, model), adapter(name).inject(plain, 0)
    assert list(injected.trainable) == [*alone.trainable, "head.weight", "head.bias"]
    assert all(p.dtype == torch.float32 and p.requires_grad for p in injected.trainable.values())
    assert torch.equal(logprobs(model), logprobs(plain)) and injected.starts_as_base == alone.starts_as_base
    assert injected.rate_factors() == alone.rate_factors()
    assert {n for n, _ in model.named_parameters()} == {n for n, _ in plain.named_parameters()}
    assert values(model, injected.head).rows_RO.dtype == torch.float32
    move(injected)
    Scorer(model, head=injected.head).head_values(BATCH).rows_RO.sum().backward()
    # what only the vocabulary's own projection reads is not on the way to a head
    dead = {n for n, p in injected.trainable.items() if p.grad is None or not p.grad.any()}
    assert not {n for n in dead if "lm_head" not in n and "token_rows" not in n and ".tokens." not in n}, dead


@pytest.mark.parametrize("name", CASES)
def test_a_head_is_saved_restored_and_never_made_anew_in_silence(name: str, tmp_path: Path) -> None:
    model, fresh = tiny_llama(), tiny_llama()
    injected = with_head(name, model)
    move(injected)
    injected.save(tmp_path, "tiny")
    again = WithHead(adapter(name).restore(fresh, tmp_path), head_of(fresh, SHAPE, seed=5))
    again.head.load(tmp_path)
    for one, other in zip(values(model, injected.head), values(fresh, again.head), strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=0)
    assert all(torch.equal(p, injected.trainable[n]) for n, p in again.trainable.items() if n.startswith("head."))
    for other_shape in (HeadShape("value", 2), HeadShape("reward", 3), HeadShape("reward", 2, bias=False)):
        stranger = head_of(fresh, other_shape, 0)
        stranger.take(tmp_path)
        assert stranger.taken_from is None
        with pytest.raises(ModelError, match=r"head.safetensors: holds a head of kind 'reward'.*objective has a head"):
            stranger.load(tmp_path)
    (tmp_path / FILE).write_bytes(b"nothing")
    with pytest.raises(ModelError, match="not a safetensors file"):
        again.load(tmp_path)
    (tmp_path / FILE).unlink()
    with pytest.raises(ModelError, match=r"head.safetensors is missing"):
        again.load(tmp_path)


def test_a_training_that_continues_takes_a_head_of_its_kind_and_no_other(tmp_path: Path) -> None:
    first = with_head("lora", tiny_llama())
    move(first)
    first.save(tmp_path, "tiny")
    second, value = with_head("lora", tiny_llama(), seed=1), with_head("lora", tiny_llama(), HeadShape("value", 2))
    second.start_at(tmp_path)
    value.start_at(tmp_path)
    assert torch.equal(second.head.weight, first.head.weight) and second.head.taken_from == tmp_path
    assert not value.head.weight.any() and value.head.taken_from is None and not value.starts_as_base


def test_a_base_that_has_a_head_is_measured_with_it(tiny_loaded: LoadedModel, tmp_path: Path) -> None:
    recipe = build(Recipe, {"model": {"name": "tiny"}, "data": {"train": "x"}, "objective": {"type": "reward"}})
    fresh = head_over_base(recipe, tiny_loaded)
    assert fresh is not None and fresh.taken_from is None
    trained = head_of(tiny_loaded.model, fresh.shape, seed=5)
    trained.settle(torch.tensor([[1.0], [3.0]]))
    trained.save(tmp_path)
    found = head_over_base(recipe, replace(tiny_loaded, files=replace(tiny_loaded.files, folder=tmp_path)))
    assert found is not None and found.taken_from == tmp_path and float(found.mean) == 2
    assert torch.equal(found.weight, trained.weight) and not torch.equal(found.weight, fresh.weight)


def test_starts() -> None:
    width = 1000
    drawn = Head(HeadShape("reward", outputs=50, start="normal"), width, seed=0)
    assert float(drawn.weight.detach().std()) == pytest.approx((width + 1) ** -0.5, rel=0.01)
    assert drawn.bias is not None and not drawn.bias.any()
    assert torch.equal(drawn.weight, Head(drawn.shape, width, seed=0).weight)
    assert not Head(HeadShape("value"), width, seed=0).weight.any()
    assert Head(HeadShape("reward", bias=False), width, seed=0).bias is None


def test_checkpointed_layers_and_autocast_give_the_same_gradients() -> None:
    found = []
    for checkpointed in (False, True):
        model = tiny_llama()
        injected = with_head("lora", model)
        move(injected)
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        with forest_mode(model):
            logprobs_K, read = Scorer(model, head=injected.head).logprobs_and_values(BATCH)
            total = logprobs_K.sum() + (read.rows_RO**2).sum() + (read.tokens_KO**2).sum()
            found.append(torch.autograd.grad(total, list(injected.trainable.values())))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    model = tiny_llama()
    head = with_head("full", model).head
    with torch.no_grad():
        narrow, wide = (Scorer(model, cast, head).head_values(BATCH) for cast in (torch.bfloat16, None))
    assert narrow.rows_RO.dtype == torch.float32 and not torch.equal(narrow.rows_RO, wide.rows_RO)
    torch.testing.assert_close(narrow.rows_RO, wide.rows_RO, atol=0.05, rtol=0)


def test_a_scorer_without_a_head_says_so() -> None:
    with pytest.raises(ValueError, match="no head"):
        Scorer(tiny_llama()).head_values(BATCH)


def test_virtual_tokens_come_before_what_a_head_reads() -> None:
    model = tiny_llama()
    injected = with_head("prompt", model)
    read = values(model, injected.head).rows_RO
    assert virtual_ids(model)
    with injected.disabled():
        assert not torch.allclose(read, values(model, injected.head).rows_RO)
