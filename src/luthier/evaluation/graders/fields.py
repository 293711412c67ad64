"""The fields of a JSON answer beside those that are wanted."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from luthier.evaluation.graders._template import Template, render
from luthier.evaluation.graders.base import Errors, Grader, Host, NoScore, Sample, Score
from luthier.evaluation.metrics._json import NotJson, leaf_count, parse, shared_leaves, tree


class Fields(Grader):
    """From 0 to 1; 0 for an answer that is not strict JSON as a whole.

    A field is a value that holds no others, and its path. It counts as right if the same value stands at the same path;
    the order of keys and lists does not matter, nor 1 or 1.0, nor white space at the ends of a text.
    """

    of_openai: ClassVar[bool] = False

    reference: Template = "{{item.target}}"
    """The wanted value as JSON."""
    measure: Literal["f1", "exact"] = "f1"
    """`f1` gives each right field its share, `exact` nothing unless all are right and none is too many."""

    def score(self, sample: Sample, item: Mapping[str, Any], host: Host) -> Score:
        """How many of the fields are right."""
        text = render(self.reference, sample, item, host.limits.text_chars)
        try:
            wanted = tree(parse(text))
        except NotJson as error:
            raise NoScore(f"the reference is not JSON: {error}", Errors(other_error=True)) from None
        if not sample.is_json:
            return Score(0.0)
        found = tree(sample.output_json)
        right, there = shared_leaves(wanted, found), leaf_count(wanted) + leaf_count(found)
        if self.measure == "exact":
            return Score(float(2 * right == there))
        return Score(2 * right / there)
