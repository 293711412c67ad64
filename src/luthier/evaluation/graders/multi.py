"""Several graders, and a formula that makes one reward of theirs."""

import keyword
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any

from pydantic import Field, SerializeAsAny, WithJsonSchema, field_validator, model_validator
from pydantic.json_schema import JsonSchemaValue

from luthier.config import nested
from luthier.errors import RecipeError
from luthier.evaluation.graders._formula import FUNCTIONS, Formula, parse_formula
from luthier.evaluation.graders.base import Errors, Grader, Host, NoScore, Sample, Score, build_grader

MAX_GRADERS = 32
GRADERS_SCHEMA: JsonSchemaValue = {
    "anyOf": [
        {
            "type": "object",
            "minProperties": 1,
            "maxProperties": MAX_GRADERS,
            "additionalProperties": {"type": "object"},
        },
        {"type": "object", "required": ["type"], "properties": {"type": {"type": "string"}}},
    ]
}
"""A table, or one grader; each is then built by its own type."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}", re.ASCII)


class Multi(Grader):
    """The value of the formula.

    `graders` is a table of name and grader, as in OpenAI's guide, or a single grader, as its client types it, which the
    formula calls by its `name`. If one of the graders fails, the reward is 0 whatever the formula would make of it:
    `1 - x` must not reward that `x` could not be found.
    """

    graders: Annotated[dict[str, SerializeAsAny[Grader]], WithJsonSchema(GRADERS_SCHEMA)] = Field(
        min_length=1, max_length=MAX_GRADERS
    )
    """By the names that the formula uses."""
    calculate_output: str = Field(min_length=1, max_length=2000)
    """The formula."""

    @field_validator("graders", mode="before")
    @classmethod
    def _build(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        with nested():
            if isinstance(value.get("type"), str):
                single = _part(value, "graders")
                return {single.name: single}
            if len(value) > MAX_GRADERS:
                raise RecipeError(f"'grader.graders' has {len(value)} graders; expected at most {MAX_GRADERS}")
            return {name: _part(part, f"graders.{name}") for name, part in value.items()}

    @model_validator(mode="after")
    def _formula_is_sound(self) -> "Multi":
        for name in self.graders:
            if not _NAME.fullmatch(name) or name in FUNCTIONS or keyword.iskeyword(name):
                raise ValueError(
                    f"a grader is called {name!r:.80}, which a formula cannot name; expected letters, digits and "
                    "_, and no function's name"
                )
        if not self._formula.names:
            raise ValueError("the formula names no grader, so every answer would get the same reward")
        return self

    @cached_property
    def _formula(self) -> Formula:
        return parse_formula(self.calculate_output, self.graders.keys())

    def parts(self) -> Sequence[Grader]:
        """Those of the formula."""
        return tuple(self.graders.values())

    def require(self, host: Host) -> None:
        """What each of the graders requires."""
        for grader in self.graders.values():
            grader.require(host)

    def score(self, sample: Sample, item: Mapping[str, Any], host: Host) -> Score:
        """The value of the formula over the graders' rewards."""
        grades = {name: grader.grade(sample, item, host) for name, grader in self.graders.items()}
        rewards = {name: grade.reward for name, grade in grades.items()}
        tokens: dict[str, int] = {}
        for grade in grades.values():
            for model, count in grade.tokens.items():
                tokens[model] = tokens.get(model, 0) + count
        models = {grade.sampled_model_name for grade in grades.values()} - {None}
        found = Score(0.0, rewards, models.pop() if len(models) == 1 else None, tokens)
        errors = Errors()
        for grade in grades.values():
            errors = errors.joined(grade.errors)
        if errors.any:
            problem = "; ".join(f"{name}: {grade.problem}" for name, grade in grades.items() if grade.problem)
            raise NoScore(problem, errors, found)
        try:
            return Score(self._formula.value(rewards), rewards, found.model, tokens)
        except ValueError as error:
            raise NoScore(str(error), Errors(formula_parse_error=True), found) from None


def _part(values: Any, where: str) -> Grader:
    if not isinstance(values, Mapping):
        raise RecipeError(f"'grader.{where}' is a {type(values).__name__}; expected a grader with its type")
    if values.get("type") == "multi":
        raise RecipeError(f"'grader.{where}' is a multi grader within a multi grader; put its graders in the outer one")
    return build_grader(values, ("grader", *where.split(".", 1)))
