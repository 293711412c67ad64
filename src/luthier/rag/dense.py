"""Search by vectors: the passages whose vector is nearest to the query's, by cosine.

Embedded, every passage is compared, so nothing near is missed: a matrix product over 100,000 passages takes tens of
milliseconds a query (docs/retrieval.md). Beyond some millions a served index that skips most of them is the better
tool (`qdrant.py`).
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from luthier.rag.embedder import Embedder, Vectors
from luthier.rag.finder import Found
from luthier.rag.lexical import most_similar

BLOCK_CELLS = 16_000_000
"""Cosines held at once: 64 MB."""


class VectorStore(Protocol):
    """Holds vectors and finds the nearest."""

    def nearest(self, queries_QD: Vectors, count: int) -> list[list[Found]]:
        """At most `count` places for each query, the nearest first."""


class Flat:
    """All vectors in one matrix, in memory or in a file of the cache."""

    def __init__(self, vectors_ND: Vectors) -> None:
        self._vectors_ND = vectors_ND

    def nearest(self, queries_QD: Vectors, count: int) -> list[list[Found]]:
        """The nearest of all; of equally near ones the earlier."""
        size = max(1, BLOCK_CELLS // max(len(self._vectors_ND), 1))
        found: list[list[Found]] = []
        for start in range(0, len(queries_QD), size):
            for cosines_N in queries_QD[start : start + size] @ self._vectors_ND.T:
                found.append([(at, float(cosines_N[at])) for at in most_similar(cosines_N, count)])
        return found


class Dense:
    """Search by the vectors of one embedder, wherever they are held."""

    def __init__(self, embedder: Embedder, store: VectorStore) -> None:
        self._embedder, self._store = embedder, store

    def find(self, queries: Sequence[str], count: int) -> list[list[Found]]:
        """The passages nearest to each query; a query without a word finds nothing."""
        asked = [at for at, query in enumerate(queries) if query.strip()]
        vectors_QD = self._embedder.embed([queries[at] for at in asked]).vectors_ND
        nearest = dict(zip(asked, self._store.nearest(np.ascontiguousarray(vectors_QD), count), strict=True))
        return [nearest.get(at, []) for at in range(len(queries))]
