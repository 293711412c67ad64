"""What one step computes: however it is cut up, divided once, without dropout in validation, updated as AdamW says."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.engine_runs import make_run, random_units
from torch import Tensor, nn

from luthier import assemble
from luthier.adapters.lora import LoRA
from luthier.adapters.prompt import Prompt
from luthier.config import Tree, build
from luthier.data.source import Source, Unit, micro_batches
from luthier.engine.loop import train, validation_loss
from luthier.engine.optimizers.adamw import AdamW
from luthier.engine.run import Run
from luthier.errors import DataError
from luthier.examples import Conversation, Example, Message, Preference, Row
from luthier.models.forest import build_batch
from luthier.models.load import LoadedModel
from luthier.recipe import Recipe


def run_cut(folder: Path, cut: int, objective: str) -> Run:
    """Four float64 steps in micro-batches of at most `cut` tokens."""
    training = {"steps": 4, "rows_per_step": 4, "micro_batch_tokens": cut, "validate_every": 2, "patience": 100}
    return make_run(folder / str(cut), torch.float64, objective={"type": objective}, training=training)


def trained_weights(run: Run) -> Tensor:
    return torch.cat([p.detach().flatten() for p in run.injected.trainable.values()])


@pytest.mark.parametrize(("objective", "middle"), [("sft", 40), ("dpo", 60)])
def test_how_steps_are_cut_up_changes_neither_weights_nor_metrics(objective: str, middle: int, tmp_path: Path) -> None:
    """Up to rounding, since the model's norms compute in float32 whatever it is held in."""
    whole = run_cut(tmp_path, 10_000, objective)
    expected = [step.metrics for step in train(whole)]
    parts = []
    for cut in (middle, 1):
        run = run_cut(tmp_path, cut, objective)
        parts.append(len(list(micro_batches(run.source.step(1), cut))))
        found = [step.metrics for step in train(run)]
        torch.testing.assert_close(trained_weights(run), trained_weights(whole), rtol=0, atol=1e-5)
        for mine, wanted in zip(found, expected, strict=True):
            assert mine == pytest.approx(wanted, rel=1e-5)
        assert run.state.best_loss == pytest.approx(whole.state.best_loss, rel=1e-6)
    assert 1 < parts[0] < parts[1] == 4, "the cuts must differ, or the test compares nothing"


def test_a_micro_batch_holds_as_many_tokens_as_are_computed() -> None:
    """What rows share is computed once, so it counts once; no list is cut earlier than its forest demands."""
    generator = random.Random(0)

    def draw(count: int) -> tuple[int, ...]:
        return tuple(generator.randrange(1000) for _ in range(count))

    def row(ids: tuple[int, ...]) -> Row:
        return Row(ids, (1.0,) * len(ids))

    system = draw(100)
    asked = [system + draw(20) for _ in range(6)]
    pairs: list[Unit] = [(row(prompt + draw(10)), row(prompt + draw(15))) for prompt in asked]
    cuts = list(micro_batches(pairs, 250))
    sizes = [len(build_batch(rows).forest.ids_N) for rows in cuts]
    assert [len(rows) for rows in cuts] == [6, 6] and sizes == [100 + 3 * 45] * 2
    assert [len(rows) for rows in micro_batches(pairs, 234)] == [4, 4, 4]
    alone: list[Unit] = [(row(system[:15] + draw(30)),) for _ in range(3)]  # 15 common tokens are not worth a call
    assert [len(rows) for rows in micro_batches(alone, 134)] == [2, 1]


