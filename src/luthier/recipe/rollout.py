"""What a recipe says of replies that the model writes while it trains."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, SerializeAsAny, field_serializer, model_validator

from luthier.config import Settings, Tree, nested
from luthier.errors import RecipeError
from luthier.recipe.parts import ENVIRONMENTS, GRADERS, build_part, dump_part


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


class RolloutSettings(Settings):
    """Replies that the model writes while it trains, and what they are worth; for objectives that learn from them,
    and for `luthier data preferences`."""

    rewards: Annotated[dict[str, RewardSettings], BeforeValidator(_rewards)] = Field(default_factory=dict)
    """Graders by name, such as `[rollout.rewards.exact]`; the reward is the weighted sum of their grades."""
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
    validation_prompts: int = Field(64, ge=1)
    """At most so many validation prompts are answered, by the likeliest tokens, to choose the best step."""

    @model_validator(mode="after")
    def _require_environment(self) -> "RolloutSettings":
        if self.environment is None and self.max_turns != type(self).model_fields["max_turns"].default:
            with nested():
                raise RecipeError("rollout.max_turns changes nothing without rollout.environment")
        return self

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
