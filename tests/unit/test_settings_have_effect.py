"""Every setting that training reads has an effect: another value gives other weights or another plan.

The settings are found by listing the registries, so a new one without a line in `CHANGES`, or without effect, fails.
"""

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine_runs import AskedTeacher

from luthier import assemble, registry
from luthier.config import Settings, Tree, build
from luthier.data.source import micro_batches
from luthier.engine.loop import train
from luthier.examples import Conversation, Example, Message, Preference
from luthier.models.load import LoadedModel
from luthier.models.new_tokens import with_new_tokens
from luthier.models.scorer import Scorer
from luthier.objectives._retriever import RetrieverObjective
from luthier.online import Asked
from luthier.recipe import PARTS, Recipe, RolloutSettings, TrainingSettings
from luthier.settling import settled

pytestmark = pytest.mark.slow  # each setting trains

TRAINING: Tree = {"steps": 6, "rows_per_step": 4, "validate_every": 2, "patience": False, "keep": 1}
STORMY: Tree = {"optimizer": {"type": "adamw", "learning_rate": 1.0}}  # validation gets worse
EVERY_STEP: Tree = {"training": {"save_every": 1}}

HEADS = ("classify", "multi_label", "regress", "token_classify")
ONLINE = ("grpo", "rloo", "reinforce_plus_plus", "ppo")
NEAR: Tree = {
    "type": "text_similarity",
    "input": "{{sample.output_text}}",
    "reference": "{{item.reference_answer}}",
    "evaluation_metric": "fuzzy_match",
}
ODD: Tree = {**NEAR, "type": "string_check", "operation": "like", "reference": "a"}
del ODD["evaluation_metric"]
ROLLOUT: Tree = {"group_size": 3, "max_new_tokens": 6, "updates": 2, "rewards": {"near": {"grader": NEAR}}}
TALKING: Tree = {"group_size": 2, "max_new_tokens": 6}
ENDING: Tree = {"rollout": {"max_new_tokens": 64}}  # some of these replies end
TAUGHT = ("distill", "gkd")
ELSEWHERE = ("max_turns", "models", "vllm")
PULLED: Tree = {"objective": {"beta": 0.5}}

