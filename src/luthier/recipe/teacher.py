"""What a recipe says of a teacher: another model, or the same one with a prompt that it shall do without."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from luthier.config import Settings, nested
from luthier.errors import RecipeError
from luthier.recipe.parts import require_quantizer


class TeacherSettings(Settings):
    """Whom the model learns from, for the objectives `distill` and `gkd`, and for `luthier data replies`. Without
    `model` and `run` it is the recipe's own model as it is before training, behind a longer prompt."""

    model: str | None = Field(None, min_length=1)
    """A folder or .gguf file, a hub id, or a name that `luthier models` lists; as `model.name`."""
    run: str | None = Field(None, min_length=1)
    """The folder of a finished run, whose trained model teaches."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """As `model.precision`; of `model` alone."""
    quantize: str = "none"
    """As `model.quantize`; of `model` alone."""
    template: str = "model"
    """As `model.template`; of `model` alone."""
    prompt: str | None = Field(None, min_length=1)
    """A text file that the teacher reads in its system message, and the trained model does not: what it would say with
    that prompt is learned, so that the prompt can be left out."""
    examples: str | None = Field(None, min_length=1)
    """Solved rows, in any format for chats, that the teacher reads as earlier turns, all of them before every question,
    and the trained model does not."""
    replies: Literal["rows", "teacher"] = "rows"
    """Which replies both read: those of the rows, or those that the teacher writes before the training. Then rows need
    no reply."""
    max_new_tokens: int = Field(256, ge=1)
    """Longest reply that it writes."""
    temperature: float = Field(0.0, ge=0, le=10)
    """At which it writes; 0: the likeliest token each time."""

    @property
    def is_own(self) -> bool:
        """Whether it is the model that is trained, as it was before."""
        return self.model is None and self.run is None

    @property
    def has_prompt(self) -> bool:
        """Whether it reads more than the trained model does."""
        return self.prompt is not None or self.examples is not None

    @field_validator("quantize")
    @classmethod
    def _require_known(cls, value: str) -> str:
        return require_quantizer(value, "teacher.quantize")

    @model_validator(mode="after")
    def _require_a_teacher(self) -> "TeacherSettings":
        """Raises a RecipeError where nothing is left to learn, or a setting would be ignored."""
        with nested():
            if self.model is not None and self.run is not None:
                raise RecipeError("teacher.model and teacher.run both say who teaches; keep one")
            if self.is_own and not self.has_prompt:
                raise RecipeError(
                    "[teacher] says neither who teaches nor with which prompt, so it would be the model itself: write "
                    "model, run, prompt or examples"
                )
            of = {"model": ("precision", "quantize", "template"), "replies": ("max_new_tokens", "temperature")}
            needed = {"model": self.model is not None, "replies": self.replies == "teacher"}
            for setting, names in of.items():
                for name in names:
                    if not needed[setting] and self.model_dump()[name] != type(self).model_fields[name].default:
                        wanted = "teacher.model" if setting == "model" else 'teacher.replies = "teacher"'
                        raise RecipeError(f"teacher.{name} changes nothing without {wanted}")
        return self
