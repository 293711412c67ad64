"""Question and answers: {"question", "answers"}, where any of the answers will do (the shape of SQuAD's rows).

The question, after the text in `context` if there is one, is the user's turn; the first answer is the assistant's; the
list of all is the example's target. Which passages of a corpus hold the answer may stand in `gold_passage_ids`, which
is kept in `extra`, where the measure of retrieval finds it.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from luthier.data.formats.base import Fields
from luthier.data.read import Record, kind_of
from luthier.examples import Conversation, Message

SAMPLE: Mapping[str, Any] = {"question": "When was the bridge opened?", "answers": ["1851", "in 1851"]}


def matches(values: Mapping[str, Any]) -> bool:
    """A row with `question` and `answers`."""
    return "question" in values and "answers" in values


def parse(record: Record, instruction: str | None = None) -> Conversation:
    """The conversation of a row: the question, answered by the first of its answers.

    Raises:
        DataError: a field is missing or of the wrong kind, or there is no answer.
    """
    fields = Fields(record)
    question, context = fields.text("question"), fields.optional_text("context")
    answers = _answers(fields)
    if fields.target() is not None:
        raise fields.error("the row has both 'answers' and 'target'; expected one of them, since the answers are it")
    asked = f"{context}\n\n{question}" if context else question
    messages = (Message("user", asked), Message("assistant", answers[0]))
    return replace(fields.conversation(messages, instruction), target=answers)


def _answers(fields: Fields) -> list[str]:
    value = fields.require("answers")
    if isinstance(value, Mapping) and "text" in value:  # SQuAD keeps the places of the answers beside them
        value = value["text"]
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise fields.error(f"'answers' is {kind_of(value)}; expected a list of texts, any of which will do")
    if not any(text.strip() for text in value):
        raise fields.error("'answers' holds no text; expected at least one answer")
    return [text for text in value if text.strip()]
