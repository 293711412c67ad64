"""Tensors that a run keeps in a file, there whole or not at all, under the fingerprint of what decides them."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from luthier.errors import StorageError
from luthier.files import sync

KEY = "fingerprint"
"""Of the file's metadata."""


def holds(path: Path, fingerprint: str) -> bool:
    """Whether there is a whole file that was written under this fingerprint; its tensors are not read."""
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get(KEY) == fingerprint
    except (OSError, SafetensorError):
        return False


def read(path: Path, fingerprint: str) -> dict[str, Tensor] | None:
    """The tensors by name, mapped; None if there is no file, or it is of another fingerprint or damaged."""
    if not holds(path, fingerprint):
        return None
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError):
        return None


def write(path: Path, tensors: Mapping[str, Tensor], fingerprint: str, what: str) -> None:
    """Keep tensors; `what` they are is told where they cannot be.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    temporary = path.with_suffix(".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(dict(tensors), temporary, {KEY: fingerprint})
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(f"{path}: {what} could not be kept: {error}") from None
