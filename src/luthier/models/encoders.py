"""Encoders that can be had from a package index: a model that turns a text into one vector, for retrieval.

They are kept like base models, as a verified folder in the cache; only their packages hold plain files instead of a
GGUF file. No base model can be called so, and `models.load` refuses one that is no language model.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from luthier.config import canonical_hash
from luthier.models.catalog import (
    MANIFEST,
    ModelFiles,
    Part,
    Say,
    converted_folder,
    lock,
    make_once,
    read_manifest,
)

MAX_FILE_BYTES = 1 << 30
"""No file of an encoder is larger; a package that says otherwise is not the one that was pinned."""


@dataclass(frozen=True)
class Encoder:
    """An encoder of the catalogue."""

    name: str
    title: str
    summary: str
    license: str
    parameters: int
    download_bytes: int
    parts: tuple[Part, ...]
    """Its files, all of one package."""

    @property
    def folder(self) -> Path:
        """Where its files are kept, or will be."""
        return converted_folder(self.name, canonical_hash({part.member: part.sha256 for part in self.parts}))

    @property
    def is_cached(self) -> bool:
        """Whether it is here and ready."""
        return (self.folder / MANIFEST).is_file()


@cache
def encoders() -> Mapping[str, Encoder]:
    """The catalogue of encoders, by name."""
    text = (resources.files("luthier.models") / "encoders.toml").read_text(encoding="utf-8")
    return {name: _encoder(name, table) for name, table in tomllib.loads(text).items()}


def _encoder(name: str, table: Mapping[str, Any]) -> Encoder:
    values = dict(table)
    package, version, folder, files = (values.pop(key) for key in ("package", "version", "folder", "files"))
    parts = (Part(package, version, f"{folder}/{file}", sha256) for file, sha256 in files.items())
    return Encoder(name, parts=tuple(parts), **values)


def obtain_encoder(entry: Encoder, offline: bool, say: Say) -> ModelFiles:
    """Fetch an encoder, unless that was done before.

    Raises:
        ModelError, StorageError: as `catalog.resolve`.
    """
    if not entry.is_cached:
        with lock(entry.name):
            from luthier.models.packages import fetch_files

            first = entry.parts[0]
            origin = f"package index: {first.package} {first.version}"
            make_once(
                entry.folder,
                {"origin": origin, "license": entry.license, "gguf": ""},
                lambda made: fetch_files(entry.name, entry.parts, MAX_FILE_BYTES, made, offline, say),
                f"fetching {entry.name}",
            )
    return read_manifest(entry.name, entry.folder, "package", None)
