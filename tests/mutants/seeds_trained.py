"""More mutants: of preference learning, adapters, rows in a file, and rewards."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tests.mutants import parts
from tests.mutants.bench import (
    OWN_TEMPLATE,
    Bench,
    Reference,
    dpo_bench,
    earlier_run,
    preferences,
    template,
    tiny_model,
    train_three_steps,
)
from tests.mutants.registry import Mutant, register_in
from tests.mutants.seeds import scored_by

from luthier.adapters.lora import LoRA
from luthier.models.scorer import Scorer
from luthier.objectives.base import Models
from luthier.preflight.base import RowSettings, Subject

MUTANTS: list[Mutant] = []
"""Of this file."""
mutant = partial(register_in, MUTANTS)

# preference learning


@mutant("A33", "trained_tokens")
def replies_of_the_longest_pair_cut_off() -> Subject:
    prompts = [len(template().prompt_ids(pair.prompt)) for pair in preferences()]
    return dpo_bench(settings=RowSettings(max_tokens=max(prompts), max_truncated_share=1.0)).subject()


@mutant("A35", "reference_is_policy", "model")
def reference_with_the_adapter_left_on() -> Subject:
    subject = dpo_bench().with_model()
    policy = subject.need_models().policy
    return replace(subject, models=Models(policy, policy))


@mutant("A35", "reference_is_policy", "model")
def reference_is_another_model() -> Subject:
    subject = dpo_bench().with_model()
    other = tiny_model()
    with torch.no_grad():
        other.model.layers[0].mlp.down_proj.weight.add_(0.05)
    return replace(subject, models=Models(subject.need_models().policy, Scorer(other)))


@mutant("A35", "reference_is_policy", "model")
def reference_forgotten() -> Subject:
    subject = dpo_bench().with_model()
    return replace(subject, models=Models(subject.need_models().policy))


@mutant("A35", "reference_is_policy", "model")
def reference_is_the_base_and_not_the_start() -> Subject:
    subject = dpo_bench(continues=True).with_model()
    policy = subject.need_models().policy
    return replace(subject, models=Models(policy, Reference(policy, subject.need_injected().disabled)))


@mutant("A36", "reference_is_policy", "model")
def dropout_in_the_passes_that_score() -> Subject:
    return dpo_bench().with_model(parts.add_dropout)


@mutant("A36", "reference_is_policy", "model")
def dropout_inside_the_adapter() -> Subject:
    return dpo_bench(adapter=LoRA(rank=4, dropout=0.3)).with_model()


@mutant("A36", "base_loss", "model")
def dropout_never_switched_off() -> Subject:
    return Bench().with_model(lambda model: parts.add_dropout(model, always=True))


# adapters


@mutant("own", "adapter_start", "model")
def start_not_taken_over() -> Subject:
    return replace(Bench().with_model(), start=Path(earlier_run().name))


@mutant("own", "adapter_start", "model")
def start_scaled_otherwise() -> Subject:
    return Bench(adapter=LoRA(rank=4, alpha=8.0), continues=True).with_model()


@mutant("A43", "adapter_targets", "model")
def requested_target_matches_nothing() -> Subject:
    return replace(Bench(adapter=LoRA(rank=4, targets=("q_proj",))).with_model(), targets=("q_proj", "experts"))


@mutant("A43", "adapter_targets", "model")
def nothing_attached_at_all() -> Subject:
    subject = Bench().with_model()
    return replace(subject, injected=parts.Handle(subject.need_injected(), {}))


@mutant("A44", "adapter_alive", "model")
def adapter_listed_but_inert() -> Subject:
    subject = Bench().with_model()
    for module in subject.need_model().model.modules():
        if module.__class__.__name__ == "LoRALinear":
            module.enabled = False  # type: ignore[assignment]
    return subject


@mutant("A44", "adapter_alive", "model")
def one_layer_inert() -> Subject:
    subject = Bench().with_model()
    layers: Any = subject.need_model().model
    layers.model.layers[1].mlp.down_proj.enabled = False
    return subject


@mutant("A45", "adapter_alive", "model")
def gradient_stops_at_the_second_layer() -> Subject:
    return scored_by(parts.LastLayerScorer)


@mutant("A46", "adapter_targets", "model")
def handle_lists_copies_of_the_tensors() -> Subject:
    subject = Bench().with_model()
    copies = {n: torch.nn.Parameter(p.detach().clone()) for n, p in subject.need_injected().trainable.items()}
    return replace(subject, injected=parts.Handle(subject.need_injected(), copies))


@mutant("A46", "tensors_moved", "steps")
def optimizer_holds_stale_tensors() -> Subject:
    subject = Bench().with_model()
    stale = [torch.nn.Parameter(p.detach().clone()) for p in subject.need_injected().trainable.values()]
    return train_three_steps(subject, stale)


@mutant("A12", "tensors_moved", "steps")
def one_tensor_forgotten_by_the_optimizer() -> Subject:
    subject = Bench().with_model()
    return train_three_steps(subject, list(subject.need_injected().trainable.values())[:-1])


@mutant("gate 11", "tensors_moved", "steps")
def a_frozen_tensor_moves() -> Subject:
    subject = train_three_steps(Bench().with_model())
    model: Any = subject.need_model().model
    with torch.no_grad():
        model.model.norm.weight[3] += 1e-6
    return subject


@mutant("gate 10", "base_loss", "model")
def fresh_adapter_changes_the_model() -> Subject:
    subject = Bench().with_model()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in subject.need_injected().trainable.items():
            if name.endswith("lora_B"):
                p.copy_(0.05 * torch.randn(p.shape, generator=generator))
    return subject


@mutant("A55", "adapter_targets", "model")
def trained_tensors_in_bfloat16() -> Subject:
    subject = Bench().with_model()
    for p in subject.need_injected().trainable.values():
        p.data = p.data.bfloat16()
    return subject


@mutant("gate 11", "adapter_targets", "model")
def base_left_unfrozen() -> Subject:
    subject = Bench().with_model()
    subject.need_model().model.requires_grad_(True)
    return subject


@mutant("A55", "tensors_moved", "steps")
def updates_rounded_away() -> Subject:
    subject = Bench().with_model()
    for p in subject.need_injected().trainable.values():
        p.data = p.data.bfloat16()
    return train_three_steps(subject, learning_rate=1e-6)


# data


@mutant("own", "rendered")
def a_row_that_the_template_refuses() -> Subject:
    source = OWN_TEMPLATE.replace("{% for", "{% if tools %}{{ raise_exception('no tools here') }}{% endif %}{% for", 1)
    return Bench(source=source).subject()


class SampledReplies:
    """What a training that samples replies tells of them."""

    def __init__(self, own: float, empty: float, dead: float) -> None:
        self.own, self.empty, self.dead = own, empty, dead

    def reference_rewards(self, count: int) -> list[tuple[str, float, float, str]]:
        return [(f"row-{i}", self.own, self.empty, "") for i in range(min(count, 8))]

    def first(self) -> dict[str, float]:
        return {"reward": 0.0, "truncated": 0.0, "dead": self.dead}


@mutant("own", "reference_rewards", "model")
def rewards_that_no_row_s_reply_earns() -> Subject:
    return replace(Bench().with_model(), sampled=SampledReplies(0.0, 0.0, 0.5))


@mutant("own", "reference_rewards", "model")
def rewards_that_like_silence() -> Subject:
    return replace(Bench().with_model(), sampled=SampledReplies(0.2, 1.0, 0.5))


@mutant("A40", "first_rollout", "model")
def first_replies_all_worth_the_same() -> Subject:
    return replace(Bench().with_model(), sampled=SampledReplies(1.0, 0.0, 1.0))
