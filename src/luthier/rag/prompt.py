"""How passages stand in a prompt: one wording, for systems that retrieve and for rows that train a model to read them.

Passages:

[1] Title
Text of the passage.

[2] ...

Answer from these passages.

The user's own words.
"""

from collections.abc import Sequence

from luthier.data.carried_passages import HEADING, REQUEST
from luthier.examples import Message
from luthier.rag.passages import Passage


def with_passages(messages: tuple[Message, ...], passages: Sequence[Passage]) -> tuple[Message, ...]:
    """The messages with numbered passages before what the user wrote last; unchanged where there are no passages.

    What a passage says is content like the question: no token of it can steer a template (`data/control_tokens.py`).
    """
    if not passages:
        return messages
    numbered = (f"[{number}] {passage.titled}" for number, passage in enumerate(passages, 1))
    block = "\n\n".join([HEADING, *numbered, REQUEST])
    at = _last_user(messages)
    if at is None:
        return (*messages, Message("user", block))
    asked = Message("user", f"{block}\n\n{messages[at].content}", name=messages[at].name)
    return (*messages[:at], asked, *messages[at + 1 :])


def last_question(messages: Sequence[Message]) -> str:
    """What the user wrote last, which is what is searched for; empty if no user wrote anything."""
    at = _last_user(messages)
    return "" if at is None else messages[at].content


def _last_user(messages: Sequence[Message]) -> int | None:
    return next((at for at in range(len(messages) - 1, -1, -1) if messages[at].role == "user"), None)
