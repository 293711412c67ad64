"""Held-out questions among the examples of a system turn: the model is then shown what it is asked.

Each different system turn is looked at once, as a whole for a question that stands in it word for word
(`_containment.py`), and line by line for one that stands in it reworded (`_likeness.py`).
"""

from array import array

import numpy as np

from luthier.data.checks._containment import Contained
from luthier.data.checks._likeness import WordSets, limit
from luthier.data.checks._text import normalized
from luthier.data.checks._words import F64, I64, word_hashes
from luthier.data.prompts import digest

Pairs = tuple[I64, I64, F64]
"""Leaked rows, the row that leaks each, and how alike the two are."""

REMEMBERED = 4096
"""Different system turns that are looked at; where there are more, they are what rows ask about."""


class Shown:
    """Takes system turns and held-out questions as they come, in any order."""

    def __init__(self) -> None:
        self._turns: set[int] = set()
        self._whole, self._sets = Contained(), WordSets()
        self._rows, self._is_question = array("q"), array("b")

    def add_system(self, text: str, row: int) -> None:
        """Take the system turn of a row."""
        folded = normalized(text)
        key = digest(folded)
        if key in self._turns or len(self._turns) == REMEMBERED:
            return
        self._turns.add(key)
        self._whole.add_text(word_hashes(folded), row)
        lines = text.splitlines()
        for line in lines if len(lines) > 1 else ():  # a turn of one line is an instruction
            self._add(word_hashes(normalized(line)), row, is_question=False)

    def add_question(self, words: list[int], row: int) -> None:
        """Take the question of a held-out row."""
        self._whole.add_question(words, row)
        self._add(words, row, is_question=True)

    def _add(self, words: list[int], row: int, is_question: bool) -> None:
        self._sets.add(words)
        self._rows.append(row)
        self._is_question.append(is_question)

    def pairs(self) -> Pairs:
        """The questions that stand in the system turn of another row."""
        found: dict[int, tuple[int, float]] = {}
        for asked, holders, shares in self._whole.found():
            others = np.flatnonzero(holders != asked)
            if len(others):
                found.setdefault(asked, (int(holders[others[0]]), float(shares[others[0]])))
        rows, stage = np.array(self._rows, dtype=np.int64), np.array(self._is_question, dtype=np.int64)
        near, _ = self._sets.nearest_earlier(stage, np.zeros(len(stage), dtype=np.uint64))
        least = limit(near.likeness[(stage == 1) & self._sets.comparable()])
        for at in np.flatnonzero((near.number >= 0) & (near.likeness >= least)).tolist():
            asked, holder = int(rows[at]), int(rows[near.number[at]])
            if asked != holder:
                found.setdefault(asked, (holder, float(near.likeness[at])))
        return pairs(found)


def pairs(found: dict[int, tuple[int, float]]) -> Pairs:
    """What was found, by leaked row."""
    leaked = sorted(found)
    return (
        np.array(leaked, dtype=np.int64),
        np.array([found[row][0] for row in leaked], dtype=np.int64),
        np.array([found[row][1] for row in leaked], dtype=np.float64),
    )
