"""Measurable features of how a text is written; each is a number that needs no model.

Rates are counted for each 100 words, so that a long answer is not more of everything. Features that look for words are
those of English; where neither answers nor wanted replies have such words they are zero on both sides and change
nothing.
"""

import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from luthier.evaluation.metrics.base import Array

_WORD = re.compile(r"\w+(?:['’]\w+)*")
_SENTENCE = re.compile(r"[^.!?…。！？\n]+[.!?…。！？]*")
_CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.DOTALL | re.MULTILINE)
_LIST = re.compile(r"^\s*(?:[-*+•]|\d+[.)])\s+\S", re.MULTILINE)
_HEADING = re.compile(r"^\s{0,3}#{1,6}\s+\S", re.MULTILINE)
_EMPHASIS = re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__")
_HEDGES = re.compile(
    r"\b(?:maybe|perhaps|possibly|probably|might|could be|it seems|seems to|i think|i believe|generally|usually|"
    r"likely|in my opinion|somewhat)\b",
    re.IGNORECASE,
)
_POLITE = re.compile(
    r"\b(?:please|thanks|thank you|sorry|apologi[sz]e|apologies|welcome|happy to|glad to|feel free|kind regards|"
    r"best regards|sincerely)\b",
    re.IGNORECASE,
)
_DISCLAIMER = re.compile(r"\bas an? (?:ai|language model|assistant)\b|\bi(?:'|’)?(?:m| am) an? ai\b", re.IGNORECASE)
_FIRST = frozenset({"i", "me", "my", "mine", "we", "us", "our", "ours", "i'm", "i'll", "i've", "i'd", "we're", "we'll"})
_SECOND = frozenset({"you", "your", "yours", "you're", "you'll", "you've", "you'd"})
_CONTRACTED = re.compile(r"\w['’](?:s|t|re|ve|ll|d|m)$", re.IGNORECASE)
GRAM = 4
"""Words of a span that counts as said again."""


class _Text:
    """A text, taken apart once."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.prose = _CODE.sub(" ", text)
        self.words = [word.lower().replace("’", "'") for word in _WORD.findall(self.prose)]
        self.lines = [line for line in text.splitlines() if line.strip()]

    def rate(self, count: int) -> float:
        return 100 * count / len(self.words) if self.words else 0.0

    def share_of_lines(self, count: int) -> float:
        return count / len(self.lines) if self.lines else 0.0


def _sentences(text: _Text) -> float:
    """Words of a sentence, in the mean; a line ends a sentence, too."""
    lengths = [len(_WORD.findall(part)) for part in _SENTENCE.findall(text.prose)]
    spoken = [length for length in lengths if length]
    return sum(spoken) / len(spoken) if spoken else 0.0


def _letters(text: _Text) -> float:
    return sum(len(word) for word in text.words) / len(text.words) if text.words else 0.0


def _said_again(text: _Text) -> float:
    """Share of four-word spans that stood there before."""
    spans = [tuple(text.words[at : at + GRAM]) for at in range(len(text.words) - GRAM + 1)]
    return 1 - len(set(spans)) / len(spans) if spans else 0.0


def _emoji(text: _Text) -> float:
    return text.rate(sum(unicodedata.category(sign) == "So" for sign in text.text))


FEATURES: Mapping[str, tuple[str, Callable[[_Text], float]]] = {
    "length": ("natural logarithm of one and the words", lambda t: math.log1p(len(t.words))),
    "sentence_words": ("words of a sentence", _sentences),
    "word_letters": ("letters of a word", _letters),
    "list_items": ("share of lines that are items of a list", lambda t: t.share_of_lines(len(_LIST.findall(t.text)))),
    "headings": ("share of lines that are headings", lambda t: t.share_of_lines(len(_HEADING.findall(t.text)))),
    "emphasis": ("spans in bold, a 100 words", lambda t: t.rate(len(_EMPHASIS.findall(t.prose)))),
    "code": ("spans of code, a 100 words", lambda t: t.rate(len(_CODE.findall(t.text)))),
    "emoji": ("pictures, a 100 words", _emoji),
    "exclamations": ("exclamation marks, a 100 words", lambda t: t.rate(t.prose.count("!") + t.prose.count("！"))),
    "questions": ("question marks, a 100 words", lambda t: t.rate(t.prose.count("?") + t.prose.count("？"))),
    "first_person": ("I, we and their forms, a 100 words", lambda t: t.rate(sum(w in _FIRST for w in t.words))),
    "second_person": ("you and its forms, a 100 words", lambda t: t.rate(sum(w in _SECOND for w in t.words))),
    "contractions": (
        "don't, it's and the like, a 100 words",
        lambda t: t.rate(sum(_CONTRACTED.search(w) is not None for w in t.words)),
    ),
    "hedges": ("perhaps, might and the like, a 100 words", lambda t: t.rate(len(_HEDGES.findall(t.prose)))),
    "politeness": ("please, sorry and the like, a 100 words", lambda t: t.rate(len(_POLITE.findall(t.prose)))),
    "disclaimers": (
        "says of itself that it is an AI, a 100 words",
        lambda t: t.rate(len(_DISCLAIMER.findall(t.prose))),
    ),
    "said_again": ("share of four-word spans said before", _said_again),
}
"""By name: what it is, and how it is counted."""


def measure_style(texts: Sequence[str]) -> Array:
    """(N, F) the features of each text, in the order of `FEATURES`; an empty text has zeros."""
    taken_apart = [_Text(text) for text in texts]
    values = [[count(text) for _, count in FEATURES.values()] for text in taken_apart]
    return np.array(values, dtype=np.float64).reshape(len(texts), len(FEATURES))
