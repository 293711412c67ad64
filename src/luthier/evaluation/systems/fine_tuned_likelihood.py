"""The fine-tuned model, asked how likely each label is as its reply, with the prompt that it was trained with."""

from collections.abc import Sequence
from typing import ClassVar

from luthier.errors import EvaluationError
from luthier.evaluation.classes import require_writer
from luthier.evaluation.rungs import Rung
from luthier.evaluation.systems.base import Answers, Context, System, TrainedOn, require_questions
from luthier.evaluation.systems.label_likelihood import likeliest
from luthier.examples import Example


class FineTunedLikelihood(System):
    """The trained model's likeliest label, where it was trained to write labels."""

    rung: ClassVar[Rung] = "fine_tune"
    trained_on: ClassVar[TrainedOn | None] = "rows"
    gives_probabilities: ClassVar[bool] = True

    def answer(self, rows: Sequence[Example], context: Context) -> Answers:
        """The likeliest label of each row, with the probabilities of all.

        Raises:
            EvaluationError: nothing was trained yet, a head was trained, or the task is no choice of labels.
        """
        if context.tuned_fingerprint is None:
            raise EvaluationError(
                "the system fine_tuned_likelihood needs trained weights; run `luthier train` first, or leave it out"
            )
        require_writer(context, "fine_tuned_likelihood")
        return likeliest(require_questions(rows, "fine_tuned_likelihood"), lambda row: row.prompt, context)
