"""What a recipe says of replies that the model writes while it trains."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, SerializeAsAny, field_serializer, model_validator

from luthier.config import Settings, Tree, nested
from luthier.errors import RecipeError
from luthier.recipe.parts import ENVIRONMENTS, GRADERS, SYSTEMS, build_part, dump_part

VLLM_PYTHON = "LUTHIER_VLLM_PYTHON"
"""The environment variable that names the interpreter with vLLM where a recipe does not."""
ASKABLE = ("remote", "local_model")
"""Systems that graders can ask."""
PATIENCE = (
    *("api_key_env", "concurrency", "timeout_seconds", "retries", "first_wait_seconds"),
    *("input_usd_per_million_tokens", "output_usd_per_million_tokens", "spend_limit_usd"),
)
"""Settings of a model that is asked over HTTP which do not change what it answers."""
NOT_OF_GRADING = ("note", "held_out", "shots", "tune_rows", "instruction", "suggest", "answer_room")
"""Settings of these that are of rows which are answered."""
VLLM_COLDEST = 0.01
"""Of lower temperatures vLLM makes this one, and says so in its log alone."""


def _grader(table: Any) -> Settings:
    """The settings of a grader; it may be called by the name of its table."""
    with nested():
        return build_part(GRADERS, table, "string_check", ["rollout", "rewards", "NAME", "grader"])


def _rewards(tables: Any) -> Any:
    """The tables, with the name of each as the name of its grader."""
    if not isinstance(tables, Mapping):
        return tables
    named = {}
    for name, table in tables.items():
        grader = table.get("grader") if isinstance(table, Mapping) else None
        named[name] = {**table, "grader": {"name": name, **grader}} if isinstance(grader, Mapping) else table
    return named


def _models(tables: Any) -> Any:
    """The settings of each model that graders ask, by the name that they ask it by."""
    if not isinstance(tables, Mapping):
        return tables
    return {name: _model(str(name), table) for name, table in tables.items()}


def _model(name: str, table: Any) -> Settings:
    at = ["rollout", "models", name]
    with nested():
        if isinstance(table, Mapping) and table.get("type", ASKABLE[0]) not in ASKABLE:
            raise RecipeError(f"{'.'.join(at)}.type = {table['type']!r}: expected one of {', '.join(ASKABLE)}")
        model = build_part(SYSTEMS, table, ASKABLE[0], at)
        for key, value in model.model_dump().items():
            if key in NOT_OF_GRADING and value != type(model).model_fields[key].default:
                raise RecipeError(f"{'.'.join(at)}.{key} changes nothing: a grader's `input` is all that is asked")
        return model


def _environment(table: Any) -> Settings | None:
    """The settings of an environment."""
    if table is None:
        return None
    with nested():
        return build_part(ENVIRONMENTS, table, "calculator", ["rollout", "environment"])


class RewardSettings(Settings):
    """One grader, and how much its grade counts."""

    grader: Annotated[SerializeAsAny[Settings], BeforeValidator(_grader, json_schema_input_type=Tree)]
    """A grader as OpenAI's API writes it, with its `type` (docs/graders.md); `name` may be left out."""
    weight: float = 1.0
    """What its grade is multiplied by; the reward is the sum."""

    @field_serializer("grader")
    def _dump_grader(self, grader: Settings) -> Tree:
        return dump_part(grader)


class VllmSettings(Settings):
    """A vLLM server that writes the replies, started and ended by the training; nothing of it is imported."""

    python: str | None = None
    """The interpreter of an environment that has vLLM. Absent: the one in the environment variable
    `LUTHIER_VLLM_PYTHON`, so that a recipe need not name a place of one machine."""
    cache_gib: float = Field(4.0, gt=0)
    """What it keeps of prompts and replies in memory, in GiB. Its weights and some 3 GiB come on top."""
    devices: str | None = Field(None, min_length=1)
    """Other GPUs than the training's, as `CUDA_VISIBLE_DEVICES` names them, such as `"1"`; absent: the same."""
    arguments: tuple[str, ...] = ()
    """More for its command line, such as `["--tensor-parallel-size", "2"]`."""
    timeout_seconds: float = Field(1800.0, gt=0)
    """Longest time for one reply, while others are written."""

    @property
    def interpreter(self) -> Path:
        """What starts it.

        Raises:
            RecipeError: nothing names it.
        """
        named = self.python or os.environ.get(VLLM_PYTHON)
        if not named:
            raise RecipeError(
                f"rollout.vllm.python: nothing names an interpreter with vLLM; give it here, or in {VLLM_PYTHON}"
            )
        return Path(named).absolute()

    @property
    def cache_bytes(self) -> int:
        """`cache_gib` in bytes."""
        return int(self.cache_gib * 2**30)


