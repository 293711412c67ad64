"""Small real trainings for the tests of the engine: a tiny random Llama on random rows, with any recipe."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel, LlamaConfig, LlamaForCausalLM

from luthier.adapters._head import WithHead
from luthier.adapters.base import Adapter, Injected
from luthier.config import build, canonical_hash
from luthier.data.source import Source, Unit
from luthier.engine.optimizers.base import OptimizerSettings
from luthier.engine.run import Run
from luthier.engine.schedules.base import Schedule
from luthier.examples import Judged, Preference, Row
from luthier.models.encoder import EncoderScorer, without_dropout
from luthier.models.forest import Batch
from luthier.models.heads import head_of
from luthier.models.kernels.buckets import likeliest
from luthier.models.memory import held_bytes
from luthier.models.scorer import Scorer
from luthier.objectives._judged import GOOD
from luthier.objectives._retriever import RetrieverObjective, Sought
from luthier.objectives.base import Lesson, Models, Objective, OnlineObjective, Told
from luthier.recipe import (
    ADAPTERS,
    OBJECTIVES,
    OPTIMIZERS,
    SCHEDULES,
    TrainingSettings,
    build_part,
    dump_part,
)

VOCABULARY = 61
PARTS = {
    "adapter": (ADAPTERS, "lora"),
    "objective": (OBJECTIVES, "sft"),
    "optimizer": (OPTIMIZERS, "adamw"),
    "schedule": (SCHEDULES, "cosine"),
}

NEEDED_VALUES = {
    "reward": {"margin": 0.0},
    "classify": {"label": 2.0},
    "multi_label": {"label 0": 1.0, "label 1": 0.0, "label 2": 1.0},
    "regress": {"number": 1.5},
}
"""What rows of an objective must carry, by its name."""
NEEDED_SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "classify": {"labels": ["a", "b", "c"], "head_rate": 1.0},
    "multi_label": {"labels": ["a", "b", "c"], "head_rate": 1.0},
    "regress": {"mean": 3.0, "std": 2.0, "head_rate": 1.0},
    "token_classify": {"labels": ["a"], "head_rate": 1.0},
}
"""What an objective is told by training rows elsewhere, by its name."""


def judged(row: Row) -> dict[str, tuple[float, ...]]:
    """Every other trained token follows a step, which is right where the token is even."""
    step = [0.0] * len(row.ids)
    for position in range(row.loss_mask.index(1.0), len(row.ids), 2):
        step[position] = 1.0
    return {"step": tuple(step), "label": tuple(float(token % 2 == 0) for token in row.ids)}


def tagged(row: Row) -> dict[str, tuple[float, ...]]:
    """Every word has the tag of its token."""
    return {"tag": tuple(float(token % 3) for token in row.ids)}


NEEDED_TOKEN_VALUES = {"process_reward": judged, "token_classify": tagged}


def tiny_llama(seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                vocab_size=VOCABULARY,
                tie_word_embeddings=True,
            )
        )
    return model.to(dtype)


def tiny_bert(part: str, dtype: torch.dtype = torch.float32) -> Any:
    kind = {"embedder": BertModel, "reranker": BertForSequenceClassification}[part]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(
            BertConfig(
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                vocab_size=VOCABULARY,
                max_position_embeddings=64,
                num_labels=1,
                initializer_range=0.1,
            )
        )
    if part == "embedder":
        model.pooler = None
    without_dropout(model)
    return model.to(dtype)


def random_units(
    count: int,
    rows_per_unit: int = 1,
    seed: int = 0,
    values: Mapping[str, float] | None = None,
    of_tokens: Callable[[Row], Mapping[str, tuple[float, ...]]] | None = None,
) -> list[Unit]:
    """Units whose rows share a 17-token prompt; the rows of a unit also share the rest of their prompt."""
    rng = random.Random(seed)
    system = [rng.randrange(VOCABULARY) for _ in range(17)]
    units: list[Unit] = []
    for index in range(count):
        prompt = system + [rng.randrange(VOCABULARY) for _ in range(rng.randrange(1, 8))]
        rows = []
        for part in range(rows_per_unit):
            reply = [rng.randrange(VOCABULARY) for _ in range(rng.randrange(2, 9))]
            mask = (0.0,) * len(prompt) + (1.0,) * len(reply)
            row = Row(tuple(prompt + reply), mask, f"{index}/{part}", values or {})
            rows.append(row if of_tokens is None else replace(row, token_values=of_tokens(row)))
        units.append(tuple(rows))
    return units


def verdicts(units: list[Unit]) -> list[Unit]:
    """The units with every other one judged to be good."""
    return [tuple(replace(row, values={GOOD: float(n % 2)}) for row in unit) for n, unit in enumerate(units)]


class RandomTexts:
    """Questions and passages of random tokens: the same for the same text or number."""

    def question(self, text: str) -> tuple[int, ...]:
        return self._some(f"question {text}")

    def passage(self, number: int) -> tuple[int, ...]:
        return self._some(f"passage {number}")

    def pair(self, question: str, number: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        first, second = self.question(question), self.passage(number)
        return first + second, (0,) * len(first) + (1,) * len(second)

    def _some(self, text: str) -> tuple[int, ...]:
        rng = random.Random(text)
        return tuple(rng.randrange(VOCABULARY) for _ in range(rng.randrange(4, 20)))


def sought_questions(count: int, first: int = 0) -> list[Sought]:
    """Questions, two of which always share a passage; every third has a second right one, which others bring."""
    found = []
    for number in range(first, first + count):
        positive = number // 2
        right = (positive, positive + 1) if number % 3 == 0 else (positive,)
        wrong = tuple(at for at in range(positive + 1, positive + 6) if at not in right)
        found.append(Sought(f"q{number}", f"{number}", positive, right, wrong, (*wrong, positive)))
    return found


def sampled_units(units: list[Unit], seed: int = 0) -> list[Unit]:
    """The same units as a rollout would leave them: with what each reply earned, and how likely it was."""
    rng = random.Random(seed)

    def sampled(row: Row) -> Row:
        tokens = {name: tuple(rng.uniform(-5, -3) for _ in row.ids) for name in ("old_logprob", "reference_logprob")}
        tokens["sampled_logprob"] = tuple(value + rng.uniform(-0.1, 0.1) for value in tokens["old_logprob"])
        for name in ("advantage", "value", "return"):
            tokens[name] = tuple(rng.gauss(0, 1) for _ in row.ids)
        values = {"advantage": rng.gauss(0, 1), "reward": rng.random(), "limit": 10.0}
        return replace(row, values=values, token_values=tokens)

    return [tuple(sampled(row) for row in unit) for unit in units]


@dataclass(frozen=True)
class AskedTeacher:
    """A teacher of the student's tokenizer, asked each time."""

    scorer: Scorer
    lesson: Lesson

    def told(self, batch: Batch) -> Told:
        with torch.no_grad():
            logits_HV = self.scorer.at(self.lesson.temperature).logits(batch)
        return Told(*likeliest(logits_HV, batch.hidden_K, self.lesson.top_k))

    def at(self, temperature: float) -> "AskedTeacher":
        return AskedTeacher(self.scorer.at(temperature), self.lesson)

    def held_bytes(self) -> int:
        return held_bytes(self.scorer.model)


