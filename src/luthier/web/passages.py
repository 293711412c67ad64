"""Passages for the playground: a text file of the project, cut and indexed by its words when it is first asked.

The index is by words alone (BM25), which needs no model: vectors are the business of runs with `retrieval`.
"""

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from threading import Lock

from luthier.errors import DataError
from luthier.jobs.file_store import FileStore
from luthier.rag.chunking import chunk
from luthier.rag.corpus import TEXT_FILES, read_corpus
from luthier.rag.lexical import Bm25
from luthier.rag.passages import Passage
from luthier.serve.api_error import ApiError

WORDS, OVERLAP, TOP = 120, 20, 3
KEPT, MOST_BYTES = 4, 64 * 1024 * 1024
"""Indexes in memory, and the largest file that is one."""


@dataclass(frozen=True)
class Corpus:
    """A file that can be searched."""

    passages: tuple[Passage, ...]
    index: Bm25

    def find(self, question: str) -> list[Passage]:
        """The passages nearest to a question."""
        return [self.passages[at] for at, _ in self.index.find([question], TOP)[0]]


class Corpora:
    """The latest of them, by the bytes of their files."""

    def __init__(self, files: FileStore) -> None:
        self._files, self._lock = files, Lock()
        self._kept: OrderedDict[tuple[str, str], Corpus] = OrderedDict()

    def of(self, project: str, file_id: str) -> Corpus:
        """That of a file; seconds for a large one, the first time.

        Raises:
            ApiError: 404; 400: there is no text in it, or it is too large.
        """
        row = self._files.get(project, file_id)
        if row["bytes"] > MOST_BYTES:
            raise ApiError(f"A file to find passages in has at most {MOST_BYTES:,} bytes here.", param="corpus")
        ending = PurePath(row["filename"]).suffix.lower()
        name = PurePath(row["filename"]).stem[:80] + (ending if ending in TEXT_FILES else ".jsonl")
        key = row["sha256"], name
        with self._lock:
            if key not in self._kept:
                self._kept[key] = _read(self._files.path(project, file_id), name)
            self._kept.move_to_end(key)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            return self._kept[key]


def _read(path: Path, name: str) -> Corpus:
    with TemporaryDirectory() as folder:
        named = Path(folder) / name  # by which it is read, and titled; it was made safe when it came
        named.symlink_to(path.resolve())
        try:
            passages = tuple(p for source in read_corpus(named) for p in chunk(source, WORDS, OVERLAP))
        except DataError as error:
            raise ApiError(f"No passages can be made of this file: {error.message}", param="corpus") from None
    return Corpus(passages, Bm25([passage.titled for passage in passages]))
