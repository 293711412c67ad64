"""How alike two texts are, by a measure of choice."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from luthier.errors import EvaluationError
from luthier.evaluation.graders._similarity import MEASURES
from luthier.evaluation.graders._template import Template, render
from luthier.evaluation.graders.base import HOST_ERRORS, Errors, Grader, Host, NoScore, Sample, Score

MAX_CHARS = 100_000


class TextSimilarity(Grader):
    """From 0 to 1, and from -1 for `cosine`.

    `fuzzy_match` is `rapidfuzz.fuzz.ratio`; `bleu` is sacrebleu's of one sentence; `gleu` Google's; `meteor` knows
    equal words and stems and no synonyms; `rouge_1` to `rouge_5` and `rouge_l` are F1. `cosine` is that of the vectors
    of the host's embedder; counts of words are something else, so without an embedder it is refused.
    """

    input: Template
    """The text that is graded."""
    reference: Template
    """What it is compared with."""
    evaluation_metric: Literal[
        "cosine",
        "fuzzy_match",
        "bleu",
        "gleu",
        "meteor",
        "rouge_1",
        "rouge_2",
        "rouge_3",
        "rouge_4",
        "rouge_5",
        "rouge_l",
    ]
    """The measure."""

    def require(self, host: Host) -> None:
        """Raise an EvaluationError if the measure needs an embedder and the host has none."""
        if self.evaluation_metric == "cosine" and host.embed is None:
            others = ", ".join(MEASURES)
            raise EvaluationError(
                f"grader {self.name!r} wants the cosine of text embeddings, and no embedder is at hand here; choose "
                f"another evaluation_metric ({others})"
            )

    def score(self, sample: Sample, item: Mapping[str, Any], host: Host) -> Score:
        """The likeness of input and reference."""
        longest = min(MAX_CHARS, host.limits.text_chars)
        text = render(self.input, sample, item, longest)
        reference = render(self.reference, sample, item, longest)
        if self.evaluation_metric == "cosine":
            return Score(_cosine(*_vectors(text, reference, host)))
        return Score(MEASURES[self.evaluation_metric](text, reference))


def _vectors(text: str, reference: str, host: Host) -> tuple[Sequence[float], Sequence[float]]:
    try:
        if host.embed is None:
            raise EvaluationError("no embedder is at hand")
        a, b = host.embed([text, reference])
    except HOST_ERRORS as error:
        details = str(error)[:1000] or type(error).__name__
        errors = Errors(model_grader_server_error=True, model_grader_server_error_details=details)
        raise NoScore(f"the embedder gave no vectors: {details}", errors) from None
    return a, b


def _cosine(a: Sequence[float], b: Sequence[float]) -> float:
    lengths = math.hypot(*a) * math.hypot(*b)
    if len(a) != len(b) or not lengths or not math.isfinite(lengths):
        raise NoScore("the embedder's vectors cannot be compared", Errors(other_error=True))
    return max(-1.0, min(1.0, sum(x * y for x, y in zip(a, b, strict=True)) / lengths))
