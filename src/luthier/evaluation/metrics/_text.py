"""What a free text is compared with."""

from luthier.errors import EvaluationError
from luthier.evaluation.metrics.base import Prediction


def references(prediction: Prediction) -> list[str]:
    """The row's `references` if it has any, else its target text.

    Raises:
        EvaluationError: `references` is not a list of texts.
    """
    listed = prediction.extra.get("references")
    if listed is None or listed == []:
        return [prediction.target_text]
    if not isinstance(listed, list | tuple) or not all(isinstance(text, str) for text in listed):
        raise EvaluationError(f"row {prediction.id}: `references` must be a list of texts, found {listed!r:.80}")
    return list(listed)
