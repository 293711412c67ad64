"""Facts in the answers that the prompt does not give and that will change: prices, dates, versions, "currently".

Fine-tuning writes them into the weights, where nobody can update them. They belong in retrieval, or in the prompt.
A price or a share counts only when the prompt has none at all: an answer that computes with the prompt's numbers
recalls nothing.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from luthier.data.checks._scan import Kind, Tallies
from luthier.data.checks._text import trained_replies
from luthier.data.checks.base import Check, Finding
from luthier.data.prompts import joined
from luthier.examples import Example, Message

_ADVICE = (
    "such facts change, and a model cannot be edited: give them in the prompt (retrieval), and train on answers "
    "that use what the prompt gives"
)
_PRICE = re.compile(
    r"(?:[$€£¥]|\b(?:USD|EUR|GBP)) ?\d[\d,.]*"
    # no digit, comma or point before it: from each of them on the rest of a long number would be read again
    r"|(?<![\w,.])\d[\d,.]*(?: ?[€£¥]| (?:USD|EUR|GBP|dollars|euros)\b)"
)
_MONTH = (
    r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sep(?:t(?:ember)?)?|Oct(?:ober)?|"
    r"Nov(?:ember)?|Dec(?:ember)?)"
)
_YEAR = r"(?:19[5-9]\d|20[0-4]\d)"
_DATE = re.compile(
    rf"\b{_YEAR}-\d\d-\d\d\b|\b{_MONTH}\.? (?:\d{{1,2}}, )?{_YEAR}\b|\b(?:in|since|by|of|from|until) {_YEAR}\b"
)
_VERSION = re.compile(r"\b[Vv]ersion \d+(?:\.\d+)*\b|\bv\d+\.\d+(?:\.\d+)?\b|\b[A-Z][A-Za-z]+ \d+\.\d+\.\d+\b(?!\.\d)")
_NOW = re.compile(
    r"\b(?:currently|nowadays|as of (?:today|now|\d{4}|this writing)|at the moment|at present|"
    r"the latest (?:version|release)|to date|most recent(?:ly)?)\b",
    re.IGNORECASE,
)
_PERCENT = re.compile(r"\b\d+(?:\.\d+)? ?(?:%|percent\b)")
_FORMS = {"price": _PRICE, "date": _DATE, "version": _VERSION, "percent": _PERCENT, "now": _NOW}
_COMPUTED = ("price", "percent")
_MANY = 0.1
_NUMBER, _YEAR_ALONE = re.compile(r"\d+(?:[.,]\d+)*"), re.compile(_YEAR)
_HINT = re.compile(r"\d|\b(?:currently|nowadays|as of|at the|at present|latest|to date|most recent)", re.IGNORECASE)


_KINDS: Mapping[str, Kind] = {
    "price": Kind("note", "a price in the answer that the prompt does not give", _ADVICE),
    "date": Kind("note", "a date or year in the answer that the prompt does not give", _ADVICE),
    "version": Kind("note", "a version number in the answer that the prompt does not give", _ADVICE),
    "percent": Kind("note", "a percentage in the answer that the prompt does not give", _ADVICE),
    "now": Kind("note", 'an answer that speaks of now ("currently", "the latest version")', _ADVICE),
}


class StaleFacts(Check):
    """Counts the rows in which a trained reply states each kind of fact out of nowhere."""

    def __init__(self) -> None:
        self._tallies = Tallies("stale_facts", _KINDS)
        self._rows = 0

    def see(self, example: Example, split: str) -> None:
        """Look at each trained reply, and at what was said before it where it states a fact."""
        self._rows += 1
        held: set[str] = set()
        for before, reply in trained_replies(example):
            if _HINT.search(reply):
                held |= _stated(reply, before, [kind for kind in _FORMS if kind not in held])
        for kind in held:
            self._tallies.add(kind, example.where)

    def findings(self) -> list[Finding]:
        """A note for each kind; a warning where a tenth of the rows or more state it."""
        return [
            replace(finding, severity="warning") if finding.count >= _MANY * self._rows else finding
            for finding in self._tallies.findings(self._rows)
        ]


def _stated(reply: str, before: Sequence[Message], kinds: Sequence[str]) -> set[str]:
    """Those of the kinds that the reply states and the messages before it do not give."""
    stated = {kind for kind in kinds if _FORMS[kind].search(reply)}
    asked = joined(before) if stated else ""
    return {kind for kind in stated if not _given(kind, reply, asked)}


def _given(kind: str, reply: str, asked: str) -> bool:
    """Does the prompt give the fact in any form, or numbers of its kind to compute it from?"""
    if kind in _COMPUTED and _FORMS[kind].search(asked):
        return True
    number = _YEAR_ALONE if kind == "date" else _NUMBER
    return all(
        fact in asked
        for stated in _FORMS[kind].finditer(reply)
        for fact in (number.findall(stated.group()) or [stated.group()])
    )
