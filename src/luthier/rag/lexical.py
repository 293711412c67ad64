"""Search by words: BM25 (Robertson and Zaragoza 2009), by the `bm25s` library.

    score(q, p) = sum over words w of q: idf(w) * tf / (tf + k1 * (1 - b + b * |p| / mean |p|))

Words are runs of letters and digits in lower case, with the marks that belong to them (the vowels of Devanagari, the
accent of a decomposed letter), in the composed form (NFC), so that one word has one spelling. Scripts that put no space
between words (Chinese, Japanese, Thai) would be one word a sentence, so each of their characters is a word. Neither
stop words nor word stems: both are of one language, and idf takes care of the first.
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from luthier.rag.finder import Found

# ideographs, kana, hangul excluded (it writes spaces), Thai, Lao, Khmer, Burmese
_ALONE = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
# combining marks, which \w leaves out, though they continue a word; the last scripts with letters end before U+20000
_MARKS = re.sub(
    f"[{_ALONE}]", "", "".join(c for c in map(chr, range(0x300, 0x20000)) if unicodedata.category(c)[0] == "M")
)
WORD = re.compile(rf"[{_ALONE}]|[^\W{_ALONE}]+(?:[{_MARKS}]+[^\W{_ALONE}]*)*")
RULE = "words with marks, NFC"
"""What `words` does, for fingerprints: another rule finds other passages."""


def words(text: str) -> list[str]:
    """The words of a text, in lower case and composed."""
    return WORD.findall(unicodedata.normalize("NFC", text.lower()))


def most_similar(scores_N: npt.NDArray[np.float64], count: int) -> list[int]:
    """Places of the `count` highest scores, the highest first; of equal ones the earlier. Linear in N."""
    least = np.partition(scores_N, -count)[-count] if len(scores_N) > count else -np.inf
    found = np.flatnonzero(scores_N >= least)
    ordered: list[int] = found[np.argsort(-scores_N[found], kind="stable")].tolist()
    return ordered[:count]


class Bm25:
    """An index of texts by their words, built in memory at the first search: that takes seconds for 100,000 texts."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts

    @cached_property
    def _index(self) -> Any:
        """None for texts of marks alone, which have no words to index."""
        import bm25s

        tokens = [words(text) for text in self._texts]
        if not any(tokens):
            return None
        index = bm25s.BM25()
        index.index(tokens, show_progress=False)
        return index

    def find(self, queries: Sequence[str], count: int) -> list[list[Found]]:
        """The texts that score best for each query; only those that share a word with it."""
        return [self._find(words(query), count) for query in queries]

    def _find(self, query: list[str], count: int) -> list[Found]:
        if not query or self._index is None:
            return []
        scores_N = self._index.get_scores(query)
        return [(at, float(scores_N[at])) for at in most_similar(scores_N, count) if scores_N[at] > 0]
