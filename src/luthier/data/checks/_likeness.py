"""How many of their words two texts share, rare words counting more, and how alike texts of one data set naturally are.

The likeness of two texts is the weighted Jaccard index of their sets of words, with w = ln((N + 1) / (n + 1/2)) for a
word that n of N texts have (inverse document frequency, Sparck Jones 1972): the weight of what both say over the weight
of what either says. It stays high when some words are replaced or dropped, where shingles of several words are lost.

Whether it is *too* high depends on the data: two questions to a bank have half of their words in common, two questions
about an encyclopedia none. So the limit is taken from the data: likeness to the nearest earlier text, as a logit, is
about normal with the median and lower spread of the held-out rows, or of training rows among themselves (`limit`).
Where answers differ from row to row, an equal answer tells more than the wording, and the lowest limit will do.

A text keeps its 256 smallest word hashes, so memory is at most 1 KiB a text; those of longer texts are a random sample,
and two texts are compared over the hashes that both could have kept. Left out: similarity of meaning.
"""

from array import array
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from luthier.data.checks._words import F64, I64, U32, U64
from luthier.data.prompts import least_common

MOST_WORDS = 256
MIN_WORDS = 4
"""A text with fewer different words is not compared."""
RARE = 2000
"""Texts that share a word that more than so many have are not candidates for that alone; bounds the time."""
CANDIDATES = 16
"""Earlier texts that are compared exactly, the likeliest first."""
LEAST, MOST = 0.45, 0.85
"""Bounds of `limit`: above the highest, all but a word or so are the same."""
SURPRISE = 3.1
"""Standard deviations above the median; a normal variable is higher once in 1,000 times."""
NOTHING = 0.1
"""Likeness up to which two texts have nothing in common; how far below it says nothing about the spread."""
ENOUGH, SAMPLE = 30, 500
"""Texts from which their spread is known; with fewer, `MOST` is the limit. Training texts that are looked at for it."""
FEW, FEW_SHARE = 5, 0.005
"""Texts, and share of all, that may have an answer that is evidence."""
LABELED = 10
"""Texts to an answer, on average, from which answers are labels."""
_TABLE = (1 << 22) - 1
_ROWS_AT_ONCE, _WORDS_AT_ONCE, _TEXTS_AT_ONCE = 256, 1 << 20, 1 << 16


class Nearest(NamedTuple):
    """(N,) the likeness of texts to their nearest earlier one, 0 where there is none; and its number, -1 for none."""

    likeness: F64
    number: I64

    @classmethod
    def none(cls, texts: int) -> "Nearest":
        """Nothing is near to any of so many texts."""
        return cls(np.zeros(texts), np.full(texts, -1, dtype=np.int64))

    def keep(self, text: int, earlier: I64, scores: F64) -> None:
        """Keep the likest of the earlier texts, if there is one."""
        if len(earlier):
            at = int(scores.argmax())
            self.likeness[text], self.number[text] = scores[at], earlier[at]


