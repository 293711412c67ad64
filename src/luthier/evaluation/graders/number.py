"""The last number of an answer beside the last number of the reference: how answers to arithmetic are graded."""

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from luthier.evaluation.graders._template import Template, render
from luthier.evaluation.graders.base import Errors, Grader, Host, NoScore, Sample, Score

_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d{1,30})(?:\.\d{1,30})?(?![\w])")


class Number(Grader):
    """1 or 0. Digits may be grouped in threes by commas; an answer without a number is wrong."""

    of_openai: ClassVar[bool] = False

    input: Template = "{{sample.output_text}}"
    """The text that is graded."""
    reference: Template = "{{item.reference_answer}}"
    """The text whose last number is wanted."""
    tolerance: float = Field(0.0, ge=0)
    """How far off a number may be and still be right."""

    def score(self, sample: Sample, item: Mapping[str, Any], host: Host) -> Score:
        """1.0 if both numbers are there and equal, else 0.0."""
        wanted = last_number(render(self.reference, sample, item, host.limits.text_chars))
        if wanted is None:
            raise NoScore("the reference holds no number", Errors(other_error=True))
        found = last_number(render(self.input, sample, item, host.limits.text_chars))
        return Score(float(found is not None and abs(found - wanted) <= self.tolerance))


def last_number(text: str) -> float | None:
    """The last number of a text; None if it has none."""
    numbers = _NUMBER.findall(text)
    return float(numbers[-1].replace(",", "")) if numbers else None