def teacher_of(objective: Objective, base: Callable[..., Any], dtype: torch.dtype) -> AskedTeacher | None:
    """Another model than the student, where that is a tiny Llama."""
    if (lesson := objective.lesson()) is None:
        return None
    teacher = base(dtype=dtype, **({"seed": 7} if base is tiny_llama else {}))
    return AskedTeacher(Scorer(teacher.eval()), lesson)


def make_run(folder: Path, dtype: torch.dtype = torch.float32, **tables: Any) -> Run:
    """A run at step 0; keyword arguments are tables of the recipe, and `base`, which makes the model."""
    tables.setdefault("training", {"steps": 6, "rows_per_step": 4})
    tables.setdefault("optimizer", {"learning_rate": 1e-2})
    seed = tables.pop("seed", 0)
    base = tables.pop("base", None)
    settings = build(TrainingSettings, tables.pop("training"))
    if (asked := tables.get("objective", {})).get("type") in NEEDED_SETTINGS:
        tables["objective"] = {**NEEDED_SETTINGS[asked["type"]], **asked}
    parts = {key: build_part(package, tables.pop(key, {}), default, [key]) for key, (package, default) in PARTS.items()}
    assert not tables, f"unknown tables {sorted(tables)}"
    adapter, objective, optimizer, schedule = parts.values()
    assert isinstance(adapter, Adapter) and isinstance(objective, Objective)
    assert isinstance(optimizer, OptimizerSettings) and isinstance(schedule, Schedule)
    if base is None:
        base = partial(tiny_bert, objective.trains) if isinstance(objective, RetrieverObjective) else tiny_llama
    model = base(dtype=dtype)
    torch.manual_seed(seed)
    reference = base(dtype=dtype) if objective.uses_reference else None
    injected: Injected = adapter.inject(model, seed)
    if (shape := objective.head()) is not None:
        injected = WithHead(injected, head_of(model, shape, seed))
    if dtype == torch.float64:
        model.double()
        if injected.head is not None:
            injected.head.double()
    is_judged = Judged in objective.accepts
    per_unit = 2 if Preference in objective.accepts and not is_judged else 1
    name = dump_part(objective)["type"]
    needed: dict[str, Any] = {"values": NEEDED_VALUES.get(name), "of_tokens": NEEDED_TOKEN_VALUES.get(name)}
    rate = optimizer.learning_rate or adapter.learning_rate
    trained, validation = random_units(10, per_unit, **needed), random_units(4, per_unit, seed=9, **needed)
    if is_judged:
        trained, validation = verdicts(trained), verdicts(validation)
    if isinstance(objective, RetrieverObjective):
        texts = RandomTexts()
        trained = objective.training(sought_questions(10), texts)
        validation = objective.validating(sought_questions(4, first=90), range(45, 60), texts)
    if isinstance(objective, OnlineObjective):
        trained, validation = sampled_units(random_units(10, 2)), sampled_units(random_units(4, 2, seed=9))
    models = Models(Scorer(model, head=injected.head), Scorer(reference.eval()) if reference is not None else None)
    if isinstance(objective, RetrieverObjective):
        encoder = EncoderScorer(model, 0)
        models = Models(encoder, encoder=encoder)
    models = replace(models, teacher=teacher_of(objective, base, dtype))
    return Run(
        settings=settings,
        steps=settings.steps or 6,
        model=model,
        models=models,
        objective=objective,
        injected=injected,
        optimizer=optimizer.build(injected.trainable, rate, injected.rate_factors()),
        schedule=schedule,
        learning_rate=rate,
        source=Source(trained, settings.rows_per_step, seed),
        validation=validation,
        checkpoints=folder / "checkpoints",
        fingerprint=canonical_hash([seed, *(dump_part(p) for p in parts.values())]),
        device=torch.device("cpu"),
        micro_batch_tokens=settings.micro_batch_tokens if settings.micro_batch_tokens != "auto" else 4096,
    )
