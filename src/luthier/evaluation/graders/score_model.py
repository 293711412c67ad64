"""A model of the host reads the answer and gives a number within a range."""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import field_validator

from luthier.evaluation.graders._asking import ModelGrader, unreadable, value_in
from luthier.evaluation.graders.base import Host, Sample, SamplingParams, Score

_NUMBER = re.compile(r"[+-]?(\d{1,30}(\.\d{0,30})?|\.\d{1,30})")


class ScoreModel(ModelGrader):
    """The number that the model gives, as it is.

    It is read from `result` or `score` of the first JSON object in the reply, or is the whole reply. A number out of
    the range is an unreadable reply, not the nearest end of it: the model did not understand what was asked.
    """

    range: tuple[float, float] = (0.0, 1.0)
    """The lowest and the highest score."""
    sampling_params: SamplingParams | None = None
    """How the model writes."""

    @field_validator("range")
    @classmethod
    def _is_range(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] >= value[1]:
            raise ValueError("expected the lower number first, and two that differ")
        return value

    def score(self, sample: Sample, item: Mapping[str, Any], host: Host) -> Score:
        """The model's number."""
        low, high = self.range
        form = f'Answer with a JSON object {{"result": NUMBER}}, where NUMBER is from {low:g} to {high:g}.'
        reply, asked = self.ask(sample, item, host, form, self.sampling_params or SamplingParams())
        number = _number(reply)
        if number is None or not low <= number <= high:
            raise unreadable(reply, f"score from {low:g} to {high:g}", asked)
        return Score(number, model=asked.model, tokens=asked.tokens)


def _number(reply: str) -> float | None:
    """The number of a reply; a text is none, even if it spells one."""
    if _NUMBER.fullmatch(reply):
        return float(reply)
    value = value_in(reply, ("result", "score"))
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) < 1e300 else None
