"""The fine-tuned model with solved examples in its prompt: whether what examples bring is left after training.

Examples are found as `few_shot` finds them. The prompt that was trained with stays as it is, so nothing is added to it;
what competes on validation rows is no example at all, the most similar ones, and ones that also differ from each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import Field

from luthier.errors import EvaluationError
from luthier.evaluation.answering import answer_with_model
from luthier.evaluation.classes import require_writer
from luthier.evaluation.rungs import Rung
from luthier.evaluation.systems._prompts import Addition, choose
from luthier.evaluation.systems.base import Answers, Context, System, TrainedOn, require_questions
from luthier.evaluation.systems.few_shot import FewShot, Prompter, Way
from luthier.examples import Conversation, Example, Message


@dataclass(frozen=True)
class _Plain:
    """The prompt that was trained with, without an example."""

    def dump(self) -> dict[str, Any]:
        return {**Addition().dump(), "examples": "none"}


class FineTunedFewShot(System):
    """The fine-tuned model with retrieved examples, where they help on validation rows."""

    rung: ClassVar[Rung] = "fine_tune"
    trained_on: ClassVar[TrainedOn | None] = "rows"

    shots: int = Field(3, ge=1)
    """Examples before each question; fewer where the model's context would overflow."""
    tune_rows: int = Field(20, ge=0)
    """Validation rows on which none, the nearest and diverse examples compete; 0: the nearest ones are used."""

    def answer(self, rows: Sequence[Example], context: Context) -> Answers:
        """The trained model's answers; `details` records each way to ask and its score.

        Raises:
            EvaluationError: nothing was trained yet, there are no training rows to take examples from, or a row leaves
                no room for an answer.
        """
        if context.tuned_fingerprint is None:
            raise EvaluationError(
                "the system fine_tuned_few_shot needs trained weights; run `luthier train` first, or leave it out"
            )
        require_writer(context, "fine_tuned_few_shot")
        questions = require_questions(rows, "fine_tuned_few_shot")
        prompter = Prompter(FewShot(shots=self.shots), context)
        ways: list[Way | _Plain] = [Way(Addition(), "nearest"), Way(Addition(), "diverse"), _Plain()]

        def ask(asked: Sequence[Conversation], way: Way | _Plain) -> list[tuple[Message, ...]]:
            return [row.prompt for row in asked] if isinstance(way, _Plain) else prompter.prompts(asked, way)

        way, tried = choose(ways, ask, self.tune_rows, context, "fine_tuned_few_shot")
        answers, seconds = answer_with_model(rows, ask(questions, way), context, "fine_tuned_few_shot")
        details = {"shots": self.shots, "retriever": "bm25", **way.dump(), "tried": tried}
        return Answers(answers, seconds, details)
