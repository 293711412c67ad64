"""The base model with solved examples in its prompt: for each row the most similar training rows.

Examples are retrieved by BM25 (Robertson and Zaragoza 2009, by the `bm25s` library) over what users wrote, from
training rows only, and stand before the question as earlier turns, the most similar one last. A training row that
equals or nearly equals the test row would give the answer away, so it is never used.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import Field

from luthier.errors import EvaluationError
from luthier.evaluation.answering import answer_with_model
from luthier.evaluation.systems.base import Answers, Context, System, with_instruction
from luthier.examples import Conversation, Message

NEARLY_EQUAL = 0.9
"""Share of words in common (Jaccard) from which two questions count as the same."""

_WORD = re.compile(r"\w+")


class FewShot(System):
    """The base model with retrieved examples."""

    shots: int = Field(3, ge=1)
    """Examples before each question; fewer where the model's context would overflow."""
    instruction: str = ""
    """Added to the system prompt."""

    def answer(self, rows: Sequence[Conversation], context: Context) -> Answers:
        """The base model's answers; `details` says which rows got fewer examples than asked for.

        Raises:
            EvaluationError: there are no training rows to take examples from.
        """
        retriever = Retriever(context.train)
        prompts, counts = [], []
        for row in rows:
            prompt, count = self._prompt(row, retriever.similar(row, self.shots), context)
            prompts.append(prompt)
            counts.append(count)
        with context.adapter_disabled():
            answers, seconds = answer_with_model(rows, prompts, context, "few_shot")
        fewer = [row.id for row, count in zip(rows, counts, strict=True) if count < self.shots]
        details: dict[str, Any] = {
            "shots": self.shots,
            "retriever": "bm25",
            "mean_shots": sum(counts) / max(len(counts), 1),
        }
        if fewer:
            details["rows_with_fewer_shots"] = fewer
        return Answers(answers, seconds, details)

    def _prompt(
        self, row: Conversation, examples: Sequence[Conversation], context: Context
    ) -> tuple[tuple[Message, ...], int]:
        """The prompt with as many of the nearest examples as leave room for an answer, and how many those are."""
        own = with_instruction(row.prompt, self.instruction)
        for count in range(len(examples), 0, -1):
            prompt = with_examples(own, examples[-count:])
            if (
                len(context.template.prompt_ids(prompt, row.tools)) + context.max_new_tokens
                <= context.loaded.max_tokens
            ):
                return prompt, count
        return own, 0


def with_examples(messages: tuple[Message, ...], examples: Sequence[Conversation]) -> tuple[Message, ...]:
    """System messages, then each example as earlier turns without its own system message, then the question."""
    start = next((i for i, m in enumerate(messages) if m.role not in ("system", "developer")), len(messages))
    turns = [
        message
        for example in examples
        for message in (*example.prompt, example.completion)
        if message is not None and message.role not in ("system", "developer")
    ]
    return (*messages[:start], *turns, *messages[start:])


def question(row: Conversation) -> str:
    """What the user wrote last."""
    return next((message.content for message in reversed(row.prompt) if message.role == "user"), "")


def words(text: str) -> list[str]:
    """Runs of letters and digits in lower case."""
    return _WORD.findall(text.lower())


class Retriever:
    """Finds training rows whose question is similar to a given one."""

    def __init__(self, train: Sequence[Conversation]) -> None:
        import bm25s

        self.train = [row for row in train if row.completion is not None and words(question(row))]
        if not self.train:
            raise EvaluationError(
                "the system few_shot takes its examples from the training rows, and none of them has a question and an "
                "answer; leave the system out, or give such rows in data.train"
            )
        self._words = [words(question(row)) for row in self.train]
        self._sets = [frozenset(w) for w in self._words]
        self._index = bm25s.BM25()
        self._index.index(self._words, show_progress=False)

    def similar(self, row: Conversation, count: int) -> list[Conversation]:
        """At most `count` training rows, the most similar last; never one that equals or nearly equals `row`."""
        asked = words(question(row))
        scores = self._index.get_scores(asked) if asked else np.zeros(len(self.train))
        chosen: dict[str, int] = {}  # by question: the same example twice would teach nothing
        for index in np.argsort(-scores, kind="stable").tolist():  # equal scores: the earlier row
            if len(chosen) == count:
                break
            if not self._gives_away(index, row, frozenset(asked)):
                chosen.setdefault(question(self.train[index]), index)
        return [self.train[index] for index in reversed(chosen.values())]

    def _gives_away(self, index: int, row: Conversation, asked: frozenset[str]) -> bool:
        other = self.train[index]
        if (row.id and other.id == row.id) or (row.group is not None and other.group == row.group):
            return True
        known = self._sets[index]
        return len(asked & known) >= NEARLY_EQUAL * len(asked | known)
