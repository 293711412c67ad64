"""Replies that state names, numbers or dates which their prompt does not hold: facts that the model must know by heart.

Training on them teaches a model to state facts without a source, and it then does so where it knows none (Gekhman et
al. 2024, arXiv:2405.05904). Such rows belong in retrieval: the fact in the prompt, the reply made from it.

A short reply that is little else than such a fact is an `answer`; a longer one that states some in passing is a
`mention`, which may be a story, an example or an explanation. Not counted: numbers where the prompt has some (they may
be worked out from it, years aside), small ones (a list is numbered), names in quotes from the prompt's own words, a
reply that a hundredth of the rows share (a label), code and JSON keys. Names are told by their capitals, so languages
that do not write them so, or write all nouns so, are not judged well.
"""

import re
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from luthier.data.checks._text import rows, share, text_digest, trained_replies
from luthier.data.checks.base import Check, Finding, Places
from luthier.data.facts import STOP_WORDS, Token, tokens_of
from luthier.data.prompts import joined, tools_text
from luthier.examples import Conversation, Example, Message

SHORT = 12
"""Most words that say something of a reply that is an answer."""
MANY = 0.1
"""From this share of the rows on it is a warning."""
LABEL_SHARE, LABEL_ROWS = 0.01, 5
"""A reply that so many rows share, and at least so many, is a label and no fact."""
LARGE = 20
"""Smaller numbers number things."""
TITLE_WORDS, TITLE_SHARE = 4, 0.7
"""A line with so many capitals, on more than this share of its words, is written like a title."""

_HINT = re.compile(
    r"\d[\d,.]*\d|(?<=[\w,;'’)\"“(-] )[A-Z]\w+|\b[A-Z]\w*[A-Z]\w*|"
    r"\b(?:[tT]wenty|[tT]hirty|[fF]orty|[fF]ifty|[sS]ixty|[sS]eventy|[eE]ighty|[nN]inety|hundred|thousand|[mb]illion)\b"
)
"""What may be a name or a larger number."""
_DIGIT, _LIKE_YEAR = re.compile(r"\d"), re.compile(r"1\d{3}|20\d\d")
_YEAR_BEFORE = (
    r"(?:^|\b(?:in|since|until|by|from|during|year|before|after) |"
    r"[a-z]\.? (?:\d{1,2}(?:st|nd|rd|th)?, )?)(?=1\d{3}|20\d\d)"
)
_YEAR_AFTER = r"(?=$|[.;)]|,? (?:and|to|by|in|when|with|the|at)\b|,\s)"
_ADVICE = (
    "do not train these facts in: put the texts that hold them into a corpus, retrieve them into the prompt, and "
    "train, if at all, on replies that are made from the prompt"
)
_MENTION_ADVICE = (
    "look at some: facts belong in the prompt (retrieval); names and numbers of stories and examples do no harm"
)
_WHAT = {
    "answer": "whose reply is a name, number or date that the prompt does not hold",
    "mention": "with a longer reply that states names, numbers or dates that the prompt does not hold",
}


class ClosedBook(Check):
    """Counts the rows of each kind; a label is known only at the end, so the reply of each counted row is kept as a
    digest, 20 bytes a row."""

    def __init__(self) -> None:
        self._rows = 0
        self._replies: Counter[int] = Counter()
        self._places = Places()
        self._digests = array("Q")
        self._kinds = bytearray()

    def see(self, example: Example, split: str) -> None:
        """Look at each trained reply and at what was said before it; a row counts once, as an answer if it has one."""
        self._rows += 1
        kind, digest = "", 0
        tools = tools_text(example.tools) if isinstance(example, Conversation) else ""
        for before, reply in trained_replies(example):
            found = kind_of(reply, before, tools)
            if found and kind != "answer":
                kind, digest = found, text_digest(reply)
        if kind:
            self._replies[digest] += 1
            self._places.add(example.where)
            self._digests.append(digest)
            self._kinds.append(list(_WHAT).index(kind))

    def findings(self) -> list[Finding]:
        """Answers first; a warning where they are a tenth of the rows or more."""
        most = max(LABEL_ROWS, LABEL_SHARE * self._rows)
        found = []
        for number, (kind, what) in enumerate(_WHAT.items()):
            at = [i for i, d in enumerate(self._digests) if self._kinds[i] == number and self._replies[d] < most]
            if at:
                many = kind == "answer" and len(at) >= MANY * self._rows
                found.append(
                    Finding(
                        "closed_book",
                        "warning" if many else "note",
                        f"{rows(len(at))} ({share(len(at), self._rows)}) {what}",
                        _ADVICE if kind == "answer" else _MENTION_ADVICE,
                        tuple(self._places[i] for i in at[:20]),
                        len(at),
                    )
                )
        return found


def kind_of(reply: str, before: Sequence[Message], tools: str = "") -> str:
    """`answer`, `mention`, or nothing where the reply states no fact that the prompt lacks."""
    hints = _HINT.findall(reply)
    if (not hints and not _is_name(reply)) or _is_made(reply):
        return ""
    asked = f"{joined(before)}\n{tools}"
    folded = asked.casefold()
    if _DIGIT.search(asked):  # of numbers only years count then
        hints = [hint for hint in hints if hint[0].isupper() or _LIKE_YEAR.fullmatch(hint)]
    if all(hint.casefold() in folded for hint in hints) and not _is_name(reply):
        return ""  # most rows end here, without being taken apart
    said = _said(reply)
    held = tokens_of(asked)
    keys = {token.key for token in held}
    counts = any(token.kind == "number" for token in held)
    if not any(_is_new(token, reply, keys, counts) for token in said):
        return ""
    return "answer" if len(said) <= SHORT else "mention"


def _is_made(reply: str) -> bool:
    """Is it code, or an object? Their names are no facts."""
    return reply.lstrip().startswith(("{", "[", "<", "```", "def ", "import ", "SELECT "))


def _is_name(reply: str) -> bool:
    """A single word with a capital and no full stop is a name: no sentence needs the capital."""
    word = reply.strip()
    return word[:1].isupper() and word.isalpha() and word.casefold() not in STOP_WORDS


def _said(reply: str) -> list[Token]:
    """What a reply says; in lines written like titles, capitals make no names."""
    if _is_name(reply):
        return [replace(token, kind="name") for token in tokens_of(reply)]
    said = []
    for line in reply.splitlines():
        tokens = tokens_of(line)
        words = [token for token in tokens if token.kind in ("name", "word")]
        capitals = sum(token.text[:1].isupper() for token in words)
        is_title = capitals >= TITLE_WORDS and capitals > TITLE_SHARE * len(words)
        tokens = [token for token in tokens if token.is_fact or token.text.casefold() not in STOP_WORDS]
        said += [replace(token, kind="word") if is_title and token.kind == "name" else token for token in tokens]
    return said


def _is_new(token: Token, reply: str, keys: set[str], counts: bool) -> bool:
    """Does the token state a fact that the prompt does not hold, and cannot be worked out from it?"""
    if not token.is_fact or token.key in keys:
        return False
    if token.kind != "number":
        return token.kind == "month" or len(token.key) > 1
    if counts:
        return re.search(_YEAR_BEFORE + re.escape(token.text) + _YEAR_AFTER, reply) is not None
    return float(token.key) >= LARGE
