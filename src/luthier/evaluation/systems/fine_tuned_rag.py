"""The model that was trained on rows with retrieved passages in their prompts, asked with what is retrieved.

Its training is the run's second one, which this system asks for by being in the recipe (`luthier/passages.py`). The
prompt is that of the training: the row's own, and before its question as many of the best passages as leave room.
"""

from collections.abc import Sequence
from typing import ClassVar

from luthier.errors import EvaluationError
from luthier.evaluation.answering import answer_with_model
from luthier.evaluation.classes import require_writer
from luthier.evaluation.rungs import Rung
from luthier.evaluation.systems._prompts import Addition
from luthier.evaluation.systems.base import Answers, Context, System, TrainedOn, require_questions
from luthier.evaluation.systems.rag import Prompter, Way, require_retriever, with_sources
from luthier.examples import Example


class FineTunedRag(System):
    """The model fine-tuned on retrieved passages, with retrieved passages."""

    rung: ClassVar[Rung] = "fine_tune+rag"
    trained_on: ClassVar[TrainedOn | None] = "passages"
    uses_retriever: ClassVar[bool] = True

    def answer(self, rows: Sequence[Example], context: Context) -> Answers:
        """The trained model's answers, each with the ids of the passages that it was given.

        Raises:
            EvaluationError: nothing was trained yet, the recipe has no passages, or a row leaves no room for an answer.
            RetrievalError: passages cannot be searched.
        """
        questions = require_questions(rows, "fine_tuned_rag")
        retriever = require_retriever(context, "fine_tuned_rag")
        if context.tuned_fingerprint is None:
            raise EvaluationError(
                "the system fine_tuned_rag needs a training on retrieved passages; run `luthier train` first, or "
                "leave it out"
            )
        require_writer(context, "fine_tuned_rag")
        made = Prompter(retriever, context, "").made(questions, Way(Addition(), retriever.top_k))
        answers, seconds = answer_with_model(rows, [one.prompt for one in made], context, "fine_tuned_rag")
        found = sum(len(one.passages) for one in made)
        details = {"retriever": retriever.name, "mean_passages": found / max(len(made), 1)}
        return Answers(with_sources(answers, made), seconds, details)
