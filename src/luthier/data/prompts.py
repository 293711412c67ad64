"""What a row asks, as digests that the split, the data checks and the pre-flight compare alike.

Two rows ask the *same* if their system turns, tools and texts are equal, Unicode form (NFC) and blanks aside. They
ask *alike* if they are equal once case and the punctuation at the ends of each turn are folded as well, whatever the
system turn says. Only the same question is a proof that a held-out row was trained on: `5!` and `5` are alike.

A chat asks once for every reply that is trained on, so each of its prompts counts, and so does each longer user turn
by itself: the same question may stand in another chat after other turns.
"""

import functools
import hashlib
import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.examples import Conversation, Document, Example, Message

LONG_TURN = 20
"""Bytes of a folded user turn from which it is a question by itself; `thanks` and `go on` are none."""
COMMON_ROWS, COMMON_SHARE = 10, 0.1
SYSTEM_FACTOR = 10
_SYSTEM = ("system", "developer")


@dataclass(frozen=True, slots=True)
class Asked:
    """64-bit digests of what a row asks.

    `final`, the prompt of the last reply, and `trained`, the prompts of the other trained replies and longer user turns
    alone, tell who asks the same. `folded` (the last prompt without system turns), `whole` (with them) and `turns`
    (longer user turns alone, those equal to `folded` left out) tell who asks alike. `tools` stands for the tools.
    """

    final: int
    trained: tuple[int, ...]
    folded: int
    whole: int
    turns: tuple[int, ...]
    tools: int


def least_common(rows: int) -> float:
    """How many of `rows` rows must share a wording before it counts as a template and not as what a row says."""
    return max(COMMON_ROWS, COMMON_SHARE * rows)


def system_counts(asked: int, whole: int) -> bool:
    """Does the system turn belong to what is asked, as in "Summarize." about a text that stands in it?

    Args:
        asked: how many different prompts there are without system turns.
        whole: how many there are with them.
    """
    return asked * SYSTEM_FACTOR <= whole


def message_text(message: Message) -> str:
    """What a message says: its content, and its tool calls as canonical JSON."""
    if not message.tool_calls:
        return message.content
    calls = [{"name": call.name, "arguments": call.arguments} for call in message.tool_calls]
    text = json.dumps(calls, ensure_ascii=False, sort_keys=True, default=str)
    return f"{message.content}\n{text}" if message.content else text


def joined(messages: Iterable[Message]) -> str:
    """The texts of messages, a line break between them."""
    return "\n".join([message_text(message) for message in messages])


def is_trained(message: Message) -> bool:
    """Is this a turn that the default loss trains on?"""
    return message.role == "assistant" and message.weight != 0


def plain(text: str) -> str:
    """Text in Unicode NFC, with one space for each run of blanks."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    return " ".join(text.split())


def canonical(text: str) -> bytes:
    """Text as UTF-8 that two askers would call alike: `plain`, case folded, no punctuation at the ends.

    It keeps the punctuation inside, so `3+5` and `3-5` stay apart.
    """
    folded = plain(text).casefold()
    return (folded.strip(" .,;:!?\"'") or folded).encode("utf-8", "surrogatepass")


def digest(data: bytes) -> int:
    """64 bits that stand for `data`; among a million different texts two agree with probability 3e-8."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


class _LatestTools:
    """The tools seen last and their JSON: most rows of a file offer the same."""

    tools: Sequence[Mapping[str, Any]] = ()
    text = ""


def tools_text(tools: Sequence[Mapping[str, Any]]) -> str:
    """The tools of a row as canonical JSON; empty for none."""
    if not tools:
        return ""
    if tools != _LatestTools.tools:
        text = json.dumps(tools, ensure_ascii=False, sort_keys=True, default=str)
        _LatestTools.tools, _LatestTools.text = tools, text
    return _LatestTools.text


@functools.lru_cache(maxsize=64)
def tools_digest(text: str) -> int:
    """`digest` of the text of tools."""
    return digest(text.encode("utf-8", "surrogatepass"))


class _Stream:
    """A digest of messages as they come, each piece closed by a mark that no text holds after `plain`."""

    __slots__ = ("_hash",)

    def __init__(self, start: bytes = b"") -> None:
        self._hash = hashlib.blake2b(start, digest_size=8)

    def add(self, piece: bytes) -> None:
        self._hash.update(piece + b"\n")

    def now(self) -> int:
        return int.from_bytes(self._hash.digest(), "little")

    def after(self, piece: bytes) -> int:
        """The digest that `piece` would lead to."""
        then = self._hash.copy()
        then.update(piece + b"\n")
        return int.from_bytes(then.digest(), "little")


def asked(example: Example) -> Asked:
    """The digests of what an example asks; a document asks with its whole text."""
    if isinstance(example, Document):
        same, alike = _pieces("user", example.text)
        folded = _Stream().after(alike)
        return Asked(_Stream().after(same), (), folded, folded, (), 0)
    tools = tools_digest(tools_text(example.tools))
    walk = _Walk(tools)
    prompt = example.prompt
    is_single = sum(message.role not in _SYSTEM for message in prompt) == 1  # then `final` and `folded` say it all
    for index, message in enumerate(prompt):
        if isinstance(example, Conversation):
            answered = index + 1 < len(example.messages) and is_trained(example.messages[index + 1])
        else:
            answered = index + 1 == len(prompt)  # of a preference only the chosen reply is learned
        walk.see(message, answered and not is_single)
    return walk.asked()


class _Walk:
    """Takes the messages before the last reply of one row in turn."""

    def __init__(self, tools: int) -> None:
        start = tools.to_bytes(8, "little")
        self._tools, self._final, self._system = tools, _Stream(start), _Stream(start)
        self._folded, self._whole = _Stream(), _Stream()
        self._trained: dict[int, None] = {}
        self._turns: dict[int, None] = {}

    def see(self, message: Message, is_answered: bool) -> None:
        """Take a message; `is_answered` tells whether a trained reply follows it."""
        if message.role in _SYSTEM:
            same, alike = _system_pieces(message.content)
            self._system.add(same)
        else:
            same, alike = _pieces(message.role, message_text(message))
            self._folded.add(alike)
            if is_answered and message.role == "user" and len(alike) >= LONG_TURN:
                self._trained[self._system.after(same)] = None
                self._turns[_Stream().after(alike)] = None
        self._final.add(same)
        self._whole.add(alike)
        if is_answered:
            self._trained[self._final.now()] = None

    def asked(self) -> Asked:
        """The digests of all that was seen."""
        final, folded = self._final.now(), self._folded.now()
        self._trained.pop(final, None)
        self._turns.pop(folded, None)
        return Asked(final, tuple(self._trained), folded, self._whole.now(), tuple(self._turns), self._tools)


def _pieces(role: str, text: str) -> tuple[bytes, bytes]:
    """A message as it counts for asking the same and for asking alike."""
    return f"{role}:{plain(text)}".encode("utf-8", "surrogatepass"), canonical(text)


@functools.lru_cache(maxsize=64)
def _system_pieces(text: str) -> tuple[bytes, bytes]:
    return _pieces("system", text)
