"""Our LoRA against `peft`, our losses and trajectories against `transformers` and `trl`."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine_runs import make_run, random_units, tiny_llama

from luthier.adapters.lora import HARMLESS, LoRA
from luthier.engine.loop import train
from luthier.errors import ModelError
from luthier.models.forest import build_batch
from luthier.models.scorer import Scorer
from luthier.objectives.dpo import PENALTIES

pytestmark = pytest.mark.numerics

IDS = torch.randint(0, 61, (2, 23), generator=torch.Generator().manual_seed(4))


def randomize(parameters: dict[str, torch.nn.Parameter]) -> None:
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


@pytest.mark.parametrize("targets", [("all_linear",), ("q_proj", "down_proj")])
def test_peft_loads_our_adapter_with_equal_logits(targets: tuple[str, ...], tmp_path: Path) -> None:
    from peft import PeftModel

    ours = tiny_llama()
    injected = LoRA(rank=4, alpha=6, targets=targets).inject(ours, seed=0)
    randomize(dict(injected.trainable))
    injected.save(tmp_path, "tiny")
    theirs = PeftModel.from_pretrained(tiny_llama(), str(tmp_path)).eval()
    with torch.no_grad():
        torch.testing.assert_close(ours(IDS).logits, theirs(IDS).logits, atol=1e-6, rtol=0)
        assert not torch.allclose(ours(IDS).logits, tiny_llama()(IDS).logits, atol=1e-2)


@pytest.mark.parametrize("targets", ["all-linear", ["v_proj", "up_proj"]])
def test_we_load_peft_s_adapter_with_equal_logits(targets: str | list[str], tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    theirs = get_peft_model(
        tiny_llama(),
        LoraConfig(r=4, lora_alpha=6, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM"),
    ).eval()
    theirs.save_pretrained(str(tmp_path))
    ours = tiny_llama()
    LoRA().restore(ours, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(ours(IDS).logits, theirs(IDS).logits, atol=1e-6, rtol=0)


def trained_by_peft(folder: Path, **settings: Any) -> Any:
    """A peft LoRA of every linear layer that has moved, saved to `folder`."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", task_type="CAUSAL_LM", **settings)
    theirs = get_peft_model(tiny_llama(), config).eval()
    noise = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.randn(parameter.shape, generator=noise) * 0.05)
    theirs.save_pretrained(str(folder))
    return theirs