# setting -> its other value, and what both runs share beside the defaults
CHANGES: Mapping[str, tuple[Any, Tree]] = {
    "training.steps": (5, {}),
    "training.epochs": (2.0, {"training": {"steps": None, "epochs": 1.0}}),
    "training.rows_per_step": (3, {}),
    "training.max_tokens": (28, {}),
    "training.micro_batch_tokens": (16, {}),
    "training.max_grad_norm": (1e-3, {}),
    "training.validate_every": (3, {}),
    "training.patience": (1, STORMY),
    "training.save_every": (1, {}),
    "training.keep": (4, EVERY_STEP),
    "training.gradient_checkpointing": (True, {}),
    "adapter.lora.rank": (4, {}),
    "adapter.lora.alpha": (8.0, {}),
    "adapter.lora.dropout": (0.3, {}),
    "adapter.lora.targets": (("q_proj",), {}),
    "adapter.lora.layers": ((1,), {}),
    "adapter.lora.ranks": ({"q_proj": 4}, {}),
    "adapter.lora.alphas": ({"q_proj": 4.0}, {}),
    "adapter.lora.scaling": ("sqrt_rank", {}),
    "adapter.lora.init": ("gaussian", {}),
    "adapter.lora.loraplus_ratio": (16.0, {}),
    "adapter.lora.new_tokens": (("<tool>",), {}),
    "adapter.dora.rank": (4, {}),
    "adapter.dora.alpha": (8.0, {}),
    "adapter.dora.targets": (("q_proj",), {}),
    "adapter.dora.layers": ((1,), {}),
    "adapter.dora.ranks": ({"q_proj": 4}, {}),
    "adapter.dora.alphas": ({"q_proj": 4.0}, {}),
    "adapter.dora.scaling": ("sqrt_rank", {}),
    "adapter.dora.init": ("gaussian", {}),
    "adapter.dora.loraplus_ratio": (16.0, {}),
    "adapter.dora.new_tokens": (("<tool>",), {}),
    "adapter.vera.rank": (4, {}),
    "adapter.vera.d_initial": (0.5, {}),
    "adapter.vera.targets": (("q_proj",), {}),
    "adapter.vera.layers": ((1,), {}),
    "adapter.oft.block_size": (8, {}),
    "adapter.oft.series": (True, {}),
    "adapter.oft.targets": (("q_proj",), {}),
    "adapter.oft.layers": ((1,), {}),
    "adapter.ia3.targets": (("q_proj",), {}),
    "adapter.ia3.input_targets": (("o_proj",), {}),
    "adapter.ia3.layers": ((1,), {}),
    "adapter.bitfit.targets": (("q_proj",), {}),
    "adapter.bitfit.layers": ((1,), {}),
    "adapter.bottleneck.size": (4, {}),
    "adapter.bottleneck.placement": ("houlsby", {}),
    "adapter.bottleneck.activation": ("silu", {}),
    "adapter.bottleneck.attention_output": ("v_proj", {"adapter": {"placement": "houlsby"}}),
    "adapter.bottleneck.feedforward_output": ("o_proj", {}),
    "adapter.bottleneck.layers": ((1,), {}),
    "adapter.layer_freeze.layers": ((0,), {}),
    "adapter.layer_freeze.norms": (True, {"adapter": {"layers": (0,)}}),
    "adapter.layer_freeze.embeddings": (True, {}),
    "adapter.prompt.tokens": (4, {}),
    "adapter.prompt.text": ("Answer with a number.", {}),
    "adapter.prefix.tokens": (4, {}),
    "adapter.prefix.text": ("Answer with a number.", {}),
    "adapter.prefix.reparametrize": (True, {}),
    "adapter.prefix.width": (8, {"adapter": {"reparametrize": True}}),
    "adapter.p_tuning.tokens": (4, {}),
    "adapter.p_tuning.network": ("lstm", {}),
    "adapter.p_tuning.width": (8, {}),
    "adapter.peft.method": ("loha", {}),
    "adapter.peft.settings": ({"r": 4}, {}),
    "objective.dpo.beta": (0.5, {}),
    "objective.dpo.penalty": ("hinge", {}),
    "objective.dpo.weights": ((1.0, 0.1), {"objective": {"penalty": ("sigmoid", "sft")}}),
    "objective.dpo.label_smoothing": (0.3, {}),
    "objective.dpo.ld_alpha": (0.0, {}),
    "objective.dpo.f_divergence": ("forward_kl", {}),
    "objective.dpo.f_alpha": (3.0, {"objective": {"f_divergence": "alpha_divergence", "beta": 1e-4}}),
    "objective.dpo.tau": (1.0, {"objective": {"penalty": "discopop"}}),
    "objective.dpo.reference_free": (True, {}),
    "objective.orpo.odds_weight": (2.0, {}),
    "objective.cpo.beta": (0.5, {}),
    "objective.cpo.penalty": ("hinge", {}),
    "objective.cpo.sft_weight": (0.1, {}),
    "objective.cpo.label_smoothing": (0.3, {}),
    "objective.simpo.beta": (5.0, {}),
    "objective.simpo.gamma": (0.0, {}),
    "objective.simpo.alpha": (0.3, {}),
    "objective.simpo.sft_weight": (1.0, {}),
    "objective.simpo.label_smoothing": (0.3, {}),
    "objective.kto.beta": (0.5, {}),
    "objective.kto.penalty": ("apo_zero", {"objective": {"undesirable_weight": 1e-3}}),
    "objective.kto.desirable_weight": (3.0, {}),
    "objective.kto.undesirable_weight": (3.0, {}),
    "objective.bco.beta": (0.5, {}),
    "objective.bco.desirable_weight": (3.0, {}),
    "objective.bco.undesirable_weight": (3.0, {}),
    "objective.reward.centering": (1.0, {}),
    "objective.reward.head_start": ("zeros", {}),
    "objective.process_reward.head_start": ("zeros", {}),
    **{f"objective.{name}.head_start": ("normal", {}) for name in HEADS},
    **{f"objective.{name}.head_rate": (1.0, {}) for name in HEADS},
    **{f"objective.{name}.input": ("text", {}) for name in HEADS if name != "token_classify"},
    **{f"objective.{name}.labels": (("maybe", "no", "number", "yes"), {}) for name in HEADS if name != "regress"},
    "objective.classify.class_weights": ("balanced", {}),
    "objective.classify.counts": ((1, 20), {"objective": {"class_weights": "balanced", "labels": ("no", "yes")}}),
    "objective.classify.label_smoothing": (0.3, {}),
    "objective.multi_label.positive_weights": ("balanced", {}),
    "objective.multi_label.weights": ((9.0, 1.0), {"objective": {"labels": ("no", "yes")}}),
    "objective.regress.distance": ("squared", {}),
    "objective.regress.delta": (0.1, {}),
    "objective.regress.mean": (1000.0, {}),
    "objective.regress.std": (1.0, {}),
    "objective.sft_kl.kl_weight": (3.0, {}),
    "objective.distill.temperature": (2.0, {}),
    "objective.distill.cross_entropy": (0.5, {}),
    **{f"objective.{name}.divergence": ("reverse_kl", {}) for name in TAUGHT},
    **{f"objective.{name}.beta": (0.1, {"objective": {"divergence": "js"}}) for name in TAUGHT},
    **{f"objective.{name}.skew": (0.5, {"objective": {"divergence": "skew_kl"}}) for name in TAUGHT},
    **{f"objective.{name}.top_k": (2, {}) for name in TAUGHT},
    **{f"objective.{name}.sampler_cap": (0.5, {}) for name in ONLINE},
    **{f"objective.{name}.beta": (0.5, {}) for name in ONLINE},
    **{f"objective.{name}.epsilon": (0.0, {}) for name in ONLINE},
    "objective.grpo.loss_type": ("dr_grpo", {}),
    "objective.grpo.epsilon_high": (0.0, {}),
    "objective.grpo.scale_rewards": ("none", {}),
    "objective.grpo.kl_estimator": ("k1", PULLED),
    "objective.rloo.normalize_advantages": (True, {}),
    "objective.reinforce_plus_plus.baseline": (True, {}),
    "objective.ppo.kl_target": (0.1, PULLED),
    "objective.ppo.kl_horizon": (10.0, {"objective": {"beta": 0.5, "kl_target": 0.1}}),
    "objective.ppo.value_clip": (1e-4, {}),
    "objective.ppo.value_weight": (2.0, {}),
    "objective.ppo.gamma": (0.5, {}),
    "objective.ppo.lam": (0.5, {}),
    "objective.ppo.whiten_rewards": (True, {}),
    "objective.ppo.whiten_advantages": (False, {}),
    "objective.ppo.missing_end_penalty": (1.0, {}),
    "rollout.rewards": ({"long": {"grader": NEAR, "weight": 3.0}}, {}),
    "rollout.environment": ({"type": "calculator"}, {}),
    "rollout.group_size": (4, {}),
    "rollout.max_new_tokens": (5, {}),
    "rollout.temperature": (0.5, {}),
    "rollout.updates": (1, {}),
    "rollout.minibatches": (2, {}),
    "rollout.resample": (2, {"rollout": {"rewards": {"odd": {"grader": ODD}}}}),
    "rollout.mask_truncated": (True, ENDING),
    "rollout.overlong_tokens": (20, ENDING),
    "rollout.validation_prompts": (1, {}),
    "optimizer.adamw.learning_rate": (1e-3, {}),
    "optimizer.adamw.weight_decay": (0.5, {}),
    "optimizer.adamw.beta1": (0.5, {}),
    "optimizer.adamw.beta2": (0.5, {}),
    "optimizer.adamw.epsilon": (1e-2, {}),
    "optimizer.adamw.pull_to_start": (10.0, {}),
    "schedule.constant.warmup_share": (0.5, {}),
    "schedule.cosine.warmup_share": (0.5, {}),
    "schedule.cosine.floor": (0.5, {}),
    "schedule.linear.warmup_share": (0.5, {}),
    "schedule.linear.floor": (0.5, {}),
    "schedule.wsd.warmup_share": (0.5, {}),
    "schedule.wsd.decay_share": (1.0, {}),
}


