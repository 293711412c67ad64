"""Question and passages: {"question", "positive"}, and maybe "negatives", for an embedder or a reranker.

`positive` is a text that answers the question, or a list of such texts; `negatives` are texts that do not, though they
look so. Other names are those of sentence-transformers (`anchor`, `positive`, `negative`) and FlagEmbedding (`query`,
`pos`, `neg`). The question is the user's turn and the first right text the assistant's; all texts are kept in `extra`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from luthier.data.carried_passages import RIGHT_TEXTS, WRONG_TEXTS
from luthier.data.formats.base import Fields
from luthier.data.read import Record, kind_of
from luthier.examples import Conversation, Message

SAMPLE: Mapping[str, Any] = {
    "question": "When was the bridge opened?",
    "positive": "The bridge was opened in 1851.",
    "negatives": ["The bridge is 90 m long."],
}
QUESTION, POSITIVE = ("question", "query", "anchor"), ("positive", "positives", "pos")
NEGATIVE = ("negatives", "negative", "neg")


def matches(values: Mapping[str, Any]) -> bool:
    """A row with a question and a text that answers it."""
    return any(name in values for name in QUESTION) and any(name in values for name in POSITIVE)


def parse(record: Record, instruction: str | None = None) -> Conversation:
    """The conversation of a row: the question, answered by its first text.

    Raises:
        DataError: a field is missing, there twice or of the wrong kind, or a text is empty.
    """
    fields = Fields(record)
    question = fields.text(_named(fields, QUESTION) or QUESTION[0])
    right = _texts(fields, _named(fields, POSITIVE) or POSITIVE[0])
    negative = _named(fields, NEGATIVE)
    wrong = [] if negative is None or record.values[negative] is None else _texts(fields, negative)
    if both := set(right) & set(wrong):
        raise fields.error(f"a text is both right and wrong: {min(both)!r:.80}")
    messages = (Message("user", question), Message("assistant", right[0]))
    made = fields.conversation(messages, instruction)
    return replace(made, extra={**made.extra, RIGHT_TEXTS: right, WRONG_TEXTS: wrong})


def _named(fields: Fields, names: Sequence[str]) -> str | None:
    """Which of the names the row has; None: none of them."""
    found = [name for name in names if name in fields.values]
    if len(found) > 1:
        raise fields.error(f"the row has both {found[0]!r} and {found[1]!r}; expected one of them")
    return found[0] if found else None


def _texts(fields: Fields, name: str) -> list[str]:
    """A text, or a list of texts, as a list; claimed."""
    value = fields.require(name)
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise fields.error(f"{name!r} is {kind_of(value)}; expected a text, or a list of texts")
    if not all(text.strip() for text in texts):
        raise fields.error(f"{name!r} holds an empty text")
    return list(dict.fromkeys(texts))
