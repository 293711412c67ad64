"""The parts of the service put together over one folder."""

import fcntl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from luthier.errors import ServeError, StorageError
from luthier.jobs.audit import Audit
from luthier.jobs.blobs import Blobs
from luthier.jobs.database import Database, sqlite_url
from luthier.jobs.eval_store import EvalStore
from luthier.jobs.eval_worker import EvalWorker
from luthier.jobs.file_store import FileStore, Quota
from luthier.jobs.gateway import Gateway
from luthier.jobs.http.app import Service, build_routes
from luthier.jobs.http.document import document_text
from luthier.jobs.http.fine_tuning import Names
from luthier.jobs.http.inference import served_as
from luthier.jobs.job_store import JobStore
from luthier.jobs.metrics import Metrics
from luthier.jobs.private import private_file, private_folder
from luthier.jobs.supervisor import Limits, Supervisor
from luthier.jobs.tenants import Tenants
from luthier.jobs.webhooks import Target, Webhooks
from luthier.recipe import ModelSettings

FILES = "files"
"""Folder of uploaded bytes; a service has one."""
LOCK = ".lock"


@dataclass(frozen=True)
class Options:
    """What the operator decides."""

    folder: Path
    database: str | None = None
    """A URL; None: SQLite in the folder."""
    bases: tuple[str, ...] = ()
    """That jobs may train from; none: the default model."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    at_once: int = 1
    webhook: Target | None = None
    quota: Quota = field(default_factory=Quota)


def parse_aliases(given: Sequence[str]) -> dict[str, str]:
    """`NAME=MODEL` of the command line.

    Raises:
        ServeError: one is something else.
    """
    pairs = {}
    for text in given:
        name, equals, model = text.partition("=")
        if not name or not equals or not model:
            raise ServeError(f"--alias {text}: expected NAME=MODEL, such as gpt-4o-mini=smollm2-135m-instruct")
        pairs[name] = model
    return pairs


@contextmanager
def open_service(options: Options) -> Iterator[Service]:
    """Open the folder, which one process at a time may do to serve.

    Raises:
        StorageError: it cannot be made, or the database cannot be opened.
        ServeError: an alias means no base, or a number is out of range.
    """
    bases = options.bases or (ModelSettings().name, *sorted(set(options.aliases.values())))
    bases = tuple(dict.fromkeys(bases))
    for name, model in options.aliases.items():
        if model not in bases:
            raise ServeError(f"--alias {name}={model}: {model} is none of the bases ({', '.join(bases)})")
    if not 0 <= options.at_once <= 64:
        raise ServeError(f"--jobs {options.at_once}: expected 0 (jobs only wait) to 64")
    own_folder(options.folder)
    database = Database(options.database or _own_database(options.folder / "service.sqlite"))
    try:
        blobs = Blobs(options.folder / FILES)
        files, jobs = FileStore(database, blobs, options.quota), JobStore(database)
        supervisor = Supervisor(jobs, files, blobs, options.folder / "jobs", Limits(at_once=options.at_once))
        gateway = Gateway(options.folder / "served")
        names, evals = Names(bases, options.aliases), EvalStore(database)
        yield Service(
            database=database,
            tenants=Tenants(database),
            files=files,
            jobs=jobs,
            supervisor=supervisor,
            names=names,
            gateway=gateway,
            audit=Audit(database),
            metrics=Metrics(database, supervisor),
            webhooks=Webhooks(database, options.webhook),
            evals=evals,
            eval_worker=EvalWorker(evals, gateway, partial(served_as, jobs, names)),
        )
    finally:
        database.close()


def openapi_text() -> str:
    """The service's OpenAPI document as the text of `docs/openapi.json`; made from routes, so one is begun."""
    with TemporaryDirectory() as folder, open_service(Options(Path(folder))) as service:
        return document_text(build_routes(service))


def is_service(folder: Path) -> bool:
    """Whether a service was begun in the folder."""
    return (folder / FILES).is_dir()


def own_folder(folder: Path) -> None:
    """Make the service's folder, or make sure that it is one, and that nobody else may open it.

    Raises:
        StorageError: it cannot be made, is a link or another user's, or holds something else.
    """
    if folder.is_dir() and folder.stat().st_mode & 0o077 and not _is_ours(folder):
        raise StorageError(f"{folder}: others may open it, and it is no service's; give a new or an empty folder")
    private_folder(folder, parents=True)


def _is_ours(folder: Path) -> bool:
    names = {path.name for path in folder.iterdir()}
    return names <= {LOCK, "lost+found"} or FILES in names


def _own_database(path: Path) -> str:
    """The URL of a SQLite file that only this user may open; its journals get the same mode."""
    try:
        with private_file(path, "ab"):
            path.chmod(0o600)
    except OSError as error:
        raise StorageError(f"{path}: the database cannot be opened: {error.strerror}") from None
    return sqlite_url(path)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep a second server from the folder.

    Raises:
        ServeError: there is one.
        StorageError: as `own_folder`.
    """
    own_folder(folder)
    with private_file(folder / LOCK, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ServeError(f"{folder}: another server works in this folder") from None
        yield
