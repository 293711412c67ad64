"""Folders and files that only the service's own user may open, made without following a link that somebody planted."""

import os
import stat
from pathlib import Path
from typing import IO, Literal

from luthier.errors import StorageError


def private_folder(folder: Path, parents: bool = False) -> Path:
    """A folder of our own, made if it is not there.

    Raises:
        StorageError: it cannot be made, or stands for another place, or is another user's.
    """
    try:
        folder.mkdir(parents=parents, exist_ok=True, mode=0o700)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise StorageError(f"{folder}: expected a folder of this user's own, and no link to one; remove it")
        if stat.S_IMODE(found.st_mode) & 0o077:
            folder.chmod(0o700)
    except OSError as error:
        raise StorageError(f"{folder}: the folder cannot be made: {error.strerror}") from None
    return folder


def private_file(path: Path, mode: Literal["wb", "ab", "xb"]) -> IO[bytes]:
    """A file of our own, opened to be written.

    Raises:
        OSError: it cannot be opened, or is a link.
    """

    def opened(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NOFOLLOW, 0o600)

    return open(path, mode, opener=opened)
