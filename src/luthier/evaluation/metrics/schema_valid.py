"""Schema validity: the share of answers that are JSON and satisfy a JSON Schema.

The dialect is the one that the schema names in `$schema`, else 2020-12. References to other documents are not fetched.
"""

from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from referencing.exceptions import Unresolvable

from luthier.errors import EvaluationError
from luthier.evaluation.metrics._json import NotJson, parse
from luthier.evaluation.metrics.base import Prediction, RatioMetric
from luthier.evaluation.schema import read_schema, validator_of


class SchemaValid(RatioMetric):
    """Share of answers that are JSON and satisfy the schema."""

    binary: ClassVar[bool] = True
    counts_failures: ClassVar[bool] = True

    json_schema: str
    """The JSON Schema file."""

    @cached_property
    def _validator(self) -> Any:
        return validator_of(read_schema(Path(self.json_schema)))

    def statistics(self, prediction: Prediction) -> tuple[float, float]:
        """(1 if it satisfies the schema, 1).

        Raises:
            EvaluationError: the schema cannot be read, or refers to something outside the file.
        """
        try:
            value = parse(prediction.output)
        except NotJson:
            return 0.0, 1.0
        try:
            return float(self._validator.is_valid(value)), 1.0
        except RecursionError:  # a schema that refers to itself, and an answer too deep to follow it
            return 0.0, 1.0
        except Unresolvable as error:
            raise EvaluationError(
                f"{self.json_schema}: a $ref leads out of the file ({error}); put the definition into $defs"
            ) from None
