"""F1 of spans: 2 tp / (2 tp + fp + fn), where a span is right if its text and its label are.

An answer is a JSON list of objects with `text` and `label`; where the text stands is not asked, since a model that
writes cannot count characters. A text that is named twice must be wanted twice.
"""

from luthier.evaluation.metrics._said import spans_in, wanted_spans
from luthier.evaluation.metrics.base import Prediction, RatioMetric


class SpanF1(RatioMetric):
    """Micro-averaged F1 of spans and their labels."""

    def statistics(self, prediction: Prediction) -> tuple[float, float]:
        """(2 tp, 2 tp + fp + fn)."""
        wanted, said = wanted_spans(prediction), spans_in(prediction.output)
        return 2.0 * (wanted & said).total(), float(wanted.total() + said.total())
