"""Which of two answers a judge prefers, asked with both orders: one order alone prefers a place, not an answer.

An answer wins a row if the judge names it in both orders; whatever else it says is a tie (Zheng et al. 2023, Judging
LLM-as-a-Judge, arXiv:2306.05685, section 3.4). How often a judge names the first place, and the longer answer, is told
beside what it prefers.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from luthier.evaluation.systems.base import message_text
from luthier.examples import Conversation, Message

Choice: TypeAlias = Literal["first", "second", "tie"]
Outcome: TypeAlias = Literal["a", "b", "tie"]
ANSWER_TOKENS = 16
"""Room for the judge's reply, which is a word."""
_ASKED = (
    "Two assistants answered the same request. Say whose answer is the better one by this standard: {criterion}.\n\n"
    "[Request]\n{request}\n\n[Answer A]\n{first}\n\n[Answer B]\n{second}\n\n"
    "Which answer is better by the standard? The order of the answers means nothing. "
    "Reply with one word: A, B, or tie."
)
_CHOICES: Mapping[str, Choice] = {"a": "first", "b": "second", "tie": "tie"}
_NAMED = re.compile(r"\b(A|B|[Tt]ie|TIE)\b")


@dataclass(frozen=True)
class Pair:
    """Two answers to one request; equal ones are a tie that nobody is asked about."""

    id: str
    request: str
    a: str
    b: str

    @property
    def is_equal(self) -> bool:
        """Whether both say the same."""
        return self.a.strip() == self.b.strip()


@dataclass(frozen=True)
class Judged:
    """What a judge said of a pair, the answers standing as (a, b) and as (b, a)."""

    orders: tuple[Choice | None, Choice | None]
    """None: its reply named nothing."""

    @property
    def outcome(self) -> Outcome:
        """Who won: whoever was named in both orders."""
        if self.orders == ("first", "second"):
            return "a"
        return "b" if self.orders == ("second", "first") else "tie"


def request_of(prompt: Sequence[Message]) -> str:
    """What was asked, as a judge reads it; turns of a longer talk are told apart."""
    if len(prompt) == 1:
        return message_text(prompt[0])
    return "\n\n".join(f"{message.role}: {message_text(message)}" for message in prompt)


def questions(pair: Pair, criterion: str) -> tuple[Conversation, Conversation]:
    """What a judge is asked, in both orders."""
    return _question(pair, pair.a, pair.b, criterion, "ab"), _question(pair, pair.b, pair.a, criterion, "ba")


def _question(pair: Pair, first: str, second: str, criterion: str, order: str) -> Conversation:
    text = _ASKED.format(criterion=criterion, request=pair.request, first=first.strip(), second=second.strip())
    return Conversation((Message("user", text),), id=f"{pair.id}:{order}")


def read_choice(reply: str) -> Choice | None:
    """What a reply names: the first of A, B and tie that stands in it; None: nothing."""
    found = _NAMED.search(reply)
    if found is None:
        return None
    return _CHOICES[found[1].lower()]


def read_replies(replies: Sequence[str]) -> list[Judged]:
    """Replies to `questions` of one pair after the other."""
    return [Judged((read_choice(x), read_choice(y))) for x, y in zip(replies[::2], replies[1::2], strict=True)]