def known() -> list[str]:
    """Every setting of training and of all parts, `part.type.field`, but `start_from` (test_starts.py), `max_turns`
    (test_environments.py), `models` (test_asked_models.py, test_model_judge.py), `vllm` (test_vllm_sampler.py) and
    `system`, which is for texts that are served (test_run_classes.py)."""
    names = [f"training.{field}" for field in TrainingSettings.model_fields]
    names += [f"rollout.{field}" for field in RolloutSettings.model_fields if field not in ELSEWHERE]
    for part, (package, _) in PARTS.items():
        for kind in registry.names(package):
            cls = registry.load_class(package, kind, Settings)
            if issubclass(cls, RetrieverObjective):  # test_retriever_parts.py
                continue
            fields = cls.model_fields
            names += [f"{part}.{kind}.{field}" for field in fields if field not in ("start_from", "system")]
    return names


def examples(objective: str) -> list[Example]:
    rows: list[Example] = []
    for number in range(12):
        prompt = (Message("user", f"What is {number}?"),)
        good, bad = ((Message("assistant", f"{word} {number * 7}, a number."),) for word in ("It is", "By no means"))
        if objective in ("sft", "sft_kl", *ONLINE, *TAUGHT):
            rows.append(Conversation(prompt + good))
        elif objective in HEADS:
            spans = [{"start": 8, "end": 8 + len(str(number)), "label": "number"}]
            label = "yes" if number % 3 else "no"
            wanted = {"classify": label, "multi_label": [label, "no"], "regress": number * 7, "token_classify": spans}
            rows.append(Conversation(prompt, target=wanted[objective]))
        elif objective == "process_reward":
            judged = {"steps": [good[0].content], "labels": [number % 2]}
            rows.append(Conversation(prompt + good, target=judged))
        else:
            rows.append(Preference(prompt, good, bad))
    return rows


