"""Whether a corpus holds the questions of the test: then retrieval looks them up, and its score means nothing.

A passage that answers a question is what a corpus is for, and holds the answer, and often many words of the question.
It leaks only if it holds the question itself: word for word (`checks/_containment.py`), or as a question of its own, a
title or a short passage that is the same reworded (`checks/_likeness.py`). Whether the answer stands beside it is said,
unless it is too short to tell. Passages that a prompt carries (`carried_passages.py`) are no part of its question.
Answers of twelve words or more that stand in the corpus whole are noted: no one writes the same long sentence twice.

The same holds for any text that a system may show its model: a pool of examples, an instruction.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from luthier.data.carried_passages import question_of
from luthier.data.checks._containment import Contained
from luthier.data.checks._likeness import WordSets, limit
from luthier.data.checks._text import normalized, rows, share, view
from luthier.data.checks._words import word_hashes
from luthier.data.checks.base import PLACES_KEPT, Finding, Severity
from luthier.data.prompts import message_text
from luthier.examples import Document, Example, Where

CHECK = "corpus_leaks"
SHORT_PASSAGE = 40
"""Words up to which a passage may be a question with its answer, question mark or not."""
LONG_ANSWER = 12
"""Words from which an answer does not stand in two places by chance."""
SHORT_WORD = 4
"""Bytes up to which one or two words, `no` or `it is`, stand in most passages and tell nothing as an answer."""
_SENTENCE = re.compile(r"[^.!?\u061f\u3002\uff01\uff1f\n]+[.!?\u061f\u3002\uff01\uff1f]*")
_QUESTION_ENDS = ("?", "\u061f", "\uff1f")


class Asked(NamedTuple):
    """A test row: its question and its answer, both folded, and where it stands."""

    question: bytes
    answer: bytes
    where: Where


class Kind(NamedTuple):
    """How a kind of leak is reported."""

    severity: Severity
    what: str
    advice: str


_REMOVE = (
    "take these passages out of {name}, or these rows out of test: what is found there is the question, not knowledge. "
    "If users will ask what {name} lists as questions, test with their wording and not with its own"
)
_WANTED = "fine where the answer is meant to be a passage; otherwise the test was made from these very texts"
_SHORT = " whose answer is too short to tell whether it stands there by chance"
WHOLE = Kind("error", "whose question stands in {name} word for word, with its answer", _REMOVE)
WHOLE_ALONE = Kind("warning", "whose question stands in {name} word for word, without its answer", _REMOVE)
WHOLE_OPEN = Kind("warning", "whose question stands in {name} word for word, and" + _SHORT, _REMOVE)
LIKE = Kind("warning", "whose question stands in {name} reworded, with its answer", _REMOVE)
LIKE_ALONE = Kind("warning", "whose question stands in {name} reworded, without its answer", _REMOVE)
LIKE_OPEN = Kind("warning", "whose question stands in {name} reworded, and" + _SHORT, _REMOVE)
ANSWER = Kind("note", "whose long answer stands in {name} whole", _WANTED)


class Leak(NamedTuple):
    """The question of a test row, by number, in a passage, by number; and how much of it stands there."""

    row: int
    passage: int
    likeness: float


def corpus_leaks(
    corpus: Sequence[tuple[str, Where]], test: Iterable[Example], name: str = "the corpus"
) -> list[Finding]:
    """Findings about test questions that stand in the texts from which a system may be shown something.

    Args:
        corpus: passages (a title belongs in front of its text, on a line of its own) and where each stands.
        test: held-out rows.
        name: what the texts are called in messages.

    Returns:
        An error for questions that stand in a passage word for word with their answer; warnings for those without it
        or with one too short to tell, and for reworded ones; a note for long answers that stand in a passage whole.
    """
    asked = [ask(example) for example in test]
    return [
        _finding(kind, leaks, ([one.where for one in asked], [where for _, where in corpus]), name)
        for kind, leaks in find_leaks([text for text, _ in corpus], asked)
    ]


def find_leaks(corpus: Sequence[str], test: Sequence[Asked]) -> Iterator[tuple[Kind, list[Leak]]]:
    """What `corpus_leaks` reports, row by row; a row counts once for its question and once for its long answer."""
    if not corpus or not test:
        return
    passages = [normalized(text) for text in corpus]
    told: set[int] = set()
    for leaks, kinds in (
        (_verbatim(passages, test), {True: WHOLE, False: WHOLE_ALONE, None: WHOLE_OPEN}),
        (_reworded(corpus, test), {True: LIKE, False: LIKE_ALONE, None: LIKE_OPEN}),
    ):
        new = [leak for leak in leaks if leak.row not in told]
        told.update(leak.row for leak in new)
        for answered, kind in kinds.items():
            those = [leak for leak in new if _is_answered(test[leak.row], passages[leak.passage]) is answered]
            if those:
                yield kind, those
    if answers := _answers(passages, test):
        yield ANSWER, answers


def ask(example: Example) -> Asked:
    """What a held-out row asks, less the passages that it carries, and how it is answered; a document asks nothing."""
    turns = () if isinstance(example, Document) else example.prompt
    asked = (question_of(message_text(m), example.extra) for m in turns if m.role not in ("system", "developer"))
    return Asked(normalized("\n".join(asked)), normalized(view(example).reply), example.where)


def _verbatim(passages: Sequence[bytes], asked: Sequence[Asked]) -> list[Leak]:
    texts = Contained()
    for number, passage in enumerate(passages):
        texts.add_text(word_hashes(passage), number)
    for row, one in enumerate(asked):
        texts.add_question(word_hashes(one.question), row)
    return _first(texts)


def _answers(passages: Sequence[bytes], asked: Sequence[Asked]) -> list[Leak]:
    texts = Contained()
    for number, passage in enumerate(passages):
        texts.add_text(word_hashes(passage), number)
    for row, one in enumerate(asked):
        words = word_hashes(one.answer)
        if len(words) >= LONG_ANSWER:
            texts.add_question(words, row)
    return _first(texts)


def _first(texts: Contained) -> list[Leak]:
    """For each question the passage that holds most of it."""
    best: dict[int, Leak] = {}
    for row, holders, shares in texts.found():
        at = int(shares.argmax())
        leak = Leak(row, int(holders[at]), float(shares[at]))
        if row not in best or leak.likeness > best[row].likeness:
            best[row] = leak
    return [best[row] for row in sorted(best)]


def _reworded(corpus: Sequence[str], asked: Sequence[Asked]) -> list[Leak]:
    """Questions that are like one in the corpus: one that ends with a question mark, a title, a short passage."""
    sets = WordSets()
    of: list[int] = []
    for number, text in enumerate(corpus):
        for part in _questions(text):
            sets.add(word_hashes(normalized(part)))
            of.append(number)
    for one in asked:
        sets.add(word_hashes(one.question))
    stage = np.repeat((0, 1), (len(of), len(asked)))
    near, _ = sets.nearest_earlier(stage, np.zeros(len(stage), dtype=np.uint64))
    least = limit(near.likeness[(stage == 1) & sets.comparable()], sets.among(stage == 0))
    likeness, nearest = near.likeness[len(of) :], near.number[len(of) :]
    return [Leak(row, of[nearest[row]], float(likeness[row])) for row in np.flatnonzero(likeness >= least).tolist()]


def _questions(text: str) -> Iterator[str]:
    first, _, rest = text.partition("\n")
    if rest and len(first.split()) <= SHORT_PASSAGE:
        yield first
    if len(text.split()) <= SHORT_PASSAGE:
        yield text
    for sentence in _SENTENCE.findall(text):
        if sentence.endswith(_QUESTION_ENDS):
            yield sentence


def _is_answered(asked: Asked, passage: bytes) -> bool | None:
    """Does the answer stand in the passage, as whole words? None if it is so short that it stands anywhere."""
    words = asked.answer.split()
    if words and len(words) <= 2 and max(map(len, words)) <= SHORT_WORD:
        return None
    answer, held = word_hashes(asked.answer), word_hashes(passage)
    return bool(answer) and any(held[at : at + len(answer)] == answer for at in range(len(held) - len(answer) + 1))


def _finding(kind: Kind, leaks: Sequence[Leak], places: tuple[Sequence[Where], Sequence[Where]], name: str) -> Finding:
    """A finding for leaks of one kind; `places`: of the rows and of the passages."""
    rows_at, passages_at = places
    first = leaks[0]
    message = (
        f"{rows(len(leaks))} of test ({share(len(leaks), len(rows_at))}) {kind.what.format(name=name)}: "
        f"{rows_at[first.row]} and {passages_at[first.passage]} ({first.likeness:.2f})"
    )
    where = tuple(rows_at[leak.row] for leak in leaks[:PLACES_KEPT])
    return Finding(CHECK, kind.severity, message, kind.advice.format(name=name), where, len(leaks))
