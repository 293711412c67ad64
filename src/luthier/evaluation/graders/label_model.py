"""A model of the host gives the answer one of several labels; some of them pass."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, model_validator

from luthier.evaluation.graders._asking import ModelGrader, unreadable, value_in
from luthier.evaluation.graders.base import Host, Sample, SamplingParams, Score

Label = Annotated[str, Field(min_length=1, max_length=256)]


class LabelModel(ModelGrader):
    """1 if the label is a passing one, else 0.

    It is read from `label` or `result` of the first JSON object in the reply, or is the whole reply; it must be
    spelled as in `labels`.
    """

    labels: tuple[Label, ...] = Field(min_length=1, max_length=256)
    """What the model chooses from."""
    passing_labels: tuple[Label, ...] = Field(min_length=1, max_length=256)
    """Those that are worth 1."""

    @model_validator(mode="after")
    def _labels_are_known(self) -> "LabelModel":
        unknown = sorted(set(self.passing_labels) - set(self.labels))
        if unknown:
            raise ValueError(f"passing_labels has {unknown[0]!r:.80}, which is not in labels")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("a label stands twice in labels")
        return self

    def score(self, sample: Sample, item: Mapping[str, Any], host: Host) -> Score:
        """Whether the model's label passes."""
        listed = ", ".join(self.labels)
        form = f'Answer with a JSON object {{"label": LABEL}}, where LABEL is exactly one of: {listed}.'
        reply, asked = self.ask(sample, item, host, form, SamplingParams())
        label = reply if reply in self.labels else value_in(reply, ("label", "result"))
        if not isinstance(label, str) or label not in self.labels:
            raise unreadable(reply, "label of the list", asked)
        return Score(float(label in self.passing_labels), model=asked.model, tokens=asked.tokens)
