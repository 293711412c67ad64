"""Our LoRA against `peft`, our losses and trajectories against `transformers` and `trl`."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine_runs import make_run, random_units, tiny_llama

from luthier.adapters._layers import HARMLESS
from luthier.adapters._low_rank_files import UNDERSTOOD
from luthier.adapters.lora import LoRA
from luthier.engine.loop import train
from luthier.errors import ModelError
from luthier.models.forest import build_batch
from luthier.models.scorer import Scorer

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


def tensors_moved(theirs: Any, marks: tuple[str, ...], size: float = 0.05) -> None:
    noise = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if any(mark in name for mark in marks):
                parameter.add_(torch.randn(parameter.shape, generator=noise) * size)


def with_peft_twin() -> dict[str, tuple[Any, Any, tuple[str, ...]]]:
    """Name -> our adapter, peft's settings of the same, and what peft's trained tensors are called."""
    import peft

    from luthier.adapters.dora import DoRA
    from luthier.adapters.ia3 import IA3
    from luthier.adapters.oft import OFT
    from luthier.adapters.p_tuning import PTuning
    from luthier.adapters.prefix import Prefix
    from luthier.adapters.prompt import Prompt
    from luthier.adapters.vera import VeRA

    task, every = {"task_type": "CAUSAL_LM"}, {"target_modules": "all-linear"}
    inner = {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]}
    rank = {"r": 4, "lora_alpha": 6}
    patterns = {"rank_pattern": {"down_proj": 3}, "alpha_pattern": {"q_proj": 5}}
    return {
        "rslora": (LoRA(), peft.LoraConfig(**task, **every, **rank, use_rslora=True), ("lora_",)),
        "patterns": (LoRA(), peft.LoraConfig(**task, **every, **rank, **patterns), ("lora_",)),
        "layers": (
            LoRA(),
            peft.LoraConfig(**task, **rank, target_modules=["o_proj", "down_proj"], layers_to_transform=[1]),
            ("lora_",),
        ),
        "new_tokens": (
            LoRA(),
            peft.LoraConfig(**task, **every, **rank, trainable_token_indices=[57, 3]),
            ("lora_", "trainable_tokens_delta"),
        ),
        "dora": (DoRA(), peft.LoraConfig(**task, **every, **rank, use_dora=True), ("lora_",)),
        "ia3": (IA3(), peft.IA3Config(**task, **inner), ("ia3_",)),
        "vera": (VeRA(), peft.VeraConfig(**task, **every, r=8), ("vera_lambda",)),
        "oft": (OFT(), peft.OFTConfig(**task, **every, oft_block_size=8, use_cayley_neumann=False), ("oft_R",)),
        "oft_series": (
            OFT(),
            peft.OFTConfig(**task, oft_block_size=16, target_modules=["v_proj", "down_proj"], layers_to_transform=[1]),
            ("oft_R",),
        ),
        "prompt": (Prompt(), peft.PromptTuningConfig(**task, num_virtual_tokens=5), ("prompt_encoder",)),
        "p_tuning": (PTuning(), peft.PromptEncoderConfig(**task, num_virtual_tokens=5), ("prompt_encoder",)),
        "prefix": (Prefix(), peft.PrefixTuningConfig(**task, num_virtual_tokens=5), ("prompt_encoder",)),
    }


TWINS = (
    "rslora",
    "patterns",
    "layers",
    "new_tokens",
    "dora",
    "ia3",
    "vera",
    "oft",
    "oft_series",
    "prompt",
    "p_tuning",
    "prefix",
)


def ours_of(model: Any, injected: Any) -> torch.Tensor:
    """Logits of `IDS` behind the virtual tokens, if there are some."""
    from luthier.models.virtual import virtual_ids

    before = torch.tensor(virtual_ids(model), dtype=torch.long).expand(len(IDS), -1)
    logits: torch.Tensor = model(torch.cat([before, IDS], 1)).logits[:, before.shape[1] :]
    return logits


@pytest.mark.parametrize("name", TWINS)
def test_adapters_travel_to_peft_and_back_with_equal_logits(name: str, tmp_path: Path) -> None:
    """peft trains one and we read it; we move it and peft reads ours."""
    from peft import PeftModel, get_peft_model

    ours, settings, marks = with_peft_twin()[name]
    theirs = get_peft_model(tiny_llama(), settings)
    tensors_moved(theirs, marks)
    theirs.eval().save_pretrained(str(tmp_path / "theirs"))
    model = tiny_llama()
    injected = ours.restore(model, tmp_path / "theirs")
    with torch.no_grad():
        plain = tiny_llama()(IDS).logits
        wanted = theirs(IDS).logits[:, -IDS.shape[1] :]
        torch.testing.assert_close(ours_of(model, injected), wanted, atol=2e-6, rtol=0)
        assert not torch.allclose(wanted, plain, atol=1e-3)
        for parameter in injected.trainable.values():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) * 0.03)
        injected.save(tmp_path / "ours", "tiny")
        back = PeftModel.from_pretrained(tiny_llama(), str(tmp_path / "ours")).eval()
        found = back(IDS).logits[:, -IDS.shape[1] :]
        torch.testing.assert_close(found, ours_of(model, injected), atol=2e-6, rtol=0)
        assert not torch.allclose(found, wanted, atol=1e-3)


def test_rows_of_new_tokens_of_two_tables_travel_to_peft_and_back(tmp_path: Path) -> None:
    """Embedding and head are two matrices here: peft holds a tensor for each, by name."""
    import copy

    from peft import LoraConfig, PeftModel, get_peft_model

    def untied() -> Any:
        model = tiny_llama()
        config = copy.deepcopy(model.config)
        config.tie_word_embeddings = False
        made = type(model)(config)
        made.load_state_dict({**model.state_dict(), "lm_head.weight": model.get_input_embeddings().weight.flip(0)})
        return made

    tokens = {"embed_tokens": [57, 3], "lm_head": [57, 3]}
    settings = LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=tokens, task_type="CAUSAL_LM")
    theirs = get_peft_model(untied(), settings)
    tensors_moved(theirs, ("lora_", "trainable_tokens_delta"))
    theirs.eval().save_pretrained(str(tmp_path / "theirs"))
    model = untied()
    injected = LoRA().restore(model, tmp_path / "theirs")
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, theirs(IDS).logits, atol=2e-6, rtol=0)
        assert not torch.allclose(model(IDS).logits, untied()(IDS).logits, atol=1e-2)
        for parameter in injected.trainable.values():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) * 0.03)
        injected.save(tmp_path / "ours", "tiny")
        back = PeftModel.from_pretrained(untied(), str(tmp_path / "ours")).eval()
        torch.testing.assert_close(back(IDS).logits, model(IDS).logits, atol=2e-6, rtol=0)
    path = tmp_path / "ours" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "trainable_token_indices": [57, 3]}))
    with pytest.raises(ModelError, match="rows of embedding and head are trained together"):
        LoRA().restore(untied(), tmp_path / "ours")


@pytest.mark.parametrize(("way", "theirs"), [("linear", "cat"), ("svd", "svd"), ("ties", "ties_svd")])
def test_merged_adapters_are_peft_s(way: str, theirs: str, tmp_path: Path) -> None:
    """Two trained adapters, weighted: by what they add to a weight, as peft's `cat`, `svd` and `ties_svd` count."""
    from peft import PeftModel

    from luthier.merge import Source, merged_layers
    from luthier.merging.base import Merge
    from luthier.merging.linear import Linear
    from luthier.merging.svd import Svd
    from luthier.merging.ties import Ties

    # peft elects signs before it weights, we after: the larger say of a heavier adapter counts in the election
    weights, layers = (0.6, 0.6) if way == "ties" else (0.7, 0.4), []
    for number in range(2):
        injected = LoRA(rank=4, alpha=6, targets=("q_proj", "up_proj")).inject(tiny_llama(), seed=number)
        noise = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for parameter in injected.trainable.values():
                parameter.copy_(torch.randn(parameter.shape, generator=noise) * 0.1)
        injected.save(tmp_path / str(number), "tiny")
        layers.append({n: (x.a.detach(), x.b.detach() * x.scale) for n, x in injected.layers.items()})
    sources = [Source(tmp_path, {}, found, weight) for found, weight in zip(layers, weights, strict=True)]
    methods: dict[str, Merge] = {"linear": Linear(), "svd": Svd(), "ties": Ties(density=0.5)}
    ours = merged_layers(sources, methods[way], 32 if way == "ties" else None, 0)
    model = PeftModel.from_pretrained(tiny_llama(), str(tmp_path / "0"), adapter_name="a")
    model.load_adapter(str(tmp_path / "1"), adapter_name="b")
    options = {"density": 0.5, "svd_rank": 32} if way == "ties" else {}
    model.add_weighted_adapter(["a", "b"], list(weights), "merged", combination_type=theirs, **options)
    for name, ((a, b), _) in ours.items():
        other = model.base_model.model.get_submodule(name)
        torch.testing.assert_close((b @ a), other.get_delta_weight("merged"), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("start", "peft_s"), [("pissa", "pissa"), ("olora", "olora")])
