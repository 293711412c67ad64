"""Likeness of two texts from 0 to 1, each in time that grows no worse than the product of their lengths over 64.

Words are runs of letters and digits of any script in lower case, for the measures that compare words. A text without
words is like another without words only if both are equal.
"""

import re
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import sacrebleu
from nltk.stem.porter import PorterStemmer
from rouge_score import rouge_scorer, tokenizers

RARE = 64
"""Times that an element stands in a text."""

_WORD = re.compile(r"[^\W_]+")


def words(text: str) -> list[str]:
    """Runs of letters and digits of any script, in lower case."""
    return _WORD.findall(text.lower())


class _Words(tokenizers.Tokenizer):  # type: ignore[misc]
    """The library's own words are ASCII only."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


def common_subsequence(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Length of the longest common subsequence, by the bit vectors of Hyyrö (2004)."""
    places: dict[Hashable, list[int]] = {}
    for at, element in enumerate(a):
        places.setdefault(element, []).append(at)
    # vectors of rare elements are made when needed: all of them would take the square of the length in memory
    vectors = {element: _bits(found, len(a)) for element, found in places.items() if len(found) > RARE}
    all_ones = (1 << len(a)) - 1
    row = all_ones
    for element in b:
        if element in places:
            matched = row & (vectors.get(element) or _bits(places[element], len(a)))
            row = ((row + matched) | (row - matched)) & all_ones
    return len(a) - row.bit_count()


def _bits(places: Sequence[int], length: int) -> int:
    bits = bytearray(length // 8 + 1)
    for at in places:
        bits[at >> 3] |= 1 << (at & 7)
    return int.from_bytes(bits, "little")


def fuzzy_match(text: str, reference: str) -> float:
    """Characters of the longest common subsequence, twice, by those of both texts: `rapidfuzz.fuzz.ratio` / 100."""
    length = len(text) + len(reference)
    return 2 * common_subsequence(text, reference) / length if length else 1.0


def bleu(text: str, reference: str) -> float:
    """BLEU of one sentence by sacrebleu's own tokens and smoothing, with orders that short texts have (Post 2018)."""
    return float(sacrebleu.sentence_bleu(text, [reference], use_effective_order=True).score) / 100


def gleu(text: str, reference: str) -> float:
    """Google's BLEU: n-grams of 1 to 4 words in common, by the larger number of both (Wu et al. 2016, section 5)."""
    grams = [
        Counter(tuple(found[at : at + n]) for n in (1, 2, 3, 4) for at in range(len(found) - n + 1))
        for found in (words(text), words(reference))
    ]
    most = max(count.total() for count in grams)
    return (grams[0] & grams[1]).total() / most if most else float(text == reference)


def meteor(text: str, reference: str) -> float:
    """METEOR with its stages of equal words and equal Porter stems (Banerjee and Lavie 2005), without synonyms.

    Synonyms need WordNet, which is no part of this program, so a score is at most what it would be with them.
    """
    said, wanted = words(text), words(reference)
    pairs = _aligned(said, wanted)
    if not pairs:
        return float(text == reference)
    precision, recall = len(pairs) / len(said), len(pairs) / len(wanted)
    mean = precision * recall / (0.9 * precision + 0.1 * recall)
    steps = pairwise(pairs)
    chunks = 1 + sum((here[0] + 1, here[1] + 1) != after for here, after in steps)
    return mean * (1 - 0.5 * (chunks / len(pairs)) ** 3)


def _aligned(said: Sequence[str], wanted: Sequence[str]) -> list[tuple[int, int]]:
    """Places of words that belong together: equal ones first, then those of equal stems, from the end."""
    pairs: dict[int, int] = {}
    for form in (str, _stem):
        free: dict[str, list[int]] = {}
        taken = set(pairs.values())
        for at, word in enumerate(wanted):
            if at not in taken:
                free.setdefault(form(word), []).append(at)
        for at in range(len(said) - 1, -1, -1):
            if at not in pairs and (places := free.get(form(said[at]))):
                pairs[at] = places.pop()
    return sorted(pairs.items())


def _stem(word: str) -> str:
    return str(_stemmer().stem(word))


@cache
def _stemmer() -> PorterStemmer:
    return PorterStemmer()


def rouge_n(n: int) -> Callable[[str, str], float]:
    """F1 of the n-grams of words (Lin 2004), by the `rouge-score` library."""

    def measure(text: str, reference: str) -> float:
        return float(_scorer(f"rouge{n}").score(reference, text)[f"rouge{n}"].fmeasure)

    return measure


@cache
def _scorer(name: str) -> Any:
    return rouge_scorer.RougeScorer([name], tokenizer=_Words())


def rouge_l(text: str, reference: str) -> float:
    """F1 of the longest common subsequence of words (Lin 2004); `rouge-score` has it, in a table of all pairs."""
    said, wanted = words(text), words(reference)
    common = common_subsequence(said, wanted)
    return 2 * common / (len(said) + len(wanted)) if common else 0.0


MEASURES: Mapping[str, Callable[[str, str], float]] = {
    "fuzzy_match": fuzzy_match,
    "bleu": bleu,
    "gleu": gleu,
    "meteor": meteor,
    "rouge_1": rouge_n(1),
    "rouge_2": rouge_n(2),
    "rouge_3": rouge_n(3),
    "rouge_4": rouge_n(4),
    "rouge_5": rouge_n(5),
    "rouge_l": rouge_l,
}
