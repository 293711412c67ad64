"""The base model with retrieved passages before the question, asked in the best of a few ways.

For each row the passages of `[retrieval]` that answer its question best stand before it, numbered (`rag/prompt.py`).
Six ways to ask compete on validation rows: all of `retrieval.top_k` passages or the first alone, each with nothing
added, with what says most about the task after the question (in the system message if it is long), and with solved
training rows as earlier turns, each with its own first passage: they show the form of an answer, and that it is taken
from a passage. Where a prompt leaves no room for an answer, passages are left out from the last on, then the examples.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from pydantic import Field

from luthier.errors import EvaluationError
from luthier.evaluation.answering import answer_with_model
from luthier.evaluation.rungs import Rung
from luthier.evaluation.systems._prompts import Addition, additions, choose, has_room, suggested
from luthier.evaluation.systems.base import (
    Answer,
    Answers,
    Context,
    System,
    require_questions,
    with_answer_room,
    with_examples,
    with_instruction,
)
from luthier.evaluation.systems.few_shot import Retriever as SimilarRows
from luthier.examples import Conversation, Example, Message
from luthier.rag.lexical import words
from luthier.rag.passages import Passage
from luthier.rag.prompt import last_question, with_passages
from luthier.rag.retriever import Retriever


@dataclass(frozen=True)
class Way:
    """A way to ask: what is added to the prompt, and how many passages and solved rows stand in it."""

    addition: Addition
    passages: int
    shots: int = 0

    def dump(self) -> dict[str, Any]:
        """`addition`, `place`, `examples` and `passages`, for the records."""
        return {**self.addition.dump(), "examples": "nearest" if self.shots else "", "passages": self.passages}


@dataclass(frozen=True)
class Made:
    """A prompt, and what of the corpus and of the training rows stands in it."""

    prompt: tuple[Message, ...]
    passages: tuple[Passage, ...]
    shots: int


class Rag(System):
    """The base model with retrieved passages, asked in the best of a few ways."""

    rung: ClassVar[Rung] = "rag"
    uses_retriever: ClassVar[bool] = True

    instruction: str = ""
    """Always added to the system message, before an addition that competes."""
    shots: int = Field(3, ge=0)
    """Solved training rows before the question, in the ways that show some; 0: no such way competes."""
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
        with context.adapter_disabled():
            way, tried = choose(self._ways(prompter, context), prompter.prompts, self.tune_rows, context, "rag")
            made = prompter.made(questions, way)
            answers, seconds = answer_with_model(rows, [one.prompt for one in made], context, "rag")
        details: dict[str, Any] = {
            "retriever": retriever.name,
            "mean_passages": sum(len(one.passages) for one in made) / max(len(made), 1),
            **({"mean_shots": sum(one.shots for one in made) / max(len(made), 1)} if way.shots else {}),
            "instruction": self.instruction,
            **way.dump(),
            "tried": tried,
        }
        if fewer := [row.id for row, one in zip(rows, made, strict=True) if len(one.passages) < way.passages]:
            details["rows_with_fewer_passages"] = fewer
        return Answers(with_sources(answers, made), seconds, details)

    def _ways(self, prompter: "Prompter", context: Context) -> list[Way]:
        counts = dict.fromkeys((prompter.retriever.top_k, 1))
        fullest = additions(suggested(context)[-1:])[-1]
        ways = [Way(addition, count) for count in counts for addition in (Addition(), fullest)]
        if self.shots and prompter.similar_rows is not None:
            ways += [Way(Addition(), count, self.shots) for count in counts]
        return ways


def with_sources(answers: Sequence[Answer], made: Sequence[Made]) -> list[Answer]:
    """Each answer with the ids of the passages that stood in its prompt."""
    return [
        replace(answer, sources=tuple(passage.id for passage in one.passages))
        for answer, one in zip(answers, made, strict=True)
    ]


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
        solved = [row for row in context.train if row.completion is not None and words(last_question(row.prompt))]
        self.similar_rows = SimilarRows(solved) if solved else None
        """Finds training rows to show; None where there are none."""
        self._found: dict[str, tuple[Passage, ...]] = {}

    def prompts(self, rows: Sequence[Conversation], way: Way) -> list[tuple[Message, ...]]:
        """The prompt of each row."""
        return [one.prompt for one in self.made(rows, way)]

    def made(self, rows: Sequence[Conversation], way: Way) -> list[Made]:
        """The prompt of each row, and what is in it."""
        shown = [self._similar(row, way.shots) for row in rows]
        self._search([*rows, *(example for examples in shown for example in examples)])
        return [self._make(row, way, examples) for row, examples in zip(rows, shown, strict=True)]

    def _similar(self, row: Conversation, count: int) -> list[Conversation]:
        return self.similar_rows.similar(row, count) if count and self.similar_rows is not None else []

    def _search(self, rows: Sequence[Conversation]) -> None:
        asked = dict.fromkeys(last_question(row.prompt) for row in rows)
        new = [question for question in asked if question not in self._found]
        for question, hits in zip(new, self.retriever.search(new, self.retriever.top_k), strict=True):
            self._found[question] = tuple(hit.passage for hit in hits)

    def passages_of(self, row: Conversation, count: int) -> tuple[Passage, ...]:
        """The first passages for a row that was searched for."""
        return self._found[last_question(row.prompt)][:count]

    def _make(self, row: Conversation, way: Way, examples: Sequence[Conversation]) -> Made:
        found = (
            made
            for made in self._candidates(row, way, examples)
            if has_room(row, made.prompt, self.context, self.context.max_new_tokens)
        )
        return next(found, Made(with_instruction(row.prompt, self.instruction), (), 0))

    def _candidates(self, row: Conversation, way: Way, examples: Sequence[Conversation]) -> Iterator[Made]:
        """The prompt that is meant, then shorter and shorter ones."""
        plain, passages = with_instruction(row.prompt, self.instruction), self.passages_of(row, way.passages)
        solved = [self._solved(example) for example in examples]
        for addition, turns in ((way.addition, solved), (way.addition, []), (Addition(), [])):
            fewest = min(1, len(passages)) if turns else 0  # examples go before the last passage does
            for count in range(len(passages), fewest - 1, -1):
                asked = addition.apply(with_passages(plain, passages[:count]))
                yield Made(with_examples(asked, turns), passages[:count], len(turns))

    def _solved(self, example: Conversation) -> Conversation:
        """A training row that is asked with its own first passage."""
        assert example.completion is not None
        asked = with_passages(example.prompt, self.passages_of(example, 1))
        return replace(example, messages=(*asked, example.completion))