def other_model(loaded: LoadedModel) -> torch.nn.Module:
    """A teacher: the model with its weights moved."""
    teacher, generator = copy.deepcopy(loaded.model), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return teacher.eval()


def outcome(tables: Tree, loaded: LoadedModel, folder: Path) -> Mapping[str, Any]:
    """What a run does and ends with."""
    recipe = build(Recipe, tables)
    loaded = with_new_tokens(loaded, assemble.adapter_of(recipe).added_tokens)
    template = assemble.template_for(recipe, loaded, assemble.longest_row(recipe, loaded))
    rows = examples(tables["objective"]["type"])
    recipe = settled(recipe, rows)
    units = list(assemble.units_of(recipe, rows, template))
    parts = {"train": units, "validation": units[:3]}
    lesson, teacher = assemble.objective_of(recipe).lesson(), other_model(loaded)
    trainable = replace(assemble.make_trainable(recipe, loaded), asked=Asked(template, rows, rows[:3]))
    if lesson is not None:
        told = AskedTeacher(Scorer(teacher), lesson)
        trainable = replace(trainable, models=replace(trainable.models, teacher=told))
    run = assemble.build_run(recipe, loaded, trainable, parts, "", folder)
    first = run.source.step(1)
    steps = [(step.number, step.metrics) for step in train(run)]
    return {
        "weights": {name: p.detach().clone().tolist() for name, p in run.injected.trainable.items()},
        "steps": [number for number, _ in steps],
        "validated": [number for number, metrics in steps if "validation_loss" in metrics],
        "saved": sorted(path.name for path in run.checkpoints.iterdir()),
        "micro_batches": len(list(micro_batches(first, run.micro_batch_tokens))),
        "kl": [metrics.get("kl") for _, metrics in steps],
        "rollouts": {path.name: path.read_text(encoding="utf-8") for path in (folder / "rollouts").glob("*")},
        "recomputes": loaded.model.is_gradient_checkpointing,
    }


@pytest.fixture(scope="module")
def outcome_of(
    make_tiny: Callable[[], LoadedModel], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Tree], Mapping[str, Any]]:
    """As `outcome`, of a fresh model; each once, for many settings differ from the same run."""
    kept: dict[str, Mapping[str, Any]] = {}

    def of(tables: Tree) -> Mapping[str, Any]:
        key = json.dumps(tables, sort_keys=True)
        if key not in kept:
            kept[key] = outcome(tables, make_tiny(), tmp_path_factory.mktemp("run"))
        return kept[key]

    return of


@pytest.mark.parametrize("name", known())
def test_another_value_gives_another_result(
    name: str, outcome_of: Callable[[Tree], Mapping[str, Any]], tiny_model_folder: Path
) -> None:
    assert name in CHANGES, f"{name} is new: add a value to CHANGES that makes a difference"
    value, shared = CHANGES[name]
    part, *kind, field = name.split(".")
    base: Tree = {
        "model": {"name": str(tiny_model_folder)},
        "data": {"train": "rows.jsonl"},
        "training": {**TRAINING, **shared.get("training", {})},
        "optimizer": shared.get("optimizer", {"type": "adamw", "learning_rate": 1e-2}),
        "objective": {"type": "sft"},
    }
    if part == "rollout" or (kind and kind[0] in ONLINE):
        base |= {"objective": {"type": "grpo"}, "rollout": {**ROLLOUT, **shared.get("rollout", {})}}
    if kind and kind[0] in TAUGHT:
        base |= {"teacher": {"model": "another"}, **({"rollout": TALKING} if kind[0] == "gkd" else {})}
    if kind:
        base[part] = {**base.get(part, {}), **shared.get(part, {}), "type": kind[0]}
    assert outcome_of(base) != outcome_of({**base, part: {**base[part], field: value}})


def test_equal_settings_give_an_equal_result(make_tiny: Callable[[], LoadedModel], tmp_path: Path) -> None:
    """Without this, any noise would pass for an effect."""
    loaded = [make_tiny(), make_tiny()]
    tables: Tree = {
        "model": {"name": str(loaded[0].files.folder)},
        "data": {"train": "rows.jsonl"},
        "training": TRAINING,
        "objective": {"type": "sft"},
    }
    first, second = (outcome(tables, model, tmp_path / str(i)) for i, model in enumerate(loaded))
    assert first == second
