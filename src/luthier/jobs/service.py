"""The parts of the service put together over one folder."""

import fcntl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from luthier.errors import ServeError, StorageError
from luthier.jobs.audit import Audit
from luthier.jobs.blobs import Blobs
from luthier.jobs.database import Database, sqlite_url
from luthier.jobs.disk import FREE_BYTES, Disk
from luthier.jobs.eval_store import EvalStore
from luthier.jobs.eval_worker import EvalWorker
from luthier.jobs.file_store import FileStore, Quota
from luthier.jobs.gateway import Gateway, Served
from luthier.jobs.http.app import Service, build_routes
from luthier.jobs.http.document import document_text
from luthier.jobs.http.fine_tuning import Names
from luthier.jobs.http.inference import served_as
from luthier.jobs.job_store import MOST_WAITING, JobStore
from luthier.jobs.metrics import Metrics
from luthier.jobs.private import private_file, private_folder
from luthier.jobs.supervisor import Limits, Supervisor
from luthier.jobs.tenants import Tenants
from luthier.jobs.vllm import Address
from luthier.jobs.webhooks import Target, Webhooks
from luthier.recipe import ModelSettings

FILES = "files"
"""Folder of uploaded bytes; a service has one."""
LOCK = ".lock"
SETTINGS = "service.toml"
"""The operator's settings, where they lie in the service's folder."""


@dataclass(frozen=True)
class Options:
    """What the operator decides."""

    folder: Path
    database: str | None = None
    """A URL; None: SQLite in the folder."""
    bases: tuple[str, ...] = ()
    """That jobs may train from; none: the default model."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    embedders: Mapping[str, str] = field(default_factory=dict)
    """Encoders for /v1/embeddings, by the names that clients use."""
    ggufs: Mapping[str, Path] = field(default_factory=dict)
    """GGUF files for chats and completions, by the names that clients use."""
    vllm: Mapping[str, Address] = field(default_factory=dict)
    """vLLM servers, by the base that they answer for."""
    at_once: int = 1
    """Jobs that train at a time, if memory lets them."""
    hours: float = Limits.seconds / 3600
    """Longest time of a job."""
    most_waiting: int = MOST_WAITING
    """Jobs of a project that have not begun or are paused."""
    free_bytes: int = FREE_BYTES
    """Of the disk, that stay free."""
    memory_bytes: int = Limits.memory_bytes
    """Of the machine, for all jobs together."""
    webhook: Target | None = None
    quota: Quota = field(default_factory=Quota)


@contextmanager
def open_service(options: Options) -> Iterator[Service]:
    """Open the folder, which one process at a time may do to serve.

    Raises:
        StorageError: it cannot be made, or the database cannot be opened.
        ServeError: an alias means no base, or two models have one name.
    """
    bases = options.bases or (ModelSettings().name, *sorted(set(options.aliases.values())))
    bases = tuple(dict.fromkeys(bases))
    for name, model in options.aliases.items():
        if model not in bases:
            raise ServeError(f"the alias {name} = {model}: {model} is none of the bases ({', '.join(bases)})")
    names = Names(bases, options.aliases, options.embedders, options.ggufs)
    if strange := [base for base in options.vllm if base not in bases]:
        raise ServeError(f"models.vllm.{strange[0]}: it is none of the bases ({', '.join(bases)})")
    if twice := [name for name in names.listed if names.listed.count(name) > 1]:
        raise ServeError(f"two models have the same name: {twice[0]}")
    own_folder(options.folder)
    database = Database(options.database or _own_database(options.folder / "service.sqlite"))
    try:
        blobs = Blobs(options.folder / FILES)
        disk = Disk(options.folder, options.free_bytes)
        files, jobs = FileStore(database, blobs, options.quota, disk), JobStore(database, options.most_waiting)
        limits = Limits(options.at_once, options.hours * 3600, options.memory_bytes)
        place = options.folder / "jobs"
        gateway = Gateway(options.folder / "served", place, options.vllm, options.at_once)
        supervisor = Supervisor(jobs, files, blobs, disk, place, limits, lambda row: gateway.prepare(Served.of(row)))
        evals = EvalStore(database)
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
    return names <= {LOCK, SETTINGS, "lost+found"} or FILES in names


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