@pytest.mark.parametrize("initialization", [True, "gaussian", "orthogonal"])
def test_initializations_that_leave_the_base_alone_give_equal_logits(initialization: Any, tmp_path: Path) -> None:
    theirs = trained_by_peft(tmp_path, init_lora_weights=initialization)
    ours = tiny_llama()
    LoRA().restore(ours, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(ours(IDS).logits, theirs(IDS).logits, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "settings",
    [
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
        {"use_rslora": True},
        {"use_dora": True},
        {"lora_bias": True},
        {"alpha_pattern": {"q_proj": 3}},
        {"modules_to_save": ["norm"]},
    ],
    ids=lambda settings: next(iter(settings)) + "=" + str(next(iter(settings.values()))),
)
def test_variants_that_compute_something_else_are_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    (field,) = settings
    trained_by_peft(tmp_path, **settings)
    with pytest.raises(ModelError, match=f"{field} = .*does not compute"):
        LoRA().restore(tiny_llama(), tmp_path)


def test_every_setting_of_peft_is_known_to_be_harmless_or_must_be_off(tmp_path: Path) -> None:
    """A field that a newer peft adds is refused as soon as it is set."""
    trained_by_peft(tmp_path)
    path = tmp_path / "adapter_config.json"
    plain = json.loads(path.read_text())
    assert {"velora_config", "kasa_config", "monteclora_config", "loftq_config", "arrow_config"} <= plain.keys()
    for field in [*plain.keys() - HARMLESS - {"bias", "init_lora_weights"}, "invented_tomorrow"]:
        path.write_text(json.dumps({**plain, field: {"x": 1}}))
        with pytest.raises(ModelError, match=field):
            LoRA().restore(tiny_llama(), tmp_path)


def test_loss_equals_the_model_s_own() -> None:
    model = tiny_llama(dtype=torch.float64).eval()
    for unit in random_units(5):
        (row,) = unit
        labels = torch.tensor([[t if m else -100 for t, m in zip(row.ids, row.loss_mask, strict=True)]])
        theirs = model(torch.tensor([row.ids]), labels=labels).loss.double()
        ours = -Scorer(model).token_logprobs(build_batch([row])).mean()
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("penalty", sorted(PENALTIES))
def test_dpo_penalties_equal_trl_s_on_the_same_log_probabilities(penalty: str, tmp_path: Path) -> None:
    """TRL computes its losses inside the trainer; the same formulas through its own `DPOTrainer` on one batch."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer

    run = make_run(tmp_path, objective={"type": "dpo", "penalty": penalty, "beta": 0.3}, adapter={"type": "full"})
    noise = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in run.injected.trainable.values():
            parameter.add_(torch.randn(parameter.shape, generator=noise) * 0.05)
    units = random_units(4, rows_per_unit=2, seed=5)
    batch = build_batch([row for unit in units for row in unit])
    ours = run.objective.loss(run.models, batch)

    vocabulary = {f"t{i}": i for i in range(61)} | {"<pad>": 61, "<eos>": 62}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")
    records = []
    for chosen, rejected in units:
        words = [[f"t{i}" for i in row.ids] for row in (chosen, rejected)]
        start = [next(i for i, m in enumerate(row.loss_mask) if m) for row in (chosen, rejected)]
        records.append(
            {
                "prompt": " ".join(words[0][: start[0]]) + " ",
                "chosen": " ".join(words[0][start[0] :]),
                "rejected": " ".join(words[1][start[1] :]),
            }
        )
    settings = DPOConfig(
        output_dir=str(tmp_path / "trl"),
        loss_type=penalty,
        beta=0.3,
        per_device_train_batch_size=4,
        report_to=[],
        use_cpu=True,
        max_length=None,
        bf16=False,
        disable_dropout=True,
        gradient_checkpointing=False,
    )
    policy, reference = run.model, tiny_llama()
    trainer = DPOTrainer(
        model=policy,
        ref_model=reference,
        args=settings,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(records),
    )
    collated = next(iter(trainer.get_train_dataloader()))
    eos = 62
    keep = (collated["input_ids"] != eos).long()
    # TRL ends each reply with an end token, which the tiny model does not know: take it out of the loss
    for key in ("completion_mask", "attention_mask"):
        collated[key] = collated[key] * keep
    collated["input_ids"] = collated["input_ids"].clamp(max=60)
    theirs = trainer.compute_loss(policy.eval(), collated)
    torch.testing.assert_close(ours.total / 4, theirs, atol=2e-6, rtol=0)


def test_sft_trajectory_equals_a_plain_loop(tmp_path: Path) -> None:
    """Ten steps of the engine against ten steps written out with transformers and torch alone."""
    tables: dict[str, Any] = {
        "adapter": {"type": "full"},
        "schedule": {"type": "constant", "warmup_share": 0.0},
        "training": {"steps": 10, "rows_per_step": 4, "max_grad_norm": 1e9, "patience": 1000},
        "optimizer": {"learning_rate": 1e-3},
    }
    run = make_run(tmp_path, **tables)
    ours = [step.metrics["loss"] for step in train(run)]
    model = tiny_llama().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    theirs = []
    for number in range(1, 11):
        rows = [row for unit in run.source.step(number) for row in unit]
        total, count = torch.zeros(()), 0
        for row in rows:
            labels = torch.tensor([[t if m else -100 for t, m in zip(row.ids, row.loss_mask, strict=True)]])
            trained = row.trained_tokens
            total = total + model(torch.tensor([row.ids]), labels=labels).loss * trained
            count += trained
        (total / count).backward()
        optimizer.step()
        optimizer.zero_grad()
        theirs.append(float(total.detach()) / count)
    assert ours == pytest.approx(theirs, abs=2e-5)