def test_metrics_count_the_tokens_of_the_step(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    first = next(iter(train(run)))
    rows = [row for unit in run.source.step(1) for row in unit]
    assert first.metrics["tokens"] == sum(len(row.ids) for row in rows)
    assert first.metrics["trained_tokens"] == sum(row.trained_tokens for row in rows) < first.metrics["tokens"]


def test_validation_is_the_mean_over_all_tokens_without_dropout(tmp_path: Path) -> None:
    run = make_run(tmp_path, adapter={"type": "lora", "dropout": 0.5})
    with torch.no_grad():
        for name, parameter in run.injected.trainable.items():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    total = count = 0.0
    for (row,) in run.validation:
        with torch.no_grad():
            logits = run.model.eval()(torch.tensor([row.ids])).logits[0].log_softmax(-1)
        for place in range(1, len(row.ids)):
            total -= row.loss_mask[place] * float(logits[place - 1, row.ids[place]])
            count += row.loss_mask[place]
    run.model.train()
    assert validation_loss(run) == pytest.approx(total / count, rel=1e-5)


def without_a_trained_token(units: list[Unit]) -> list[Unit]:
    return [tuple(Row(row.ids, (0.0,) * len(row.ids), row.id) for row in unit) for unit in units]


def test_a_step_without_a_trained_token_names_its_rows(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.source = Source(without_a_trained_token(random_units(3)), 2, seed=0)
    with pytest.raises(
        DataError, match=r"step 1: none of its rows has a token to train on: \d/0, \d/0\..*check --show"
    ):
        list(train(run))


@pytest.mark.parametrize("cut", [1, 10_000])
def test_a_row_without_a_trained_token_is_no_obstacle_to_its_step(cut: int, tmp_path: Path) -> None:
    def run_with(units: list[Unit], rows: int, name: str) -> Run:
        training = {"steps": 1, "rows_per_step": rows, "micro_batch_tokens": cut}
        run = make_run(tmp_path / name, torch.float64, training=training)
        run.source = Source(units, rows, seed=0)
        list(train(run))
        return run

    units = random_units(4)
    with_idle = run_with(units[:3] + without_a_trained_token(units[3:]), 4, "idle")
    torch.testing.assert_close(trained_weights(with_idle), trained_weights(run_with(units[:3], 3, "rest")))


@pytest.mark.parametrize(
    "settings",
    [
        AdamW(learning_rate=0.1),
        AdamW(learning_rate=0.1, weight_decay=0.3),
        AdamW(learning_rate=0.1, beta1=0.5, beta2=0.7),
        AdamW(learning_rate=0.1, epsilon=0.5),
    ],
    ids=["defaults", "decay", "betas", "epsilon"],
)
def test_two_steps_of_adamw_are_those_of_the_paper(settings: AdamW) -> None:
    """Loshchilov & Hutter, algorithm 2, written out; vectors do not decay."""
    draw = torch.Generator().manual_seed(0)
    start = {"matrix": torch.randn(3, 2, generator=draw), "vector": torch.randn(4, generator=draw)}
    gradients = [{name: torch.randn(x.shape, generator=draw) for name, x in start.items()} for _ in range(2)]
    parameters = {name: nn.Parameter(x.clone()) for name, x in start.items()}
    rate = settings.learning_rate or 2e-4
    optimizer = settings.build(parameters, rate)
    for step in gradients:
        for name, gradient in step.items():
            parameters[name].grad = gradient.clone()
        optimizer.step()
    for name, value in start.items():
        mean, square = torch.zeros_like(value), torch.zeros_like(value)
        decay = settings.weight_decay if name == "matrix" else 0.0
        for t, step in enumerate(gradients, start=1):
            mean = settings.beta1 * mean + (1 - settings.beta1) * step[name]
            square = settings.beta2 * square + (1 - settings.beta2) * step[name] ** 2
            unbiased = mean / (1 - settings.beta1**t), square / (1 - settings.beta2**t)
            update = unbiased[0] / (unbiased[1].sqrt() + settings.epsilon)
            value = value - rate * (update + decay * value)
        torch.testing.assert_close(parameters[name].detach(), value, rtol=1e-5, atol=1e-6)


def test_the_learning_rate_is_the_adapter_s_where_the_recipe_names_none(
    make_tiny: Callable[[], LoadedModel], tmp_path: Path
) -> None:
    """A tenth of it for pairs, and LoRA+ multiplies that of B."""
    loaded = make_tiny()
    rows = []
    for number in range(8):
        prompt = (Message("user", f"What is {number}?"),)
        good, bad = ((Message("assistant", f"{word} {number}."),) for word in ("It is", "Not"))
        rows.append(Preference(prompt, good, bad))
    tables: Tree = {"model": {"name": str(loaded.files.folder)}, "data": {"train": "rows.jsonl"}}
    rates = {}
    for name, objective in (("lora", "sft"), ("lora", "dpo"), ("prompt", "sft")):
        recipe = build(Recipe, {**tables, "adapter": {"type": name}, "objective": {"type": objective}})
        given: list[Example] = list(rows)
        if objective == "sft":
            given = [Conversation(row.prompt + row.chosen) for row in rows]
        units = list(assemble.units_of(recipe, given, assemble.template_for(recipe, loaded, 64)))
        trainable = assemble.make_trainable(recipe, fresh := make_tiny())
        run = assemble.build_run(recipe, fresh, trainable, {"train": units, "validation": units}, "", tmp_path)
        rates[name, objective] = run.learning_rate
    assert rates["lora", "sft"] == LoRA.learning_rate and rates["prompt", "sft"] == Prompt.learning_rate
    assert rates["lora", "dpo"] == pytest.approx(LoRA.learning_rate / 10)


def test_lora_plus_steps_b_faster_than_a_by_its_ratio(tmp_path: Path) -> None:
    run = make_run(tmp_path, adapter={"type": "lora", "loraplus_ratio": 16.0}, schedule={"type": "constant"})
    next(iter(train(run)))
    held = {id(p): group["lr"] for group in run.optimizer.param_groups for p in group["params"]}
    rates = {name: held[id(p)] for name, p in run.injected.trainable.items()}
    assert len(set(rates.values())) == 2
    assert all(rates[n] == pytest.approx(16 * rates[n.replace("lora_B", "lora_A")]) for n in rates if n.endswith("B"))
