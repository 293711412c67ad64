"""Texts as points: tf-idf of hashed words, then the directions in which they differ most.

Words are hashed into 65,536 columns, each counted as 1 + ln(count), weighted by ln((N + 1) / (n + 1)) + 1 for a word
that n of N texts have, and each text is scaled to length 1 (Salton and Buckley 1988). The product of two texts is their
cosine. `reduced` keeps the 128 largest singular directions, by random projection with two power iterations (Halko,
Martinsson and Tropp 2011, algorithm 4.4): latent semantic analysis, small enough to compare all with thousands.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, diags

from luthier.data.checks._words import word_hashes

F32 = NDArray[np.float32]

COLUMNS = 1 << 16
DIRECTIONS, SPARE = 128, 16
_ROUNDS = 2


class Space:
    """Collects texts, and then gives their points; numbered from 0 in the order of `add`."""

    def __init__(self) -> None:
        self._columns: list[NDArray[np.uint16]] = []
        self._counts: list[NDArray[np.uint16]] = []

    def add(self, text: bytes) -> None:
        """Take the next text, as `normalized` gives it."""
        hashes = np.array(word_hashes(text), dtype=np.uint32)
        columns, counts = np.unique((hashes ^ (hashes >> np.uint32(16))).astype(np.uint16), return_counts=True)
        self._columns.append(columns)
        self._counts.append(np.minimum(counts, 65535).astype(np.uint16))

    def points(self) -> F32:
        """(N, D) points, D = 128 or fewer, at most 1 long; one that shares no word with others is near the origin."""
        return reduced(self.weighted())

    def weighted(self) -> csr_matrix:
        """(N, 65536) tf-idf, rows of length 1 or 0."""
        sizes = [len(columns) for columns in self._columns]
        counts = np.concatenate([np.zeros(0, np.uint16), *self._counts]).astype(np.float32)
        columns = np.concatenate([np.zeros(0, np.uint16), *self._columns]).astype(np.int32)
        starts = np.concatenate(([0], np.cumsum(sizes))).astype(np.int32)
        texts = np.bincount(columns, minlength=COLUMNS)
        rarity = np.log((len(sizes) + 1) / (texts + 1)) + 1
        values = (1 + np.log(counts)) * rarity[columns].astype(np.float32)
        found = csr_matrix((values.astype(np.float32), columns, starts), shape=(len(sizes), COLUMNS))
        lengths = np.sqrt(np.asarray(found.multiply(found).sum(axis=1)).ravel())
        return (diags((1 / np.maximum(lengths, 1e-12)).astype(np.float32)) @ found).tocsr()


def reduced(texts: csr_matrix, directions: int = DIRECTIONS, seed: int = 0) -> F32:
    """(N, D) what rows (N, C) are in their largest singular directions; deterministic."""
    texts = texts[:, np.unique(texts.indices)]  # the columns of words that occur
    rows, columns = texts.shape
    wide = min(directions + SPARE, rows, columns)
    if not wide:
        return np.zeros((rows, 1), dtype=np.float32)
    chance = np.random.default_rng(seed)
    image = _orthonormal(texts @ chance.standard_normal((columns, wide), dtype=np.float32))
    for _ in range(_ROUNDS):
        image = _orthonormal(texts @ (texts.T @ image))
    across = np.asarray(texts.T @ image)  # (C, wide), what image.T @ texts is, transposed
    values, vectors = np.linalg.eigh((across.T @ across).astype(np.float64))
    largest = vectors[:, np.argsort(-values)[:directions]]
    # texts = image @ image.T @ texts up to what is left out, whose left singular vectors are image @ largest
    points = np.asarray(image @ largest.astype(np.float32)) * np.sqrt(np.maximum(np.sort(values)[::-1][:directions], 0))
    return np.asarray(points, dtype=np.float32)


def of_length_one(points: F32) -> F32:
    """Points scaled to length 1; what is at the origin stays there."""
    lengths = np.linalg.norm(points, axis=1, keepdims=True)
    return np.asarray(points / np.where(lengths > 1e-6, lengths, np.inf), dtype=np.float32)


def _orthonormal(image: F32) -> F32:
    """An orthonormal basis of what the columns span, by the eigenvectors of their products: a QR of tall matrices costs
    more than the products themselves."""
    values, vectors = np.linalg.eigh((image.T @ image).astype(np.float64))
    kept = values > values[-1] * 1e-6
    return np.asarray(image @ (vectors[:, kept] / np.sqrt(values[kept])).astype(np.float32))
