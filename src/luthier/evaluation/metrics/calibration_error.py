"""Expected calibration error: how far the confidence of answers is from the share of them that is right.

    ECE = sum_m n_m / N | right_m - confidence_m |        bins m of equal width (Guo et al. 2017, arXiv:1706.04599)

Confidence is the probability of the label that is answered. With few rows a perfectly calibrated system has an error
above 0, too: compare systems on the same rows. A BCa interval takes most of that bias out, so that the value may lie a
little above it.
"""

from typing import ClassVar

from pydantic import Field

from luthier.errors import EvaluationError
from luthier.evaluation.calibration import calibration_error
from luthier.evaluation.metrics._labels import target_and_output
from luthier.evaluation.metrics.base import Array, Metric, Needs, Prediction


class CalibrationError(Metric):
    """Confidence beside the share of answers that are right."""

    needs: ClassVar[Needs] = "probabilities"
    higher_is_better: ClassVar[bool] = False
    worst: ClassVar[float] = 1.0
    best: ClassVar[float] = 0.0
    reads_target: ClassVar[bool] = False
    scores_rows: ClassVar[bool] = False

    bins: int = Field(15, ge=1)
    """Bins of confidence, of equal width."""

    def statistics(self, prediction: Prediction) -> tuple[float, float]:
        """(confidence, 1 if right)."""
        target, output = target_and_output(prediction)
        return confidence_of(prediction), float(target == output)

    def values(self, statistics_NS: Array, counts_BN: Array) -> Array:
        """(B,) the error."""
        return calibration_error(statistics_NS[:, 0], statistics_NS[:, 1], self.bins, counts_BN)


def confidence_of(prediction: Prediction) -> float:
    """The probability of the label that was answered.

    Raises:
        EvaluationError: the system gave none.
    """
    if not prediction.probabilities:
        raise EvaluationError(f"row {prediction.id}: the answer has no probabilities")
    return max(prediction.probabilities.values())