class WordSets:
    """The sets of words of texts, numbered from 0 in the order of `add`."""

    def __init__(self) -> None:
        self._words, self._ends = array("I"), array("Q", [0])

    def add(self, words: list[int]) -> None:
        """Take the next text, as `word_hashes` gives it."""
        distinct = sorted(set(words))
        self._words.extend(distinct[:MOST_WORDS])
        self._ends.append(len(self._words))

    def comparable(self) -> NDArray[np.bool_]:
        """Which texts (N,) have enough words to be compared."""
        return np.diff(np.array(self._ends, dtype=np.int64)) >= MIN_WORDS

    def among(self, texts: NDArray[np.bool_]) -> F64:
        """The likeness of some of these texts (N,), at most `SAMPLE`, to the nearest other one of them."""
        kept = _Kept(self._words, self._ends)
        numbers = np.flatnonzero(texts & self.comparable())
        sample = numbers[:: max(len(numbers) // SAMPLE, 1)]
        likeness = dict.fromkeys(sample.tolist(), 0.0)
        for text, others in kept.candidates(sample, texts):
            likeness[text] = max(
                (kept.likeness(text, other) for other in others.tolist() if other != text), default=0.0
            )
        return np.array(list(likeness.values()))

    def nearest_earlier(self, stage: I64, answers: U64) -> tuple[Nearest, Nearest]:
        """For each text of a later stage the likest text of an earlier one, and the likest that has the same answer.

        Args:
            stage: of each text (N,): 0 for training rows, 1 for the next split, and so on.
            answers: digests of their answers (N,).
        """
        any_answer, same_answer = Nearest.none(len(stage)), Nearest.none(len(stage))
        kept = _Kept(self._words, self._ends)
        for later in np.unique(stage)[1:].tolist():
            asked = np.flatnonzero((stage == later) & (kept.sizes >= MIN_WORDS))
            for text, earlier in kept.candidates(asked, stage < later):
                scores = np.array([kept.likeness(text, other) for other in earlier.tolist()])
                any_answer.keep(text, earlier, scores)
                same = answers[earlier] == answers[text]
                same_answer.keep(text, earlier[same], scores[same])
        return any_answer, same_answer


class _Kept:
    """Sets of words that are all there, with the weight of each word."""

    def __init__(self, words: array, ends: array) -> None:
        self._words: U32 = np.frombuffer(words, dtype=np.uint32)
        self._ends: I64 = np.frombuffer(ends, dtype=np.uint64).astype(np.int64)
        self.sizes: I64 = np.diff(self._ends)
        self._texts = np.zeros(_TABLE + 1, dtype=np.uint32)  # how many texts have a word whose hash ends in these bits
        for start in range(0, len(self._words), _WORDS_AT_ONCE):
            slots = self._words[start : start + _WORDS_AT_ONCE] & np.uint32(_TABLE)
            self._texts += np.bincount(slots, minlength=_TABLE + 1).astype(np.uint32)
        self._totals = self._weighed()

    def _weights(self, words: U32) -> F64:
        texts = self._texts[words & np.uint32(_TABLE)]
        return np.asarray(np.maximum(np.log((len(self.sizes) + 1) / (texts + 0.5)), 0.0))

    def _weighed(self) -> F64:
        totals = np.zeros(len(self.sizes))
        for start in range(0, len(totals), _ROWS_AT_ONCE * 64):
            rows = slice(start, start + _ROWS_AT_ONCE * 64)
            ends = self._ends[start : start + _ROWS_AT_ONCE * 64 + 1]
            sums = np.concatenate(([0.0], np.cumsum(self._weights(self._words[ends[0] : ends[-1]]))))
            totals[rows] = np.diff(sums[ends - ends[0]])
        return totals

    def _set(self, text: int) -> U32:
        return self._words[self._ends[text] : self._ends[text + 1]]

    def likeness(self, text: int, other: int) -> float:
        """The weighted Jaccard index of two texts."""
        a, b = self._set(text), self._set(other)
        if MOST_WORDS in (len(a), len(b)):
            highest = min(sample[-1] for sample in (a, b) if len(sample) == MOST_WORDS)
            a, b = a[a <= highest], b[b <= highest]
        both, one, two = (float(self._weights(s).sum()) for s in (np.intersect1d(a, b, assume_unique=True), a, b))
        either = one + two - both
        return both / either if either > 0 else float(len(a) == len(b))

    def candidates(self, asked: I64, may: NDArray[np.bool_]) -> Iterator[tuple[int, I64]]:
        """For each of the texts `asked` the likeliest of the texts that `may` answer, judged by their rarer words.

        Texts that share no rarer word with any of those are left out.
        """
        rare = min(least_common(len(self.sizes)), RARE)
        ours = [self._rare(self._set(text), rare) for text in asked.tolist()]
        vocabulary = np.unique(np.concatenate([np.zeros(0, np.uint32), *ours]))
        if not vocabulary.size:
            return
        places = np.concatenate([np.searchsorted(vocabulary, words) for words in ours])
        ends = np.concatenate(([0], np.cumsum([len(words) for words in ours])))
        questions = csr_matrix((np.ones(len(places), np.float32), places, ends), shape=(len(ours), len(vocabulary)))
        best = _Best(len(asked))
        for start in range(0, len(self.sizes), _TEXTS_AT_ONCE):
            theirs = self._matrix(vocabulary, may, start).T.tocsr()
            if theirs.nnz:
                self._look(asked, questions, theirs, (start, best))
        for text, others in zip(asked.tolist(), best.numbers, strict=True):
            if (others >= 0).any():
                yield text, np.sort(others[others >= 0])

    def _look(self, asked: I64, questions: csr_matrix, theirs: csr_matrix, found: "tuple[int, _Best]") -> None:
        """Note the likeliest of the texts from `start` on; `found`: `start`, and where they are noted."""
        start, best = found
        for first in range(0, len(asked), _ROWS_AT_ONCE):
            shared = questions[first : first + _ROWS_AT_ONCE] @ theirs
            for at in range(shared.shape[0]):
                row = slice(shared.indptr[at], shared.indptr[at + 1])
                others, weight = shared.indices[row].astype(np.int64) + start, shared.data[row]
                if len(others):
                    total = self._totals[asked[first + at]] + self._totals[others] - weight
                    best.note(first + at, others, weight / (total + 1e-9))

    def _rare(self, words: U32, most: float) -> U32:
        return np.asarray(words[self._texts[words & np.uint32(_TABLE)] <= most])

    def _matrix(self, vocabulary: U32, may: NDArray[np.bool_], start: int) -> csr_matrix:
        """(T, V) the weight of each word of `vocabulary` in each of the texts from `start` on that `may` answer."""
        ends = self._ends[start : start + _TEXTS_AT_ONCE + 1]
        words = self._words[ends[0] : ends[-1]]
        wanted = np.zeros(_TABLE + 1, dtype=bool)
        wanted[vocabulary & np.uint32(_TABLE)] = True
        at = np.flatnonzero(wanted[words & np.uint32(_TABLE)])
        column = np.minimum(np.searchsorted(vocabulary, words[at]), len(vocabulary) - 1)
        owner = np.searchsorted(ends, at + ends[0], side="right") - 1
        hit = (vocabulary[column] == words[at]) & may[owner + start]
        row, column = owner[hit], column[hit]
        weights = self._weights(vocabulary).astype(np.float32)[column]
        return csr_matrix((weights, (row, column)), shape=(len(ends) - 1, len(vocabulary)))


class _Best:
    """The `CANDIDATES` best texts of each of so many, as they are noted; -1 stands for none."""

    def __init__(self, texts: int) -> None:
        self.numbers = np.full((texts, CANDIDATES), -1, dtype=np.int64)
        self._ranks = np.zeros((texts, CANDIDATES))

    def note(self, text: int, others: I64, ranks: F64) -> None:
        """Take further texts and how well they rank, above 0."""
        others, ranks = np.concatenate((self.numbers[text], others)), np.concatenate((self._ranks[text], ranks))
        top = np.argpartition(-ranks, CANDIDATES)[:CANDIDATES]
        self.numbers[text], self._ranks[text] = others[top], ranks[top]


def answers_tell(answers: U64) -> NDArray[np.bool_]:
    """Which answers (N,) are evidence where another text has the same: rare ones, and none where they are labels."""
    _, which, counts = np.unique(answers, return_inverse=True, return_counts=True)
    return (counts[which] <= max(FEW, FEW_SHARE * len(answers))) & (len(counts) * LABELED > len(answers))


def limit(*samples: F64) -> float:
    """The likeness from which a held-out text is nearer to an earlier one than its like.

    Args:
        samples: likeness to the nearest other text, as it naturally is: of held-out texts to earlier ones, of training
            texts to each other. The strictest sample counts. Leaked or repeated texts among them hardly move the limit:
            it is made from the median and what lies below.
    """
    found = MOST
    for sample in samples:
        if len(sample) >= ENOUGH:
            clipped = np.clip(sample, NOTHING, 0.99)
            low, middle = np.quantile(np.log(clipped / (1 - clipped)), (0.16, 0.5))
            found = min(found, 1 / (1 + np.exp(-(middle + SURPRISE * (middle - low)))))
    return max(found, LEAST)
