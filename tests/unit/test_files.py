"""Digests of files, and files that are really on the disk."""

import hashlib
from pathlib import Path

import pytest

from luthier.files import sha256_of, sync


@pytest.mark.parametrize("size", [0, 1, 300_000])
def test_the_digest_is_of_the_bytes(size: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"\n" * size)
    assert sha256_of(path) == hashlib.sha256(b"\n" * size).hexdigest()


def test_files_and_folders_can_be_synced_and_missing_ones_are_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    sync(tmp_path / "file")
    sync(tmp_path)
    for missing in (sync, sha256_of):
        with pytest.raises(FileNotFoundError):
            missing(tmp_path / "none")
