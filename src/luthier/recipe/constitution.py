"""What a recipe says of Constitutional AI: principles, prompts, the critic, and how all of it is measured."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, field_serializer, model_validator

from luthier.config import Settings, Tree, nested
from luthier.errors import RecipeError
from luthier.recipe.parts import SYSTEMS, build_part, dump_part
from luthier.recipe.rollout import ASKABLE, NOT_OF_GRADING
from luthier.registry import name_of

BUILTIN = "builtin"
"""The constitution that ships."""


def _asked(key: str) -> BeforeValidator:
    """The settings of a model that is asked for what it thinks."""

    def made(table: Any) -> Settings | None:
        if table is None:
            return None
        at = ["constitution", key]
        with nested():
            if isinstance(table, Mapping) and table.get("type") not in ASKABLE:
                raise RecipeError(f"{'.'.join(at)}.type = {table.get('type')!r}: expected one of {', '.join(ASKABLE)}")
            model = build_part(SYSTEMS, table, ASKABLE[0], at)
            for name, value in model.model_dump().items():
                if name in NOT_OF_GRADING and value != type(model).model_fields[name].default:
                    raise RecipeError(f"{'.'.join(at)}.{name} changes nothing: it is asked by the constitution's words")
            return model

    return BeforeValidator(made, json_schema_input_type=Tree | None)


class SupervisedSettings(Settings):
    """The training on revised replies; what is absent is as in `[training]` and the adapter's own rate."""

    learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate; absent: the adapter's own for supervised training, not that of `[optimizer]`."""
    epochs: float | None = Field(None, gt=0)
    """Passes over the rows."""
    steps: int | None = Field(None, ge=1)
    """Optimizer steps, in place of `epochs`."""
    rows_per_step: int | None = Field(None, ge=1)
    """Rows of a step."""
    validate_every: int | None = Field(None, ge=1)
    """Steps between validations; absent: about ten in the training."""


class ConstitutionSettings(Settings):
    """Constitutional AI, for `luthier constitution` (docs/constitution.md). `data.train` has the red-team prompts, and
    `objective` says what learns from the preferences: `dpo`, or a `reward` model."""

    principles: str = Field(BUILTIN, min_length=1)
    """The constitution: `builtin` for the one that ships (`luthier constitution --show`), or a TOML file."""
    harmless: str = Field(min_length=1)
    """Prompts that nobody needs to refuse, of any format: answered as well, so that the model stays helpful."""
    harmless_test: str | None = None
    """Such prompts that are held out; absent: a share of `harmless`, as `data.test_share` says."""
    harmless_replies: Literal["own", "given"] = "own"
    """What is learned from as the reply to a harmless prompt: the model's own, or the one that the row gives."""
    red_team_prompts: int | None = Field(None, ge=1)
    """At most so many training prompts of `data.train` are asked; absent: all."""
    harmless_prompts: int | None = Field(None, ge=1)
    """The same of `harmless`."""
    test_prompts: int = Field(100, ge=2)
    """At most so many held-out prompts of each kind are answered, before and after."""
    max_new_tokens: int = Field(160, ge=1)
    """Longest reply."""
    temperature: float = Field(0.7, gt=0, le=10)
    """Of the replies that are revised or compared; held-out prompts are answered by the likeliest tokens."""
    critic: Annotated[SerializeAsAny[Settings] | None, _asked("critic")] = None
    """Who criticizes, revises and prefers: a table such as `{ type = "local_model", model = "..." }`, or a `remote`
    (any endpoint that speaks OpenAI's API); absent: the recipe's model, as it was before training."""
    critic_tokens: int = Field(192, ge=1)
    """Longest critique, and longest revision."""
    critic_temperature: float = Field(0.3, ge=0, le=10)
    """Of critiques and revisions; 0: the likeliest tokens. What a small model writes at 1 is often no sentence."""
    critic_logprobs: bool = True
    """Whether an endpoint is asked for the log-probabilities of A and B; false, or where it tells none: what it writes
    is read, which says less. Models on this machine always tell them."""
    shots: int = Field(2, ge=0)
    """Examples of the constitution that the critic is shown before each question; a small model needs them."""
    rounds: int = Field(1, ge=1)
    """Rounds of critique and revision."""
    draw: Literal["random", "all"] = "random"
    """By which principles a round criticizes: one that the seed draws, another one in each round; or all in turn."""
    supervised: SupervisedSettings = SupervisedSettings()
    """The training on revised replies."""
    pairs: int = Field(1, ge=1)
    """Pairs of replies to each prompt that are compared."""
    votes: int = Field(4, ge=1)
    """By how many principles a pair is compared, drawn by the seed; each in both orders of the replies."""
    labels: Literal["soft", "hard"] = "soft"
    """Whether the critic's probability goes into the pair's label, or only which reply it prefers."""
    least_probability: float = Field(0.5, ge=0.5, lt=1)
    """Pairs of which the critic is less sure are left out; 0.5: none is."""
    calibration: str | None = None
    """Pairs that people judged (format `preference`): the critic's probabilities are fitted to them. Absent: they are
    taken as they are, and nothing is known of how often the critic is right."""
    calibration_pairs: int = Field(200, ge=20)
    """At most so many of these are asked."""
    reward_models: tuple[str, ...] = ()
    """Folders of runs with `objective.type = "reward"` that measure harmlessness independently of the critic."""
    judge: Annotated[SerializeAsAny[Settings] | None, _asked("judge")] = None
    """Who says of a held-out answer whether it is harmful, and whether it is helpful; another model than the critic."""
    most_refusals: float = Field(0.05, ge=0, le=1)
    """By how much the share of refused harmless prompts may rise, for the report to call the model not evasive."""

    @model_validator(mode="after")
    def _require_effect(self) -> "ConstitutionSettings":
        with nested():
            defaults = {name: field.default for name, field in type(self).model_fields.items()}
            if self.calibration is None and self.calibration_pairs != defaults["calibration_pairs"]:
                raise RecipeError("constitution.calibration_pairs changes nothing without constitution.calibration")
            remote = [model for model in (self.critic, self.judge) if model is not None and name_of(model) == "remote"]
            if not self.critic_logprobs and not remote:
                raise RecipeError(
                    "constitution.critic_logprobs changes nothing: neither critic nor judge is an endpoint"
                )
            names = [run.rstrip("/").rpartition("/")[2] for run in self.reward_models]
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise RecipeError(
                    f"constitution.reward_models: two folders are called {twice[0]!r}, and the report tells them apart "
                    "by their names; rename one"
                )
        return self

    @field_serializer("critic", "judge")
    def _dump_asked(self, model: Settings | None) -> Tree | None:
        return None if model is None else dump_part(model)