class RolloutSettings(Settings):
    """Replies that the model writes while it trains, and what they are worth; for objectives that learn from them,
    and for `luthier data preferences`."""

    rewards: Annotated[dict[str, RewardSettings], BeforeValidator(_rewards)] = Field(default_factory=dict)
    """Graders by name, such as `[rollout.rewards.exact]`; the reward is the weighted sum of their grades."""
    models: Annotated[
        dict[str, SerializeAsAny[Settings]], BeforeValidator(_models, json_schema_input_type=dict[str, Tree])
    ] = Field(default_factory=dict)
    """Whom graders of type `score_model` and `label_model` ask, by their `model`: `[rollout.models."gpt-4o"]`, of type
    `remote` (the default: an endpoint, with `base_url`, `model`, `api_key_env`, `spend_limit_usd` and the rest) or
    `local_model` (a base model on this machine), with the keys of these in `evaluation.systems`."""
    environment: Annotated[
        SerializeAsAny[Settings] | None, BeforeValidator(_environment, json_schema_input_type=Tree | None)
    ] = None
    """What answers between the model's turns, such as `{ type = "calculator" }`, and may reward them; absent: there is
    one turn."""
    max_turns: int = Field(4, ge=2)
    """Most replies of a conversation with the environment."""
    group_size: int = Field(8, ge=1)
    """Replies to each prompt."""
    max_new_tokens: int = Field(256, ge=1)
    """Longest reply."""
    temperature: float = Field(1.0, gt=0, le=10)
    """Of the sampling, and of the probabilities that are trained."""
    updates: int = Field(1, ge=1)
    """Passes over the replies of a rollout before new ones are sampled."""
    minibatches: int = Field(1, ge=1)
    """Steps that one pass is cut into; a rollout asks so many times `training.rows_per_step` prompts."""
    resample: int = Field(0, ge=0)
    """Dynamic sampling: how often prompts whose replies are all worth the same are replaced by further ones."""
    mask_truncated: bool = False
    """Learn nothing from replies that ran into `max_new_tokens`."""
    overlong_tokens: int = Field(0, ge=0)
    """Within so many tokens of `max_new_tokens` the reward falls, by 1 at the limit; 0: it does not."""
    vllm: VllmSettings | None = None
    """`[rollout.vllm]`: replies are written by a vLLM server; absent: by our own generator, in the training's process.
    Only for `adapter.type = "lora"`."""
    validation_prompts: int = Field(64, ge=1)
    """At most so many validation prompts are answered, by the likeliest tokens, to choose the best step."""

    @model_validator(mode="after")
    def _require_environment(self) -> "RolloutSettings":
        if self.environment is None and self.max_turns != type(self).model_fields["max_turns"].default:
            with nested():
                raise RecipeError("rollout.max_turns changes nothing without rollout.environment")
        return self

    @model_validator(mode="after")
    def _require_temperature(self) -> "RolloutSettings":
        if self.vllm is not None and self.temperature < VLLM_COLDEST:
            with nested():
                raise RecipeError(
                    f"rollout.temperature = {self.temperature}: vLLM samples at {VLLM_COLDEST} or above; raise it, or "
                    "remove [rollout.vllm]"
                )
        return self

    @field_serializer("models")
    def _dump_models(self, models: dict[str, Settings]) -> Tree:
        return {name: dump_part(model) for name, model in models.items()}

    @field_serializer("environment")
    def _dump_environment(self, environment: Settings | None) -> Tree | None:
        return None if environment is None else dump_part(environment)

    @model_validator(mode="after")
    def _require_room(self) -> "RolloutSettings":
        if self.overlong_tokens > self.max_new_tokens:
            with nested():
                raise RecipeError(
                    f"rollout.overlong_tokens = {self.overlong_tokens}: at most rollout.max_new_tokens = "
                    f"{self.max_new_tokens}, within which it lies"
                )
        return self
