"""Rows so long that training would cut them: lengths in characters, before any tokenizer is loaded.

The pre-flight counts truncation exactly, in tokens; this check says it early, for every file, and shows how lengths
are spread.
"""

from array import array
from typing import ClassVar

import numpy as np

from luthier.data.checks._text import rows, share, view
from luthier.data.checks.base import Check, Finding, Tally
from luthier.examples import Example


class Overlong(Check):
    """Warns of rows over `limit` characters, and tells the quantiles of all lengths."""

    limit: ClassVar[int] = 8000
    """Characters: about the 2,048 tokens that `training.max_tokens` allows by default."""

    def __init__(self) -> None:
        self._lengths = array("I")
        self._long = Tally()

    def see(self, example: Example, split: str) -> None:
        """Measure the row, its system turn included."""
        texts = view(example)
        length = len(texts.system) + len(texts.full)
        self._lengths.append(min(length, 2**32 - 1))
        if length > self.limit:
            self._long.add(example.where)

    def findings(self) -> list[Finding]:
        """A warning when a row is over the limit."""
        if not self._long.count:
            return []
        lengths = np.frombuffer(self._lengths, dtype=np.uint32)
        middle, most, longest = np.quantile(lengths, (0.5, 0.95, 1.0)).astype(int)
        part = share(self._long.count, len(lengths))
        message = (
            f"{rows(self._long.count)} ({part}) of more than {self.limit:,} characters: "
            f"half of all rows have at most {middle:,}, 95 % at most {most:,}, the longest {longest:,}"
        )
        advice = "raise training.max_tokens if memory allows, or shorten these rows: what is cut off is not learned"
        return [Finding("overlong", "warning", message, advice, tuple(self._long.where), self._long.count)]
