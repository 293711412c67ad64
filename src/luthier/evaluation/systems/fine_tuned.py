"""The fine-tuned model, asked exactly as it was trained: the row's own prompt, nothing added."""

from collections.abc import Sequence
from typing import ClassVar

from luthier.errors import EvaluationError
from luthier.evaluation.answering import answer_with_model
from luthier.evaluation.classes import answer_with_head, is_classifier
from luthier.evaluation.rungs import Rung
from luthier.evaluation.systems.base import Answers, Context, System, TrainedOn, require_questions
from luthier.examples import Example


class FineTuned(System):
    """The base model with the trained adapter."""

    rung: ClassVar[Rung] = "fine_tune"
    trained_on: ClassVar[TrainedOn | None] = "rows"

    def answer(self, rows: Sequence[Example], context: Context) -> Answers:
        """The model's answers, adapter on.

        Raises:
            EvaluationError: nothing was trained yet.
        """
        if context.tuned_fingerprint is None:
            raise EvaluationError(
                "the system fine_tuned needs trained weights; run `luthier train` first, or leave it out"
            )
        if is_classifier(context.head):
            return answer_with_head(require_questions(rows, "fine_tuned"), context, "fine_tuned")
        return Answers(*answer_with_model(rows, [row.prompt for row in rows], context, "fine_tuned"))
