"""A recipe says what a run is: model, data, adapter, objective, optimizer, training, evaluation, cost.

It is a short TOML file. Parts with a `type` (adapter, objective, optimizer, schedule, each evaluated system) take
their settings from the file of that name in the part's directory; nothing else needs to know them.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    BeforeValidator,
    Field,
    PositiveInt,
    SerializeAsAny,
    field_serializer,
    field_validator,
)

from luthier import registry
from luthier.config import Settings, Tree, build, canonical_hash, did_you_mean, nested, override, read_toml
from luthier.errors import RecipeError

ADAPTERS = "luthier.adapters"
OBJECTIVES = "luthier.objectives"
OPTIMIZERS = "luthier.engine.optimizers"
SCHEDULES = "luthier.engine.schedules"
SYSTEMS = "luthier.evaluation.systems"
METRICS = "luthier.evaluation.metrics"
QUANTIZERS = "luthier.models.quantize"

PARTS: Mapping[str, tuple[str, str]] = {
    "adapter": (ADAPTERS, "lora"),
    "objective": (OBJECTIVES, "sft"),
    "optimizer": (OPTIMIZERS, "adamw"),
    "schedule": (SCHEDULES, "cosine"),
}
"""Keys of a recipe whose settings come from a registry: its package, and the `type` when none is given."""

DEFAULT_SYSTEMS = ("zero_shot", "few_shot", "fine_tuned")
"""What is compared when a recipe names no system."""


def build_part(package: str, values: Any, default: str, at: Sequence[str]) -> Settings:
    """Settings of the part that `values["type"]` names in `package`.

    Raises:
        RecipeError: `values` is not a table, the type is unknown, or a setting of it is wrong.
    """
    if isinstance(values, Settings):
        return values
    cls = _part_class(package, values, default, at)
    return build(cls, {k: v for k, v in values.items() if k != "type"}, at)


def _part_class(package: str, values: Any, default: str, at: Sequence[str]) -> type[Settings]:
    """The settings class of the part that `values["type"]` names; raises as `build_part`."""
    if not isinstance(values, Mapping):
        raise RecipeError(f"{'.'.join(at)} = {values!r}: expected a table such as {{ type = {default!r} }}")
    kind = values.get("type", default)
    if not isinstance(kind, str):
        raise RecipeError(f"{'.'.join(at)}.type = {kind!r}: expected a name, one of {registry.names(package)}")
    return registry.load_class(package, kind, Settings)


def dump_part(part: Settings) -> Tree:
    """The plain values of a part, its `type` first."""
    return {"type": registry.name_of(part), **part.model_dump(mode="json")}


def _part(key: str) -> BeforeValidator:
    package, default = PARTS[key]

    def made(values: Any) -> Settings:
        with nested():
            return build_part(package, values, default, [key])

    return BeforeValidator(made)


def _systems(tables: Any) -> dict[str, Settings]:
    """The settings of every system that is compared, by name."""
    with nested():
        tables = tables or {name: {} for name in DEFAULT_SYSTEMS}
        if not isinstance(tables, Mapping):
            raise RecipeError(
                f"evaluation.systems = {tables!r}: expected tables such as [evaluation.systems.zero_shot]"
            )
        return {
            name: build_part(SYSTEMS, table, name, ["evaluation", "systems", name]) for name, table in tables.items()
        }


class ModelSettings(Settings):
    """Which base model, and how it is held."""

    name: str = Field("smollm2-135m-instruct", min_length=1)
    """A local folder or .gguf file, a hub id (`owner/name`, or `owner/name@revision`), or a name that `luthier models`
    lists."""
    template: str = "model"
    """`model` for the model's own chat template, a built-in one (`chatml_tools`), or a path to a .jinja file."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the frozen weights; `auto` takes bfloat16 where this machine multiplies it faster. Over a
    quantized base, the format that products are computed in."""
    quantize: str = "none"
    """How the frozen matrices are held: `none` for `precision`; `nf4` (4 bits) or `int8`, made when the model is
    loaded; or `gguf`, the blocks of the .gguf file that the model comes from. Not with `adapter.type = "full"`."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps`."""

    @field_validator("quantize")
    @classmethod
    def _require_known_quantizer(cls, value: str) -> str:
        known = ["none", *registry.names(QUANTIZERS)]
        if value not in known:
            with nested():
                raise RecipeError(f"model.quantize: unknown format {value!r}{did_you_mean(value, known)}")
        return value


