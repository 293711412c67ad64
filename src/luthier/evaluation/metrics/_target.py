"""The log-probabilities of the wanted reply."""

from luthier.errors import EvaluationError
from luthier.evaluation.metrics.base import Prediction, TargetScore


def target_score(prediction: Prediction) -> TargetScore:
    """The score of the wanted reply.

    Raises:
        EvaluationError: the system gave none.
    """
    if prediction.target_score is None:
        raise EvaluationError(
            f"row {prediction.id}: no log-probabilities of the target; this metric needs a system that is a model"
        )
    return prediction.target_score
