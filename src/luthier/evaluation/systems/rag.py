"""The base model with retrieved passages before the question, asked in the best of a few ways.

For each row the passages of `[retrieval]` that answer its question best stand before it, numbered (`rag/prompt.py`).
Four ways to ask compete on validation rows: all of `retrieval.top_k` passages or the first alone, each with nothing
added and with what says most about the task after the question (in the system message if it is long). What differs
comes last, so that most of a row's prompts is computed once. Where a prompt leaves no room for an answer, passages are
left out from the last on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from pydantic import Field

from luthier.errors import EvaluationError
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
from luthier.examples import Conversation, Example, Message
from luthier.rag.passages import Passage
from luthier.rag.prompt import question_of, with_passages
from luthier.rag.retriever import Retriever


@dataclass(frozen=True)
class Way:
    """A way to ask: what is added to the prompt, and how many passages stand in it."""

    addition: Addition
    passages: int

    def dump(self) -> dict[str, Any]:
        """`addition`, `place` and `passages`, for the records."""
        return {**self.addition.dump(), "passages": self.passages}


class Rag(System):
    """The base model with retrieved passages, asked in the best of a few ways."""

    uses_retriever: ClassVar[bool] = True

    instruction: str = ""
    """Always added to the system message, before an addition that competes."""
    tune_rows: int = Field(20, ge=0)
    """Validation rows on which the ways to ask compete; 0: all passages and `instruction` alone."""
    answer_room: float = Field(2.0, ge=1)
    """Longest answer, in multiples of `evaluation.max_new_tokens`."""

    def answer(self, rows: Sequence[Example], context: Context) -> Answers:
        """The base model's answers, each with the ids of the passages that it was given; `details` records every way
        and its score, and the rows with fewer passages than the winner has.

        Raises:
            EvaluationError: the recipe has no passages, a row leaves no room for an answer, or a validation row has a
                target of another kind.
            RetrievalError: passages cannot be searched.
        """
        questions = require_questions(rows, "rag")
        retriever = require_retriever(context, "rag")
        context = with_answer_room(context, self.answer_room)
        prompter = Prompter(retriever, context, self.instruction)
        counts = dict.fromkeys((retriever.top_k, 1))
        ways = [Way(a, count) for count in counts for a in (Addition(), additions(suggested(context)[-1:])[-1])]
        with context.adapter_disabled():
            way, tried = choose(ways, prompter.prompts, self.tune_rows, context, "rag")
            made = prompter.made(questions, way)
            answers, seconds = answer_with_model(rows, [prompt for prompt, _ in made], context, "rag")
        answers = [
            replace(answer, sources=tuple(passage.id for passage in passages))
            for answer, (_, passages) in zip(answers, made, strict=True)
        ]
        details: dict[str, Any] = {
            "retriever": retriever.name,
            "mean_passages": sum(len(passages) for _, passages in made) / max(len(made), 1),
            "instruction": self.instruction,
            **way.dump(),
            "tried": tried,
        }
        if fewer := [row.id for row, (_, passages) in zip(rows, made, strict=True) if len(passages) < way.passages]:
            details["rows_with_fewer_passages"] = fewer
        return Answers(answers, seconds, details)


def require_retriever(context: Context, system: str) -> Retriever:
    """The retriever of the context.

    Raises:
        EvaluationError: there is none.
    """
    if context.retriever is None:
        raise EvaluationError(
            f"the system {system} answers with retrieved passages, and the recipe does not say where they come from: "
            'write a table [retrieval] with corpus = "corpus.jsonl", or leave the system out of evaluation.systems'
        )
    return context.retriever


class Prompter:
    """Makes prompts with passages; what was found for a question is kept while ways compete."""

    def __init__(self, retriever: Retriever, context: Context, instruction: str) -> None:
        self.retriever, self.context, self.instruction = retriever, context, instruction
        self._found: dict[str, tuple[Passage, ...]] = {}

    def prompts(self, rows: Sequence[Conversation], way: Way) -> list[tuple[Message, ...]]:
        """The prompt of each row."""
        return [prompt for prompt, _ in self.made(rows, way)]

    def made(self, rows: Sequence[Conversation], way: Way) -> list[tuple[tuple[Message, ...], tuple[Passage, ...]]]:
        """The prompt of each row, and the passages in it."""
        self._search([question_of(row.prompt) for row in rows])
        return [self._prompt(row, way) for row in rows]

    def _search(self, questions: Sequence[str]) -> None:
        new = [question for question in dict.fromkeys(questions) if question not in self._found]
        for question, hits in zip(new, self.retriever.search(new, self.retriever.top_k), strict=True):
            self._found[question] = tuple(hit.passage for hit in hits)

    def _prompt(self, row: Conversation, way: Way) -> tuple[tuple[Message, ...], tuple[Passage, ...]]:
        """As many of the best passages as leave room for an answer. Where the addition leaves none even without
        passages, it is left out."""
        plain = with_instruction(row.prompt, self.instruction)
        passages = self._found[question_of(row.prompt)][: way.passages]
        for addition in (way.addition, Addition()):
            for count in range(len(passages), -1, -1):
                prompt = addition.apply(with_passages(plain, passages[:count]))
                if has_room(row, prompt, self.context, self.context.max_new_tokens):
                    return prompt, passages[:count]
        return plain, ()
