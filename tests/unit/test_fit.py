"""What a training needs is counted on small passes, holds for large ones, and chooses the micro-batch."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine_runs import make_run, tiny_llama

from luthier.cli.commands.estimate import _fits
from luthier.data.source import Source
from luthier.engine.fit import (
    MARGIN,
    Needs,
    _size,
    fit,
    for_another,
    most_that_pays,
    needs_of,
    predict,
)
from luthier.engine.loop import train
from luthier.engine.run import Run
from luthier.estimate import Room
from luthier.examples import Row
from luthier.models.allocated import Growth, Size, allocations, lasting
from luthier.models.forest import Batch, build_batch
from luthier.models.memory import MALLOC, shape_of
from luthier.models.scorer import forest_mode
from luthier.objectives.base import Loss, Models
from luthier.objectives.sft import SFT

CPU = torch.device("cpu")
METHODS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {},
    "ia3": {},
    "vera": {"rank": 8},
    "bottleneck": {"size": 4},
    "prompt": {"tokens": 4},
    "p_tuning": {"tokens": 4, "width": 8},
    "prefix": {"tokens": 4},
    "layer_freeze": {"layers": [1]},
    "full": {},
}


def long_run(folder: Path, adapter: dict[str, Any], base: Any = tiny_llama, cut: int = 10**6, rows: int = 4) -> Run:
    """A run whose rows share nothing; a third of their tokens is trained on."""
    training = {"steps": 2, "rows_per_step": rows, "micro_batch_tokens": cut}
    run = make_run(folder, base=base, adapter=adapter, training=training)
    length = 300
    generator = torch.Generator().manual_seed(0)
    units = []
    for number in range(8):
        ids = torch.randint(0, 61, (length,), generator=generator).tolist()
        mask = (0.0,) * (length - length // 3) + (1.0,) * (length // 3)
        units.append((Row(tuple(ids), mask, str(number)),))
    run.source, run.validation = Source(units, rows, 0), units[:2]
    return run


def counted(run: Run, rows: list[Row]) -> int:
    """Bytes of a whole pass over these rows."""
    batch = build_batch(rows)

    def learn() -> None:
        with forest_mode(run.model):
            run.objective.loss(run.models, batch).total.backward()

    run.model.train()
    lasting(learn, CPU)
    run.optimizer.zero_grad(set_to_none=True)
    peak = max(allocations(learn, CPU))
    run.optimizer.zero_grad(set_to_none=True)
    return peak


# Counting


def test_what_lives_is_counted_and_what_is_gone_is_not() -> None:
    def compute() -> None:
        first = torch.ones(1000)
        view = first[:10]  # no memory of its own
        del first
        second = torch.ones(500)
        del view
        third = second * 2
        del second, third

    assert allocations(compute, CPU) == [4000, 6000, 4000]
    kept: list[torch.Tensor] = []
    assert lasting(lambda: kept.append(torch.ones(7) + 1), CPU) == 28
    given = torch.ones(5)
    assert allocations(lambda: given.add_(1), CPU) == []


def test_each_moment_is_extended_by_itself() -> None:
    """One moment rules small passes, another large ones: the peaks of the small ones alone would not tell."""
    sizes = [Size(10, 4, 40), Size(10, 2, 40), Size(20, 8, 160), Size(30, 12, 360)]

    def moments(size: Size) -> list[int]:
        return [10_000 + size.tokens, 100 * size.tokens + 7 * size.positions + 3 * size.pairs]

    growth = Growth.of(sizes, [moments(size) for size in sizes])
    for size in (Size(10, 4, 40), Size(500, 3, 5), Size(1000, 400, 10**6)):
        assert growth.bytes_at(size) == pytest.approx(max(moments(size)), abs=1)
    assert growth.bytes_of_positions(Size(1000, 400)) == pytest.approx(2800, abs=1)


def test_passes_that_differ_are_compared_by_their_peaks() -> None:
    sizes = [Size(10, 10), Size(20, 20), Size(40, 40)]  # positions tell nothing of their own
    growth = Growth.of(sizes, [[1, 110], [5, 210, 3], [410]])
    assert growth.bytes_at(Size(100, 100)) == pytest.approx(1010, abs=1)


@pytest.mark.parametrize("method", METHODS)
def test_small_passes_foretell_a_large_one(method: str, tmp_path: Path) -> None:
    run = long_run(tmp_path, {"type": method, **METHODS[method]})
    needs = needs_of(run, several=False)
    rows = [row for unit in run.source.step(1) for row in unit]
    size = _size(build_batch(rows))
    assert needs.learning.bytes_at(size) == pytest.approx(counted(run, rows), rel=0.03)
    assert needs.validating.bytes_at(size) < needs.learning.bytes_at(size)


def test_counting_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    run, other = (long_run(tmp_path / name, {"type": "lora", "dropout": 0.2}) for name in "ab")
    run.model.eval()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    needs_of(run)
    assert torch.equal(torch.get_rng_state(), before)
    assert not run.model.training and all(p.grad is None for p in run.injected.trainable.values())
    for each in (run, other):
        torch.manual_seed(0)
        list(train(each))
    pairs = zip(run.injected.trainable.values(), other.injected.trainable.values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


class Narrow(SFT):
    """Finds no memory for many tokens."""

    def loss(self, models: Models, batch: Batch) -> Loss:
        if len(batch.forest.ids_N) > 700:
            raise torch.OutOfMemoryError("no room")
        return super().loss(models, batch)


def test_passes_are_smaller_where_they_find_no_memory(tmp_path: Path) -> None:
    run = long_run(tmp_path, {"type": "lora"})
    wanted = needs_of(run)
    run.objective = Narrow()
    found = needs_of(run, most=1200)
    assert found.learning.planes_J4.shape == wanted.learning.planes_J4.shape
    assert found.memory(found.micro_batches).total == pytest.approx(wanted.memory(wanted.micro_batches).total, rel=1e-3)
    assert all(p.grad is None for p in run.injected.trainable.values())


# What a training needs


def test_only_layers_that_train_are_held_wide_and_have_moments(tmp_path: Path) -> None:
    def base(dtype: torch.dtype) -> Any:
        return tiny_llama(dtype=torch.bfloat16)

    found = {}
    for method in ("lora", "layer_freeze", "full"):
        run = make_run(tmp_path, base=base, adapter={"type": method, **METHODS[method]})
        found[method] = needs_of(run)
    numbers = sum(p.numel() for p in tiny_llama().parameters())
    layer = sum(p.numel() for p in tiny_llama().base_model.layers[1].parameters())
    assert found["full"].weights == 4 * numbers and found["full"].trained == numbers
    assert found["layer_freeze"].weights == 2 * numbers + 2 * layer and found["layer_freeze"].trained == layer
    assert found["lora"].weights == 2 * numbers + 4 * found["lora"].trained


def test_gradients_are_held_where_a_step_is_cut(tmp_path: Path) -> None:
    whole, cut = (long_run(tmp_path / str(n), {"type": "full"}, cut=n) for n in (10**6, 300))
    needs = needs_of(cut)
    assert needs.several and not needs_of(whole).several
    assert needs.memory([Size(300, 100)]).optimizer == 12 * needs.trained
    assert predict(cut).activations < predict(whole).activations


def test_a_total_has_all_parts(tmp_path: Path) -> None:
    needs = replace(needs_of(long_run(tmp_path, {"type": "lora"}), several=True), process=5, updating=0)
    size = Size(600, 200)
    memory = needs.memory([size, Size(10, 1)], [Size(600, 600)])
    assert memory.total == 5 + needs.weights + 12 * needs.trained + int(MALLOC * needs.learning.bytes_at(size))


def test_a_large_validation_batch_counts(tmp_path: Path) -> None:
    needs = needs_of(long_run(tmp_path, {"type": "lora"}))
    small = [Size(64, 8)]
    assert needs.memory(small, [Size(10**5, 10**5)]).total > needs.memory(small).total


def test_another_shape_is_scaled(tmp_path: Path) -> None:
    needs, own = needs_of(long_run(tmp_path, {"type": "lora"})), shape_of(tiny_llama())
    same = for_another(needs, own, own, overwrites=False)
    assert same.memory_of(500).total == pytest.approx(needs.memory_of(500).total, abs=8)
    deeper = replace(own, layers=2 * own.layers, parameters=2 * own.parameters)
    twice = for_another(needs, own, deeper, overwrites=False)
    assert twice.trained == 2 * needs.trained
    assert twice.weights == pytest.approx(2 * needs.weights, abs=8)
    wordy = for_another(needs, own, replace(own, vocabulary=10 * own.vocabulary), overwrites=False)
    assert wordy.learning.bytes_at(Size(1, 10**4)) > 5 * needs.learning.bytes_at(Size(1, 10**4))


def test_another_shape_needs_about_what_is_foretold(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 5, "num_attention_heads": 8}

    def larger(dtype: torch.dtype) -> Any:
        return LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=4, vocab_size=61, tie_word_embeddings=True))

    small, large = (
        long_run(tmp_path / "small", {"type": "lora"}),
        long_run(tmp_path / "large", {"type": "lora"}, larger),
    )
    own, other = (replace(shape_of(run.model), parameters=held_numbers(run)) for run in (small, large))
    guess, found = for_another(needs_of(small), own, other, overwrites=False), needs_of(large)
    assert guess.weights == pytest.approx(found.weights, rel=0.1)
    assert guess.trained == pytest.approx(found.trained, rel=0.1)
    for tokens in (300, 3000):
        assert guess.memory_of(tokens).activations == pytest.approx(found.memory_of(tokens).activations, rel=0.25)


def held_numbers(run: Run) -> int:
    """Of the base."""
    every = sum(p.numel() for p in run.model.parameters())
    return every - sum(p.numel() for p in run.injected.trainable.values())


# The micro-batch


@pytest.fixture
def roomy(tmp_path: Path) -> Iterator[tuple[Run, Needs]]:
    run = long_run(tmp_path, {"type": "lora"}, rows=8)
    yield run, needs_of(run, several=True)


def test_less_memory_means_a_smaller_micro_batch(roomy: tuple[Run, Needs]) -> None:
    run, needs = roomy
    base = needs.memory_of(0).total
    all_of_it = needs.memory_of(2048).total
    found = [fit(run, 2048, int(MARGIN * m), needs) for m in (all_of_it, (base + all_of_it) // 2)]
    assert found[0].tokens == 2048 and found[0].fits
    assert 512 < found[1].tokens < 1400 and found[1].fits
    assert found[1].needed * MARGIN <= found[1].available


def test_never_more_than_pays(roomy: tuple[Run, Needs]) -> None:
    run, needs = roomy
    assert fit(run, most_that_pays(CPU), 10**15, needs).tokens == most_that_pays(CPU)


def test_rows_that_are_too_long_for_the_memory_are_told(roomy: tuple[Run, Needs]) -> None:
    run, needs = roomy
    found = fit(run, 2048, needs.memory_of(100).total, needs)
    assert not found.fits and found.tokens == 64
    assert found.needed > needs.memory_of(290).total, "a row is never split"


# What `luthier estimate` says of it


def test_the_estimate_names_what_fits_and_what_does_not() -> None:
    some = Room(8 * 2**30, 2048, 17, "gemma-3-270m", 3 * 2**30, "Qwen2.5 3B", 17 * 2**30)
    assert _fits(some).startswith("fits      micro-batches of up to 2,048 tokens, about 17 of these rows at once")
    assert _fits(some).endswith("models up to gemma-3-270m (3.0 GiB), not Qwen2.5 3B (17.0)")
    none = replace(some, tokens=0, rows=0, model=None, beyond="smollm2-135m-instruct")
    assert "no micro-batch for certain" in _fits(none)
    assert _fits(none).endswith("no known model (the smallest, smollm2-135m-instruct, would hold 17.0 GiB)")
    every = replace(some, model="Qwen2.5 72B", beyond=None, beyond_bytes=0)
    assert _fits(every).endswith("models up to Qwen2.5 72B (3.0 GiB)")
