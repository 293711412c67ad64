"""Reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009): several searches become one.

    score(p) = sum over searches of 1 / (60 + rank of p in it),   ranks from 1

Only ranks count, so scores of searches that measure different things need not be made alike. 60 is the paper's value.
"""

from collections.abc import Sequence

from luthier.rag.finder import Finder, Found

CONSTANT = 60
DEPTH = 100
"""Places looked at in each search: a text that one of them puts further down adds next to nothing."""


class Fused:
    """Several searches as one."""

    def __init__(self, finders: Sequence[Finder]) -> None:
        self._finders = finders

    def find(self, queries: Sequence[str], count: int) -> list[list[Found]]:
        """Places by the sum of their reciprocal ranks; of equal ones that which the first search puts higher."""
        rankings = [finder.find(queries, max(count, DEPTH)) for finder in self._finders]
        return [fuse(of_query)[:count] for of_query in zip(*rankings, strict=True)]


def fuse(rankings: Sequence[Sequence[Found]]) -> list[Found]:
    """One ranking out of several of the same query."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, (at, _) in enumerate(ranking, 1):
            scores[at] = scores.get(at, 0.0) + 1 / (CONSTANT + rank)
    return sorted(scores.items(), key=lambda item: -item[1])
