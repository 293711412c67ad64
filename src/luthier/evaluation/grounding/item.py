"""An answer beside the passages that it should rest on. No torch here."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

Verdict: TypeAlias = Literal["supported", "unsupported", "abstained"]
VERDICTS: tuple[Verdict, ...] = ("supported", "unsupported", "abstained")

SIGNALS = ("yes", "lift", "surprise")
"""What a judge tells of an item; `judge.py` defines them."""


@dataclass(frozen=True, slots=True)
class Item:
    """What is judged.

    Supported: the passages say, in whatever words, all that the answer says. Unsupported: they do not say a part of it.
    Abstained: the answer says that it has none, or says nothing.
    """

    id: str
    question: str
    answer: str
    passages: tuple[str, ...]
    """At least one."""
