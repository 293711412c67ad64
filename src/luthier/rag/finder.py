"""What every way to search has in common: queries in, places and scores out. What stands there is not its business."""

from collections.abc import Sequence
from typing import Protocol, TypeAlias

Found: TypeAlias = tuple[int, float]
"""The place of a text in the corpus, and its score."""


class Finder(Protocol):
    """Finds texts by a query."""

    def find(self, queries: Sequence[str], count: int) -> list[list[Found]]:
        """At most `count` places for each query, the best first."""
