"""What a file holds, as a digest, and that it is really on the disk."""

import hashlib
import os
from pathlib import Path


def sha256_of(path: Path) -> str:
    """sha256 of a file's bytes, in hex.

    Raises:
        OSError: the file is missing or cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Let a file's bytes, or the names in a folder (a rename, say), survive a power cut.

    Raises:
        OSError: the disk is full or failing, or there is no such file or folder.
    """
    if os.name != "posix":  # Windows opens no folders, and syncs nothing that was opened for reading
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
