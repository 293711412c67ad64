"""The base model with solved examples in its prompt: for each row the most similar training rows.

Examples are retrieved by BM25 (Robertson and Zaragoza 2009, by the `bm25s` library) over what users wrote, from
training rows only, and stand before the question as earlier turns, the most similar one last. A training row that
equals or nearly equals the asked row would give the answer away, so it is never used.

Four ways to ask compete on validation rows: the most similar rows, or such rows that also differ from each other; each
with nothing added, and with the addition that says most about the task.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
from pydantic import Field

from luthier.errors import EvaluationError
from luthier.evaluation.answering import answer_with_model
from luthier.evaluation.rungs import Rung
from luthier.evaluation.systems._prompts import Addition, choose, has_room, suggested
from luthier.evaluation.systems.base import (
    Answers,
    Context,
    System,
    require_questions,
    with_answer_room,
    with_examples,
    with_instruction,
)
from luthier.examples import Conversation, Example, Message
from luthier.rag.lexical import most_similar, words
from luthier.rag.prompt import last_question

NEARLY_EQUAL = 0.9
"""Share of words in common (Jaccard) from which two questions count as the same."""
NEAR_COPY = 0.6
"""Share of words in common from which one example shows little that the other does not."""
LOOKED_AT = 200
"""Of the training rows only this many, the most similar, are compared word by word with the row that is asked."""

Choice: TypeAlias = Literal["nearest", "diverse"]


@dataclass(frozen=True)
class Way:
    """A way to ask: what is added to the system message, and how examples are chosen."""

    addition: Addition
    examples: Choice

    def dump(self) -> dict[str, Any]:
        """`addition`, `place` and `examples`, for the records."""
        return {**self.addition.dump(), "examples": self.examples}


class FewShot(System):
    """The base model with retrieved examples, asked in the best of a few ways."""

    rung: ClassVar[Rung] = "few_shot"

    shots: int = Field(3, ge=1)
    """Examples before each question; fewer where the model's context would overflow."""
    instruction: str = ""
    """Always added to the system message, before an addition that competes."""
    tune_rows: int = Field(20, ge=0)
    """Validation rows on which four ways to ask compete; 0: the most similar examples and `instruction` alone."""
    answer_room: float = Field(2.0, ge=1)
    """Longest answer, in multiples of `evaluation.max_new_tokens`."""

    def answer(self, rows: Sequence[Example], context: Context) -> Answers:
        """The base model's answers; `details` records every way and its score, and the rows with fewer examples.

        Raises:
            EvaluationError: there are no training rows to take examples from, a row leaves no room for an answer, or a
                validation row has a target of another kind.
        """
        questions = require_questions(rows, "few_shot")
        prompter = Prompter(self, context)
        roomy = with_answer_room(context, self.answer_room)
        ways = [Way(a, e) for a in (Addition(), Addition(suggested(context)[-1])) for e in ("nearest", "diverse")]
        with context.adapter_disabled():
            way, tried = choose(ways, prompter.prompts, self.tune_rows, roomy, "few_shot")
            made = [prompter.prompt(row, way) for row in questions]
            answers, seconds = answer_with_model(rows, [prompt for prompt, _ in made], roomy, "few_shot")
        fewer = [row.id for row, (_, count) in zip(rows, made, strict=True) if count < self.shots]
        details: dict[str, Any] = {
            "shots": self.shots,
            "retriever": "bm25",
            "mean_shots": sum(count for _, count in made) / max(len(made), 1),
            "instruction": self.instruction,
            **way.dump(),
            "tried": tried,
        }
        if fewer:
            details["rows_with_fewer_shots"] = fewer
        return Answers(answers, seconds, details)


class Prompter:
    """Makes the prompts of one evaluation."""

    def __init__(self, system: FewShot, context: Context) -> None:
        self.system = system
        self.context = context
        self.retriever = Retriever(context.train)

    def prompts(self, rows: Sequence[Conversation], way: Way) -> list[tuple[Message, ...]]:
        """The prompt of each row."""
        return [self.prompt(row, way)[0] for row in rows]

    def prompt(self, row: Conversation, way: Way) -> tuple[tuple[Message, ...], int]:
        """The prompt with as many of the nearest examples as leave room for an answer, and how many those are.

        The room is that of a trained model's answer: an example is worth more than room to ramble. Where the addition
        leaves no room even without examples, it is left out.
        """
        plain = with_instruction(row.prompt, self.system.instruction)
        examples = self.retriever.similar(row, self.system.shots, way.examples)
        for own in (way.addition.apply(plain), plain):
            for count in range(len(examples), -1, -1):
                prompt = with_examples(own, examples[len(examples) - count :])
                if has_room(row, prompt, self.context, self.context.max_new_tokens):
                    return prompt, count
        return plain, 0


def question(row: Conversation) -> str:
    """What the user wrote last."""
    return last_question(row.prompt)


def overlap(a: frozenset[str], b: frozenset[str]) -> float:
    """Jaccard index: the share of all words that both have; 1 for two empty sets."""
    return len(a & b) / len(a | b) if a or b else 1.0


class Retriever:
    """Finds training rows whose question is similar to a given one."""

    def __init__(self, train: Sequence[Conversation]) -> None:
        import bm25s

        by_question: dict[str, Conversation] = {}  # the same question twice would teach nothing
        for row in train:
            if row.completion is not None and words(question(row)):
                by_question.setdefault(question(row), row)
        self.train = list(by_question.values())
        if not self.train:
            raise EvaluationError(
                "the system few_shot takes its examples from the training rows, and none of them has a question and an "
                "answer; leave the system out, or give such rows in data.train"
            )
        self._words = [words(question(row)) for row in self.train]
        self._sets = [frozenset(w) for w in self._words]
        self._index = bm25s.BM25()
        self._index.index(self._words, show_progress=False)

    def similar(self, row: Conversation, count: int, choice: Choice = "nearest") -> list[Conversation]:
        """At most `count` training rows, the most similar last; never one that equals or nearly equals `row`.

        `diverse` passes over a row that shares most words with one already chosen, as long as there are others among
        the `LOOKED_AT` most similar ones.
        """
        chosen: list[int] = []
        passed_over: list[int] = []
        for index in self._candidates(row):
            if len(chosen) == count:
                break
            is_near_copy = any(overlap(self._sets[index], self._sets[other]) >= NEAR_COPY for other in chosen)
            (passed_over if choice == "diverse" and is_near_copy else chosen).append(index)
        chosen += passed_over[: count - len(chosen)]
        return [self.train[index] for index in reversed(chosen)]

    def _candidates(self, row: Conversation) -> Iterator[int]:
        """Rows that may be shown, the most similar first."""
        asked = words(question(row))
        scores = self._index.get_scores(asked) if asked else np.zeros(len(self.train))
        for index in most_similar(scores, LOOKED_AT):
            if not self._gives_away(index, row, frozenset(asked)):
                yield index

    def _gives_away(self, index: int, row: Conversation, asked: frozenset[str]) -> bool:
        other = self.train[index]
        if (row.id and other.id == row.id) or (row.group is not None and other.group == row.group):
            return True
        return overlap(asked, self._sets[index]) >= NEARLY_EQUAL
