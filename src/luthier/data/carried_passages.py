"""Where the passages of an answer are found: the one place that knows how rows and prompts carry them.

A row carries them in a field that no format claims: `passages` or `context`. A system that retrieves writes them into
its prompt, below `Passages:` and numbered, before what the user asked:

    Passages:

    [1] Title
    Text of the passage.

    Answer from these passages.

    The user's own words.

A prompt that a person wrote is read where it names its parts: `Context:` (or `Passage:`, `Document:`, `Text:`) and
`Question:`, in either order. What stands in a prompt goes before what the row carries, because it is what the system
read.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

HEADING = "Passages:"
REQUEST = "Answer from these passages."
"""Before and after the passages in a prompt (`rag/prompt.py` writes them)."""
FIELDS = ("passages", "context")
RIGHT_TEXTS, WRONG_TEXTS = "right_texts", "wrong_texts"
"""Where `extra` keeps passages that answer a row's question, and some that do not (format `question_passages`)."""
LEAST_WORDS = 8
"""From which a text of a row that stands in its prompt is a passage, and no word of the question."""
_TEXT_KEYS = ("text", "content", "passage", "body")
_NUMBERED = re.compile(r"^\[\d+\] ", re.MULTILINE)
_TEXT = r"\s*(?:context|passages?|documents?|text)\s*:\s*\n?(?P<text>.+?)"
_QUESTION = r"\s*question\s*:\s*(?P<question>.+?)"
_NAMED = [
    re.compile(rf"(?:^|\n){first}\n{second}(?:\n\s*answer\s*:\s*)?$", re.IGNORECASE | re.DOTALL)
    for first, second in ((_TEXT, _QUESTION), (_QUESTION, _TEXT))
]


def passages_of(prompt: Sequence[Mapping[str, Any]], extra: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """The question and the passages that its answer should rest on; no passages if there are none.

    Args:
        prompt: messages as plain values, `role` and `content`, as records hold them.
        extra: fields of the row that no format claims.
    """
    asked = next((str(m.get("content", "")) for m in reversed(prompt) if m.get("role") == "user"), "")
    question, passages = _in_prompt(asked)
    if passages:
        return question, passages
    carried = next((found for name in FIELDS if (found := _texts(extra.get(name)))), ())
    return asked.strip(), carried


def question_of(text: str, extra: Mapping[str, Any]) -> str:
    """What a turn asks, without the passages that it carries and those of the row that stand in it word for word."""
    question, passages = _in_prompt(text)
    if passages:
        return question
    for passage in (passage for name in FIELDS for passage in _texts(extra.get(name))):
        for part in (passage.strip(), passage.partition("\n")[2].strip()):  # with a title before it, and without
            if len(part.split()) >= LEAST_WORDS:
                text = text.replace(part, " ")
    return text


def _in_prompt(asked: str) -> tuple[str, tuple[str, ...]]:
    """What the user wrote after the passages, and the passages."""
    start = asked.find(HEADING)
    end = asked.find(REQUEST, start)
    if start >= 0 and end >= 0:
        block = asked[start + len(HEADING) : end]
        passages = tuple(part.strip() for part in _NUMBERED.split(block) if part.strip())
        return asked[end + len(REQUEST) :].strip(), passages
    named = next((found for pattern in _NAMED if (found := pattern.search(asked))), None)
    return (named["question"].strip(), (named["text"].strip(),)) if named else ("", ())


def _texts(value: Any) -> tuple[str, ...]:
    """Passages as data sets write them: one text, a list of texts, or objects that hold a text each."""
    if isinstance(value, str):
        return (value,) if value.strip() else ()
    if isinstance(value, Mapping):
        text = next((value[key] for key in _TEXT_KEYS if isinstance(value.get(key), str)), "")
        title = value.get("title")
        return (f"{title}\n{text}" if isinstance(title, str) and title else text,) if text.strip() else ()
    if isinstance(value, Sequence):
        return tuple(text for part in value for text in _texts(part))
    return ()
