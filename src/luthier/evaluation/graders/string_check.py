"""Two texts compared: equal, not equal, or one contained in the other, with or without regard to case."""

from collections.abc import Mapping
from typing import Any, Literal

from luthier.evaluation.graders._template import Template, render
from luthier.evaluation.graders.base import Grader, Host, Sample, Score


class StringCheck(Grader):
    """1 or 0.

    `like` asks whether the input contains the reference, as OpenAI's guide has it, so `%` and `_` are characters like
    all others; `ilike` does so for case-folded texts.
    """

    input: Template
    """The text that is graded."""
    reference: Template
    """What it is compared with."""
    operation: Literal["eq", "ne", "like", "ilike"]
    """How."""

    def score(self, sample: Sample, item: Mapping[str, Any], host: Host) -> Score:
        """1.0 if the comparison holds, else 0.0."""
        text = render(self.input, sample, item, host.limits.text_chars)
        reference = render(self.reference, sample, item, host.limits.text_chars)
        if self.operation == "like":
            return Score(float(reference in text))
        if self.operation == "ilike":
            return Score(float(reference.casefold() in text.casefold()))
        return Score(float((text == reference) == (self.operation == "eq")))
