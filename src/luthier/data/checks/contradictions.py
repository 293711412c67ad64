"""The same input with different answers: label noise that no model can learn, and that caps every score.

Inputs are compared after folding case and spacing; answers as they are, except that JSON is compared by content and
not by the order of its keys. For preferences: the same pair of replies, preferred both ways.
"""

import json
from array import array

import numpy as np

from luthier.data.checks._text import View, canonical, digest, rows, text_digest, view
from luthier.data.checks.base import PLACES_KEPT, Check, Finding, Places, Tally
from luthier.examples import Document, Example, Preference

_SHORT = 80


class Contradictions(Check):
    """Groups rows by input and counts the groups whose answers differ."""

    def __init__(self) -> None:
        self._inputs, self._answers, self._places = array("Q"), array("Q"), Places()
        self._strict = 0
        self._equal_pairs = Tally()
        self._system, self._system_digest = "", b""

    def see(self, example: Example, split: str) -> None:
        """Keep 24 bytes for the row; a document has no answer."""
        if isinstance(example, Document):
            return
        texts = view(example)
        if isinstance(example, Preference):
            self._see_preference(texts)
            return
        if not texts.reply.strip():
            return
        answer, structured = _plain(texts.reply)
        tools = json.dumps(example.tools, sort_keys=True, default=str).encode() if example.tools else b""
        self._strict += structured or len(answer) <= _SHORT
        self._keep(texts, canonical(texts.prompt) + tools, text_digest(answer))

    def _see_preference(self, texts: View) -> None:
        chosen, rejected = text_digest(texts.reply.strip()), text_digest(texts.rejected.strip())
        if chosen == rejected:
            self._equal_pairs.add(texts.example.where)
            return
        pair = f"{min(chosen, rejected)} {max(chosen, rejected)}"
        self._strict += 1
        self._keep(texts, canonical(texts.prompt) + pair.encode(), chosen)

    def _keep(self, texts: View, asked: bytes, answer: int) -> None:
        if texts.system != self._system:
            self._system = texts.system
            self._system_digest = digest(canonical(texts.system)).to_bytes(8, "little")
        self._inputs.append(digest(self._system_digest + asked))
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
        return found + self._contradicting()

    def _contradicting(self) -> list[Finding]:
        inputs = np.frombuffer(self._inputs, dtype=np.uint64)
        answers = np.frombuffer(self._answers, dtype=np.uint64)
        order = np.lexsort((answers, inputs))
        same_input = inputs[order][1:] == inputs[order][:-1]
        differs = same_input & (answers[order][1:] != answers[order][:-1])
        if not differs.any():
            return []
        group = np.cumsum(np.concatenate(([0], ~same_input)))
        noisy = np.unique(group[1:][differs])
        members = np.sort(order[np.isin(group, noisy)])
        strict = self._strict * 2 > len(inputs)
        one, other = self._disagreeing(int(members[0]), inputs, answers)
        message = (
            f"{len(noisy):,} {'inputs have' if len(noisy) > 1 else 'input has'} more than one answer "
            f"({rows(members.size)}): {one} and {other} disagree"
        )
        if strict:
            advice = "decide which answer is right and correct the others; until then no model can answer these rows"
        else:
            advice = "fine if several answers are welcome; otherwise keep the best one for each input"
        where = tuple(self._places[int(index)] for index in members[:PLACES_KEPT])
        severity = "warning" if strict else "note"
        return [Finding("contradictions", severity, message, advice, where, int(members.size))]  # type: ignore[arg-type]

    def _disagreeing(self, first: int, inputs: np.ndarray, answers: np.ndarray) -> tuple[str, str]:
        """The places of a row and of the first row with its input and another answer."""
        other = np.flatnonzero((inputs == inputs[first]) & (answers != answers[first]))
        return str(self._places[first]), str(self._places[int(other[0])])


def _plain(answer: str) -> tuple[str, bool]:
    """An answer in the form in which it is compared, and whether it is JSON."""
    text = answer.strip()
    if text[:1] in ("{", "["):
        try:
            return json.dumps(json.loads(text), sort_keys=True, ensure_ascii=False), True
        except (ValueError, RecursionError):
            pass
    return " ".join(text.split()), False
