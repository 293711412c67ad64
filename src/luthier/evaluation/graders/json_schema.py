"""Whether an answer is JSON, and satisfies a JSON Schema."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

import jsonschema
from pydantic import Field
from referencing.exceptions import Unresolvable

from luthier.errors import EvaluationError
from luthier.evaluation.graders.base import Errors, Grader, Host, NoScore, Sample, Score
from luthier.evaluation.schema import validator_of


class JsonSchema(Grader):
    """1 or 0.

    The whole answer must be strict JSON: what a program can read without looking for braces. The dialect is the one
    that the schema names in `$schema`, else 2020-12; references to other documents are not fetched.
    """

    of_openai: ClassVar[bool] = False

    json_schema: dict[str, Any] = Field(default_factory=dict)
    """The schema; absent: any JSON will do."""

    def require(self, host: Host) -> None:
        """Raise an EvaluationError if the schema is none."""
        try:
            self._validator.check_schema(self.json_schema)
        except jsonschema.SchemaError as error:
            raise EvaluationError(
                f"grader {self.name!r}: json_schema is no JSON Schema: {error.message} at {error.json_path}"
            ) from None

    @cached_property
    def _validator(self) -> Any:
        return validator_of(self.json_schema)

    def score(self, sample: Sample, item: Mapping[str, Any], host: Host) -> Score:
        """1.0 if the answer satisfies the schema, else 0.0."""
        if not sample.is_json:
            return Score(0.0)
        try:
            return Score(float(self._validator.is_valid(sample.output_json)))
        except RecursionError:  # a schema that refers to itself, and an answer too deep to follow it
            return Score(0.0)
        except (Unresolvable, EvaluationError) as error:
            raise NoScore(f"the schema cannot be used: {error}", Errors(other_error=True)) from None