class DataSettings(Settings):
    """Where the rows are and which of their tokens are trained on."""

    train: str = Field(min_length=1)
    """Training rows: JSONL, JSON, CSV or Parquet; relative to the recipe's folder."""
    validation: str | None = None
    """Rows that choose the best checkpoint; absent: a share of the training rows."""
    test: str | None = None
    """Rows that nothing is chosen on; absent: a share of the training rows."""
    format: str = "auto"
    """How a row is read; `auto` looks at the first rows and says what it found."""
    instruction: str | None = None
    """System message for rows that have none (text + label, prompt + completion)."""
    loss_on: Literal["assistant", "last_assistant", "all"] = "assistant"
    """Which tokens are trained on: every assistant turn, the last one only, or every token."""
    validation_share: float = Field(0.1, gt=0, lt=0.5)
    """Share of the training groups held out for validation when no file is named."""
    test_share: float = Field(0.1, gt=0, lt=0.5)
    """Share of the training groups held out for the test when no file is named."""
    duplicates: Literal["keep", "drop"] = "keep"
    """What happens to exact repeats of a training row; dropped ones are counted and listed in the findings."""
    max_truncated_share: float = Field(0.0, ge=0, le=1)
    """Share of training rows that may lose tokens to `training.max_tokens` before the run is refused."""


def _off(value: Any) -> Any:
    return None if value is False else value


CountOrOff: TypeAlias = Annotated[
    PositiveInt | None, BeforeValidator(_off, json_schema_input_type=PositiveInt | Literal[False] | None)
]
"""A count that `false` switches off: TOML has no null, and leaving the key out means the default."""


class TrainingSettings(Settings):
    """How long, how much at once, and when to look."""

    steps: int | None = Field(None, ge=1)
    """Optimizer steps; absent: as many as `epochs` passes need."""
    epochs: float = Field(3.0, gt=0)
    """Passes over the training rows, when `steps` is absent."""
    rows_per_step: int = Field(8, ge=1)
    """Data rows (for preferences: pairs) that make one optimizer step."""
    max_tokens: int = Field(2048, ge=8)
    """Longest row in tokens; longer ones are cut on the right and counted."""
    micro_batch_tokens: PositiveInt | Literal["auto"] = 4096
    """Most tokens computed at once; bounds memory, and never changes the result. `auto`: as many as are predicted to
    fit into this machine's memory, and no more than make a step faster; found once, before the run."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this norm when they exceed it."""
    validate_every: int | None = Field(None, ge=1)
    """Steps between validations; absent: about ten in the run."""
    patience: CountOrOff = 3
    """Stop after this many validations without a better loss; `false`: never stop early."""
    save_every: int | None = Field(None, ge=1)
    """Steps between checkpoints; absent: at every validation."""
    keep: int = Field(2, ge=1)
    """Checkpoints kept beside the best one."""
    gradient_checkpointing: bool = False
    """Recompute layers in the backward pass: less memory, about a third slower, same result."""

    @field_serializer("patience", when_used="json")
    def _dump_patience(self, patience: int | None) -> int | Literal[False]:
        return False if patience is None else patience


class ForgettingSettings(Settings):
    """General ability before and after training."""

    multiple_choice: str = "builtin"
    """`builtin`, `none`, or a JSONL file with question, choices, answer (0-based)."""
    text: str = "builtin"
    """`builtin`, `none`, or a JSONL (`text`) or plain-text file on which perplexity is measured."""
    max_rows: int = Field(300, ge=20)
    """At most this many questions."""
    max_tokens: int = Field(8000, ge=512)
    """At most this many tokens of text."""


class GroundingSettings(Settings):
    """How answers to rows with passages are judged: supported, unsupported or abstained."""

    judge: str = "none"
    """`none` for the words of answer and passages alone, or a model whose judgement was calibrated beside them
    (docs/grounding.md)."""


class EvaluationSettings(Settings):
    """What is measured on the test rows, and for which systems."""

    task: Literal["auto", "json", "label", "tool_calls", "text", "language", "pairs"] = "auto"
    """What kind of answer is expected; chooses the metrics when none are named. `language` (raw text) and `pairs` are
    scored, not answered."""
    metrics: tuple[str, ...] = ()
    """Names from `luthier/evaluation/metrics`; absent: those that fit the task."""
    primary_metric: str | None = None
    """The metric that decides; absent: the first that fits the task."""
    json_schema: str | None = None
    """JSON Schema file that answers must satisfy (task `json`)."""
    max_new_tokens: int | None = Field(None, ge=1)
    """Longest answer; absent: the longest answer in the training rows and a quarter more."""
    max_rows: int | None = Field(None, ge=2)
    """Use only the first this many test rows; absent: all."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Coverage of every interval in the report."""
    systems: Annotated[dict[str, SerializeAsAny[Settings]], BeforeValidator(_systems)] = Field(default_factory=dict)
    """Tables of systems by name, each with a `type`; absent: zero_shot, few_shot and fine_tuned."""
    forgetting: ForgettingSettings = ForgettingSettings()
    """How forgetting is measured."""
    grounding: GroundingSettings = GroundingSettings()
    """How answers beside passages are judged."""

    @field_validator("metrics", "primary_metric")
    @classmethod
    def _require_known_metrics(cls, value: Any) -> Any:
        known = registry.names(METRICS)
        for name in value if isinstance(value, tuple) else [value]:
            if name is not None and name not in known:
                with nested():
                    raise RecipeError(f"evaluation: unknown metric {name!r}{did_you_mean(name, known)}")
        return value

    @field_serializer("systems")
    def _dump_systems(self, systems: dict[str, Settings]) -> Tree:
        return {name: dump_part(system) for name, system in systems.items()}


