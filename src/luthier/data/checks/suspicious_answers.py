"""Answers that are probably not meant: refusals, cut-off text, echoes of the prompt, placeholders, loops.

They are usually left over from a model that wrote the data, and are learned as readily as the good ones.
"""

import re
from collections.abc import Mapping, Sequence

from luthier.data.checks._scan import Kind, Tallies
from luthier.data.checks._text import rows, share, trained_replies
from luthier.data.checks.base import Check, Finding, Tally
from luthier.examples import Example, Message

_REFUSAL = re.compile(
    r"^(?:i['’]?m (?:very )?sorry,? (?:but )?(?:i|as)|i apologi[sz]e, but|sorry, (?:but )?i (?:can|am|do)|"
    r"i (?:can(?:not|['’]t)|am (?:unable|not able) to) (?:help|assist|fulfil|provide|answer|comply))|"
    r"\bas an ai\b|\bas a (?:large )?language model\b",
    re.IGNORECASE,
)
_PLACEHOLDER = re.compile(
    r"^\W*(?:n/?a|todo|tbd|none|null|nan|undefined|placeholder)\W*$|\blorem ipsum dolor\b",
    re.IGNORECASE,
)
_BLANK = re.compile(r"\[(?:insert|your|enter|todo)\b", re.IGNORECASE)
_ENDED = re.compile(r"[.!?…:;)\]}>\"'”’`*|。！？」~-]\s*$")
_LONG = 80
_ECHO = 20
_LOOP_FROM = 200
_LOOP_PERIODS = (12, 120)
_LOOP_STRIDE = 40
_USUALLY = 0.9


_KINDS: Mapping[str, Kind] = {
    "refusal": Kind(
        "note",
        "a refusal or a remark of a model about itself",
        "keep them if refusing is the task; otherwise the model learns to refuse more often than it does now",
    ),
    "placeholder": Kind("warning", "a placeholder instead of an answer", "write the answers, or remove these rows"),
    "echo": Kind("warning", "an answer that repeats the prompt", "write the answers, or check which field is read"),
    "blank": Kind("note", "a blank left to fill in, such as [Your name]", "fill it in, unless the answers are forms"),
    "loop": Kind("warning", "a phrase of the answer over and over", "remove these rows: loops are easily learned"),
}


class SuspiciousAnswers(Check):
    """Counts the rows of each kind; cut-off text only where nearly all long answers end as sentences do."""

    def __init__(self) -> None:
        self._tallies = Tallies("suspicious_answers", _KINDS)
        self._rows, self._long, self._unended = 0, 0, Tally()

    def see(self, example: Example, split: str) -> None:
        """Look at each trained reply; a row counts once for each kind."""
        self._rows += 1
        held: set[str] = set()
        is_long = is_unended = False
        for before, text in trained_replies(example):
            reply = text.strip()
            held |= _kinds(reply, before)
            if len(reply) >= _LONG:
                is_long = True
                is_unended = is_unended or not _ENDED.search(reply[-4:])
        for kind in held:
            self._tallies.add(kind, example.where)
        self._long += is_long
        if is_unended:
            self._unended.add(example.where)

    def findings(self) -> list[Finding]:
        """The kinds that occurred, and answers that end without an end."""
        found = self._tallies.findings(self._rows)
        unended = self._unended
        if unended.count and unended.count <= (1 - _USUALLY) * self._long:
            message = (
                f"{rows(unended.count)} ({share(unended.count, self._long)} of those with long answers) end in the "
                "middle of a sentence, where the others end with punctuation"
            )
            advice = "look whether they were cut off by a length limit; cut-off answers teach the model to stop early"
            where = tuple(unended.where)
            found.append(Finding("suspicious_answers", "warning", message, advice, where, unended.count))
        return found


def _kinds(reply: str, before: Sequence[Message]) -> set[str]:
    held: set[str] = set()
    if _REFUSAL.search(reply):
        held.add("refusal")
    if _PLACEHOLDER.search(reply):
        held.add("placeholder")
    if "[" in reply and _BLANK.search(reply):
        held.add("blank")
    if len(reply) >= _LOOP_FROM and _loops(reply):
        held.add("loop")
    if len(reply) > _ECHO and before and before[-1].role == "user" and reply == before[-1].content.strip():
        held.add("echo")
    return held


def _loops(text: str) -> bool:
    """Does a phrase of 12 to 120 characters follow itself three times without a break?"""
    least, most = _LOOP_PERIODS
    for start in range(0, len(text) - 4 * least, _LOOP_STRIDE):
        again = text.find(text[start : start + least], start + least, start + least + most)
        if again > 0:
            period = again - start
            span = 2 * period
            if len(text) >= again + span and text[start : start + span] == text[again : again + span]:
                return len(set(text[start:again])) > 2
    return False
