"""The same input with different answers: label noise that no model can learn, and that caps every score.

Two inputs are the same if system turn, tools and text are equal, blanks and Unicode form aside; those that are equal
only after folding case and the punctuation at the ends (`5!` and `5`) are told apart, in a note. Answers are compared
as they are, JSON by content and not by the order of its keys. For preferences: the same pair, preferred both ways;
for judged replies: the same reply, called good and bad.
"""

import json
from array import array

import numpy as np
from numpy.typing import NDArray

from luthier.data.checks._text import View, rows, text_digest, view
from luthier.data.checks.base import PLACES_KEPT, Check, Finding, Places, Severity, Tally
from luthier.data.prompts import digest
from luthier.examples import Document, Example, Judged, Preference

_SHORT = 80
U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]


class Contradictions(Check):
    """Groups rows by input and counts the groups whose answers differ."""

    def __init__(self) -> None:
        self._same, self._alike, self._answers = array("Q"), array("Q"), array("Q")
        self._places = Places()
        self._strict = 0
        self._equal_pairs = Tally()

    def see(self, example: Example, split: str) -> None:
        """Keep 36 bytes for the row; a document has no answer."""
        if isinstance(example, Document):
            return
        texts = view(example)
        if isinstance(example, Preference):
            self._see_preference(texts)
            return
        if isinstance(example, Judged):
            self._strict += 1
            self._keep(texts, text_digest(texts.reply.strip()), int(example.good))
            return
        if not texts.reply.strip():
            return
        answer, structured = _plain(texts.reply)
        self._strict += structured or len(answer) <= _SHORT
        self._keep(texts, 0, text_digest(answer))

    def _see_preference(self, texts: View) -> None:
        chosen, rejected = text_digest(texts.reply.strip()), text_digest(texts.rejected.strip())
        if chosen == rejected:
            self._equal_pairs.add(texts.example.where)
            return
        self._strict += 1
        self._keep(texts, digest(f"{min(chosen, rejected)} {max(chosen, rejected)}".encode()), chosen)

    def _keep(self, texts: View, pair: int, answer: int) -> None:
        asked = texts.asked()
        self._same.append(asked.final ^ pair)  # the exclusive or of 64-bit digests is one again
        self._alike.append(asked.whole ^ asked.tools ^ pair)
        self._answers.append(answer)
        self._places.add(texts.example.where)

    def findings(self) -> list[Finding]:
        """A warning when answers are short or structured, a note when they are free text; an error for equal pairs."""
        found = []
        if self._equal_pairs.count:
            message = "a preference whose chosen and rejected reply are the same"
            advice = "remove these pairs: their margin is always zero"
            tally = self._equal_pairs
            found.append(Finding("contradictions", "error", message, advice, tuple(tally.where), tally.count))
        same, alike, answers = (np.array(kept, dtype=np.uint64) for kept in (self._same, self._alike, self._answers))
        noisy = _contradicting(same, answers)
        strict = self._strict * 2 > len(same)
        if strict:
            advice = "decide which answer is right and correct the others; until then no model can answer these rows"
        else:
            advice = "fine if several answers are welcome; otherwise keep the best one for each input"
        found += self._report(noisy, same, answers, ("warning" if strict else "note", "more than one answer", advice))
        others = _contradicting(alike, answers)
        others = others[~np.isin(alike[others], alike[noisy])]
        what = "more than one answer once case and punctuation are folded"
        advice = "fine if the difference is meant, as in `5!` and `5`; otherwise decide which answer is right"
        return found + self._report(others, alike, answers, ("note", what, advice))

    def _report(self, members: I64, inputs: U64, answers: U64, said: tuple[Severity, str, str]) -> list[Finding]:
        """A finding for rows of which some disagree with others of the same input; `said`: severity, what, advice."""
        if not members.size:
            return []
        severity, what, advice = said
        count = len(np.unique(inputs[members]))
        first = members[0]
        other = np.flatnonzero((inputs == inputs[first]) & (answers != answers[first]))[0]
        message = (
            f"{count:,} {'inputs have' if count > 1 else 'input has'} {what} "
            f"({rows(members.size)}): {self._places[int(first)]} and {self._places[int(other)]} disagree"
        )
        where = tuple(self._places[int(index)] for index in members[:PLACES_KEPT])
        return [Finding("contradictions", severity, message, advice, where, int(members.size))]


def _contradicting(inputs: U64, answers: U64) -> I64:
    """The rows, in order, whose input occurs with more than one answer; both arguments are digests (N,)."""
    order = np.lexsort((answers, inputs))
    same_input = inputs[order][1:] == inputs[order][:-1]
    differs = same_input & (answers[order][1:] != answers[order][:-1])
    if not differs.any():
        return np.zeros(0, dtype=np.int64)
    group = np.cumsum(np.concatenate(([0], ~same_input)))
    return np.sort(order[np.isin(group, np.unique(group[1:][differs]))])


def _plain(answer: str) -> tuple[str, bool]:
    """An answer in the form in which it is compared, and whether it is JSON."""
    text = answer.strip()
    if text[:1] in ("{", "["):
        try:
            return json.dumps(json.loads(text), sort_keys=True, ensure_ascii=False), True
        except (ValueError, RecursionError):
            pass
    return " ".join(text.split()), False
