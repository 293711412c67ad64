"""The base model with a prompt alone, and a prompt that somebody tried to make good.

A few additions to the row's own prompt, fitted to the task (the allowed keys, the form, the labels), compete on
validation rows, each in the system message and after the question; the winner answers the test rows. Untrained models
are wordy, so their answers may be longer than those of the model that learned the format.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from pydantic import Field

from luthier.evaluation.answering import answer_with_model
from luthier.evaluation.systems._prompts import Addition, additions, choose, has_room, suggested
from luthier.evaluation.systems.base import (
    Answers,
    Context,
    System,
    require_questions,
    with_answer_room,
    with_instruction,
)
from luthier.evaluation.task import SCORED_TASKS
from luthier.examples import Conversation, Example, Message


class ZeroShot(System):
    """The base model, asked with the best of a few prompts."""

    instruction: str = ""
    """Always added to the system message, before any addition that competes."""
    variants: tuple[str, ...] = ()
    """More additions that compete with the built-in ones."""
    tune_rows: int = Field(20, ge=0)
    """Validation rows on which the additions compete; 0: none is tried, `instruction` alone is used."""
    answer_room: float = Field(2.0, ge=1)
    """Longest answer, in multiples of `evaluation.max_new_tokens`."""

    def answer(self, rows: Sequence[Example], context: Context) -> Answers:
        """The base model's answers with the winning prompt; `details` records every candidate and its score, and the
        rows that were asked without the addition because it left no room for an answer.

        Raises:
            EvaluationError: a row leaves no room for an answer, or a validation row has a target of another kind.
        """
        if context.task in SCORED_TASKS:
            return self._score(rows, context)
        return self._ask(require_questions(rows, "zero_shot"), context)

    def _score(self, rows: Sequence[Example], context: Context) -> Answers:
        """Nothing competes: an addition says how to answer, and nothing is answered."""
        with context.adapter_disabled():
            answers, seconds = answer_with_model(rows, [self._own(row) for row in rows], context, "zero_shot")
        return Answers(answers, seconds, {"instruction": self.instruction})

    def _ask(self, rows: Sequence[Conversation], context: Context) -> Answers:
        context = with_answer_room(context, self.answer_room)
        candidates = additions([*self.variants, *suggested(context)])
        ask = partial(self._prompts, context)
        with context.adapter_disabled():
            winner, tried = choose(candidates, ask, self.tune_rows, context, "zero_shot")
            prompts = ask(rows, winner)
            answers, seconds = answer_with_model(rows, prompts, context, "zero_shot")
        details: dict[str, Any] = {"instruction": self.instruction, **winner.dump(), "tried": tried}
        plain = [r.id for r, prompt in zip(rows, prompts, strict=True) if winner.text and prompt == self._own(r)]
        if plain:
            details["rows_without_addition"] = plain
        return Answers(answers, seconds, details)

    def _own(self, row: Example) -> tuple[Message, ...]:
        return with_instruction(row.prompt, self.instruction)

    def _prompts(self, context: Context, rows: Sequence[Conversation], addition: Addition) -> list[tuple[Message, ...]]:
        full = [addition.apply(self._own(row)) for row in rows]
        return [p if has_room(row, p, context) else self._own(row) for row, p in zip(rows, full, strict=True)]
