"""Bytes that clients sent, under the name of their own sha256: written whole, once, and never changed.

Bytes come in by chunks into a file of our own naming and are moved to their place when all are there and on the disk,
so a server that is killed leaves nothing half written where anybody looks. The same bytes twice are one file.
"""

import errno
import os
import secrets
from collections.abc import Iterator
from hashlib import md5, sha256
from pathlib import Path
from typing import IO

from luthier.errors import LuthierError, StorageError
from luthier.files import sync
from luthier.jobs.disk import disk_full
from luthier.jobs.private import private_file, private_folder

CHUNK = 1024 * 1024


class TooLarge(Exception):
    """More bytes came than were allowed."""


class Blobs:
    """A folder of bytes.

    Args:
        folder: made if it is not there.

    Raises:
        StorageError: it cannot be made, or is a link.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._incoming = folder, folder / "incoming"
        private_folder(folder)
        private_folder(self._incoming)

    def forget_unfinished(self) -> None:
        """Remove what a killed server was receiving; for the one server that works in the folder."""
        for left in self._incoming.iterdir():
            left.unlink()

    def writer(self, limit: int) -> "Writer":
        """Somewhere to put at most `limit` bytes.

        Raises:
            ApiError: 507: the disk is full.
            StorageError: it cannot be written.
        """
        return Writer(self, self._incoming / secrets.token_hex(16), limit)

    def path(self, digest: str) -> Path:
        """Where the bytes of a digest lie, as `Writer.finish` gave it."""
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise ValueError(f"{digest!r} is no sha256")
        return self._folder / digest[:2] / digest

    def read(self, digest: str) -> Iterator[bytes]:
        """The bytes, chunk by chunk.

        Raises:
            StorageError: they are gone.
        """
        try:
            file = self.path(digest).open("rb")
        except OSError as error:
            raise StorageError(f"stored bytes cannot be read: {error.strerror}") from None
        return _chunks(file)

    def remove(self, digest: str) -> None:
        """Let go of bytes that nothing names any more."""
        self.path(digest).unlink(missing_ok=True)


class Writer:
    """Receives bytes; a context that keeps nothing unless `finish` was called."""

    def __init__(self, blobs: Blobs, path: Path, limit: int) -> None:
        self._blobs, self._path, self._limit = blobs, path, limit
        try:
            self._file: IO[bytes] = private_file(path, "xb")
        except OSError as error:
            raise _not_stored(error) from None
        self._sha256, self._md5 = sha256(), md5(usedforsecurity=False)
        self.bytes = 0
        """Received so far."""

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)

    @property
    def md5(self) -> str:
        """Of what was received; OpenAI's clients send it to be compared."""
        return self._md5.hexdigest()

    def write(self, chunk: bytes) -> None:
        """Take more bytes.

        Raises:
            TooLarge: they are more than allowed.
            ApiError: 507: the disk is full.
            StorageError: it cannot be written.
        """
        self.bytes += len(chunk)
        if self.bytes > self._limit:
            raise TooLarge
        self._sha256.update(chunk)
        self._md5.update(chunk)
        try:
            self._file.write(chunk)
        except OSError as error:
            raise _not_stored(error) from None

    def finish(self) -> str:
        """Put the bytes in their place; returns their sha256.

        Raises:
            ApiError: 507: the disk is full.
            StorageError: it cannot be written.
        """
        digest = self._sha256.hexdigest()
        target = self._blobs.path(digest)
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            private_folder(target.parent)
            self._path.replace(target)
            sync(target.parent)
        except OSError as error:
            raise _not_stored(error) from None
        return digest


def _not_stored(error: OSError) -> LuthierError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return disk_full()
    return StorageError(f"the file cannot be stored: {error.strerror}")


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        while chunk := file.read(CHUNK):
            yield chunk