class CostSettings(Settings):
    """Prices for the report; nothing is fetched."""

    machine_usd_per_hour: float = Field(0.10, ge=0)
    """What an hour of this machine costs, power and depreciation included."""
    hosted_training_usd_per_million_tokens: float = Field(3.0, ge=0)
    """What a hosted service asks for training a million tokens, to compare with."""
    hosted_input_usd_per_million_tokens: float = Field(0.30, ge=0)
    """What a hosted model asks for a million prompt tokens."""
    hosted_output_usd_per_million_tokens: float = Field(1.20, ge=0)
    """What a hosted model asks for a million completion tokens."""
    answers_per_month: int = Field(100_000, ge=1)
    """Expected volume, for the break-even and for failures per month."""


class Recipe(Settings):
    """A whole run, from raw data to report."""

    seed: int = Field(0, ge=0)
    """Decides the order of rows, dropout and adapter initialization; equal seeds give equal runs."""
    model: ModelSettings = ModelSettings()
    """The base model."""
    data: DataSettings
    """The rows."""
    adapter: Annotated[SerializeAsAny[Settings], _part("adapter")] = Field(default_factory=dict, validate_default=True)
    """What is trained: a file name in `luthier/adapters` as `type`, and its settings."""
    objective: Annotated[SerializeAsAny[Settings], _part("objective")] = Field(
        default_factory=dict, validate_default=True
    )
    """What is minimized: a file name in `luthier/objectives` as `type`, and its settings."""
    optimizer: Annotated[SerializeAsAny[Settings], _part("optimizer")] = Field(
        default_factory=dict, validate_default=True
    )
    """How steps are taken: a file name in `luthier/engine/optimizers` as `type`, and its settings."""
    schedule: Annotated[SerializeAsAny[Settings], _part("schedule")] = Field(
        default_factory=dict, validate_default=True
    )
    """How the learning rate moves: a file name in `luthier/engine/schedules` as `type`, and its settings."""
    training: TrainingSettings = TrainingSettings()
    """How long and how much at once."""
    evaluation: EvaluationSettings = Field(default_factory=dict, validate_default=True)  # type: ignore[assignment]
    """What is measured."""
    cost: CostSettings = CostSettings()
    """Prices."""

    @classmethod
    def tables(cls, values: Mapping[str, Any]) -> dict[str, type[Settings]]:
        """The groups, and the parts that `values` chooses."""
        found = super().tables(values)
        for key, (package, default) in PARTS.items():
            with suppress(RecipeError):  # it is told of already
                found[key] = _part_class(package, values.get(key, {}), default, [key])
        return found

    @field_serializer("adapter", "objective", "optimizer", "schedule")
    def _dump_part(self, part: Settings) -> Tree:
        return dump_part(part)

    def dump(self) -> Tree:
        """Every setting as plain values, defaults included; `Recipe` reads it back to an equal recipe."""
        return self.model_dump(mode="json")

    def hash(self) -> str:
        """sha256 of the effective settings."""
        return canonical_hash(self.dump())


def load(path: Path, assignments: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, apply `--set` assignments, and check it; data paths become absolute.

    Raises:
        RecipeError: the file, a key or a value is wrong.
    """
    tree = override(read_toml(path), assignments)
    return build(Recipe, absolute_paths(tree, path.resolve().parent))


def absolute_paths(tree: Tree, folder: Path) -> Tree:
    """A copy in which every path of the recipe that is relative is read from `folder`, the recipe's own.

    Names that are no paths stay as they are: a hub id or catalog name, a built-in template, `builtin`, `none`.
    """
    tree = deepcopy(tree)
    for *groups, key in _PATHS:
        table: Any = tree
        for group in groups:
            table = table.get(group) if isinstance(table, dict) else None
        value = table.get(key) if isinstance(table, dict) else None
        if isinstance(value, str) and value and _is_path(key, value, folder):
            table[key] = os.path.normpath(folder / value)
    return tree


_PATHS = (
    ("model", "name"),
    ("model", "template"),
    ("data", "train"),
    ("data", "validation"),
    ("data", "test"),
    ("evaluation", "json_schema"),
    ("evaluation", "forgetting", "multiple_choice"),
    ("evaluation", "forgetting", "text"),
)


def _is_path(key: str, value: str, folder: Path) -> bool:
    if key == "name":  # `org/model` is a hub id unless there is such a folder
        return (folder / value).exists()
    if key == "template":
        return value.endswith(".jinja")
    return key not in ("multiple_choice", "text") or value not in ("builtin", "none")
