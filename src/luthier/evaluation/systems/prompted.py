"""The base model behind the prompt of `[teacher]`: what a model that shall do without it is compared with.

Nothing competes: the prompt is the one that is learned, in the very form in which the teacher reads it.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field

from luthier.errors import EvaluationError
from luthier.evaluation.answering import answer_with_model
from luthier.evaluation.long_prompt import LongPrompt
from luthier.evaluation.rungs import Rung
from luthier.evaluation.systems.base import Answers, Context, System, require_questions, with_answer_room
from luthier.examples import Example


class Prompted(System):
    """The base model with the teacher's prompt."""

    rung: ClassVar[Rung] = "few_shot"

    answer_room: float = Field(2.0, ge=1)
    """Longest answer, in multiples of `evaluation.max_new_tokens`."""

    def identity(self, context: Context) -> str:
        """Changes when the prompt does."""
        return self._prompt(context).fingerprint

    def answer(self, rows: Sequence[Example], context: Context) -> Answers:
        """The base model's answers; `details` tells the prompt.

        Raises:
            EvaluationError: the recipe's teacher has no prompt, or a row leaves no room for an answer behind it.
        """
        prompt, questions = self._prompt(context), require_questions(rows, "prompted")
        asked = [prompt.before(row.prompt) for row in questions]
        with context.adapter_disabled():
            answers, seconds = answer_with_model(rows, asked, with_answer_room(context, self.answer_room), "prompted")
        details: dict[str, Any] = {"instruction": prompt.instruction}
        if prompt.examples:
            details["mean_shots"] = float(len(prompt.examples))
        return Answers(answers, seconds, details)

    def _prompt(self, context: Context) -> LongPrompt:
        if context.long_prompt is None:
            raise EvaluationError(
                "the system prompted asks with the prompt of [teacher], and the recipe has none: write teacher.prompt "
                "or teacher.examples, or leave the system out"
            )
        return context.long_prompt