def test_starts_that_peft_takes_out_of_the_base_train_as_ours_do(start: str, peft_s: str) -> None:
    """Three steps of plain descent from the same A and B; peft changes the base, ours keeps the start beside it."""
    from peft import LoraConfig, get_peft_model

    ours, theirs = tiny_llama(), tiny_llama()
    injected = LoRA(rank=4, alpha=6, init=start).inject(ours, seed=0)  # type: ignore[arg-type]
    config = LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", init_lora_weights=peft_s, task_type="CAUSAL_LM")
    wrapped = get_peft_model(theirs, config)
    pairs = {n.replace(".default.weight", ""): p for n, p in wrapped.named_parameters() if "lora_" in n}
    matched = [(p, pairs[f"base_model.model.{name}"]) for name, p in injected.trainable.items()]
    assert all(mine.shape == other.shape for mine, other in matched)
    for _ in range(3):
        losses = [model(IDS, labels=IDS).loss for model in (ours, wrapped)]
        torch.testing.assert_close(*losses, atol=1e-5, rtol=0)
        for loss, tensors in zip(losses, zip(*matched, strict=True), strict=True):
            gradients = torch.autograd.grad(loss, tensors)
            with torch.no_grad():
                for parameter, gradient in zip(tensors, gradients, strict=True):
                    parameter.sub_(2.0 * gradient)
    assert float(losses[0].detach()) < float(tiny_llama()(IDS, labels=IDS).loss) - 0.01


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
        {"use_dora": True},
        {"lora_bias": True},
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
    for field in [*plain.keys() - HARMLESS - UNDERSTOOD.keys() - {"use_dora"}, "invented_tomorrow"]:
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


@pytest.mark.parametrize("penalty", ["sigmoid", "hinge", "ipo", "apo_zero", "apo_down", "discopop", "sigmoid_norm"])
def test_dpo_penalties_equal_trl_s_on_the_same_log_probabilities(penalty: str, tmp_path: Path) -> None:
    """Through TRL's whole `DPOTrainer`, its rows and masks too; test_preferences_against_trl.py has all penalties."""
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
