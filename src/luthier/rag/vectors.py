"""Vectors on disk, by what was embedded and by what: a text is embedded once, however many corpora hold it.

    <folder>/digests.bin    sha256 of each text, 32 bytes
    <folder>/vectors.f32    its D numbers, in the same order

Both files only grow. Vectors are written first and reach the disk before their digests do, so what a killed process
left is either whole or has no digest, and is cut off. One process at a time writes.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from filelock import FileLock

from luthier.errors import StorageError
from luthier.files import sync
from luthier.models.catalog import storage_errors
from luthier.rag.embedder import Embedded, Embedder, Vectors

DIGEST_BYTES = 32
BLOCK = 512
"""Texts embedded between two writes: what a killed process loses."""
NUMBER_BYTES = 4


class VectorCache:
    """The vectors of one embedder."""

    def __init__(self, folder: Path, embedder: Embedder) -> None:
        """Nothing is read or made before `vectors_of`."""
        self.folder, self.embedder = folder, embedder
        self._digests, self._vectors = folder / "digests.bin", folder / "vectors.f32"

    def vectors_of(
        self, texts: Sequence[str], on_progress: Callable[[int, int], None] = lambda _done, _all: None
    ) -> Embedded:
        """The vectors of `texts`, in their order; those that are not here yet are embedded and kept.

        Where the texts were embedded together, the result is a view of the file and takes no memory of its own. The
        count of texts that were cut is of those embedded now.

        Raises:
            StorageError: the cache cannot be written.
        """
        digests = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in texts]
        with storage_errors(f"keeping vectors in {self.folder}"):
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / ".lock"):
                cut = self._embed_missing(texts, digests, on_progress)
                known = self._places()
            places = np.array([known[digest] for digest in digests], dtype=np.int64)
            return Embedded(self._rows(places), cut)

    def _places(self) -> dict[bytes, int]:
        """Where the vector of each text stands, by digest; only of what is whole."""
        if not self._digests.is_file():
            return {}
        held = self._digests.read_bytes()
        whole = min(len(held) // DIGEST_BYTES, self._vectors.stat().st_size // self._row_bytes)
        return {held[at * DIGEST_BYTES : (at + 1) * DIGEST_BYTES]: at for at in range(whole)}

    @property
    def _row_bytes(self) -> int:
        return self.embedder.dimension * NUMBER_BYTES

    def _embed_missing(
        self, texts: Sequence[str], digests: Sequence[bytes], on_progress: Callable[[int, int], None]
    ) -> int:
        known = self._places()
        missing: dict[bytes, str] = {d: text for d, text in zip(digests, texts, strict=True) if d not in known}
        todo, cut, size = list(missing.items()), 0, len(known)
        for start in range(0, len(todo), BLOCK):
            block = todo[start : start + BLOCK]
            found = self.embedder.embed([text for _, text in block])
            self._append(size, [digest for digest, _ in block], found.vectors_ND)
            size, cut = size + len(block), cut + found.cut
            on_progress(start + len(block), len(todo))
        return cut

    def _append(self, size: int, digests: Sequence[bytes], vectors_ND: Vectors) -> None:
        """Write behind the `size` rows that are whole; what stands there was never whole."""
        if not np.isfinite(vectors_ND).all():
            raise StorageError(f"{self.folder}: a vector is not finite, so nothing was kept; the embedder is damaged")
        for path, row_bytes, data in (
            (self._vectors, self._row_bytes, vectors_ND.tobytes()),
            (self._digests, DIGEST_BYTES, b"".join(digests)),
        ):
            with path.open("r+b" if path.is_file() else "w+b") as file:
                file.truncate(size * row_bytes)
                file.seek(size * row_bytes)
                file.write(data)
            sync(path)

    def _rows(self, places: "np.ndarray") -> Vectors:
        if not len(places):
            return np.zeros((0, self.embedder.dimension), dtype=np.float32)
        first, last = int(places.min()), int(places.max())
        held = np.memmap(
            self._vectors, np.float32, "r", first * self._row_bytes, (last - first + 1, self.embedder.dimension)
        )
        if np.array_equal(places, np.arange(first, last + 1)):
            return held
        return np.ascontiguousarray(held[places - first])
