"""The registry of runs: where each run of this user lies, what it came from, and what it reached.

A run's folder is the truth. An entry is read from its small files by `read_entry`, whether the run tells of itself
while it works or `scan` finds it later, so the registry can be deleted and made anew. It is one SQLite file,
`$LUTHIER_HOME/runs.sqlite`, else `~/.local/share/luthier/runs.sqlite` (`$XDG_DATA_HOME` moves that); it is no cache, so
it does not lie in the cache. Its log is written ahead (WAL), a writer takes the lock before it reads the folder, and so
the last of two processes at once writes what is true then.
"""

import json
import os
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from luthier.config import canonical_hash
from luthier.errors import RecipeError, StorageError

FORMAT = 1
"""Of the SQLite file; raise it when the tables change. What is in another format is refused: a scan makes it anew."""
WAIT_SECONDS = 10.0
"""How long a writer waits for another one."""
SCHEMA = """
CREATE TABLE runs (folder TEXT PRIMARY KEY, id TEXT NOT NULL, created TEXT NOT NULL, entry TEXT NOT NULL);
CREATE INDEX runs_by_id ON runs (id);
CREATE TABLE parents (folder TEXT NOT NULL, parent_id TEXT NOT NULL);
CREATE INDEX parents_by_id ON parents (parent_id);
"""

T = TypeVar("T", bound=BaseModel)


class _Part(BaseModel):
    """What is read from a run's folder; keys that are not needed here are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=(), use_attribute_docstrings=True)


class Parent(_Part):
    """Where a run came from."""

    id: str
    """Of the other run, or of the search."""
    folder: str
    """Where it lay then."""
    relation: str
    """`rebase of`, `merge of`, `trial of`, `winner of` or `continuation of`."""


class Value(_Part):
    """A measured value and its interval."""

    value: float | None = None
    """Null if it was not finite."""
    low: float | None = None
    """Lower end."""
    high: float | None = None
    """Upper end."""


class Entry(_Part):
    """One run, as its folder says."""

    id: str
    """Made with the folder; a copy of the folder has the same."""
    folder: str
    """Absolute."""
    created: str
    """UTC."""
    updated: float
    """When a file that this was read from was last written, in seconds since 1970."""
    stage: str
    """How far it came: `begun`, `data`, `trained`, `evaluated` or `reported`."""
    failure: str | None = None
    """Why its last process ended, if by an error."""
    openings: int = 1
    """How often it was begun or gone on with."""
    recipe_sha256: str | None = None
    """Of the effective settings."""
    model: str | None = None
    """The base's name."""
    adapter: str | None = None
    """Its type."""
    rows: dict[str, str | None] = {}
    """Digest of the rows of each split."""
    metric: str | None = None
    """The primary one."""
    systems: dict[str, Value] = {}
    """Value of each system on the primary metric."""
    forgetting: str | None = None
    """Its verdict."""
    seconds: float = 0.0
    """All stages, in all openings."""
    usd: float | None = None
    """What the run cost on this machine; null before its report."""
    trial: dict[str, Any] | None = None
    """Of a trial of a search: its number, settings, state and value."""
    parents: tuple[Parent, ...] = ()
    """Where it came from."""

    @property
    def state(self) -> str:
        """`failed` if its last process ended so, else the stage."""
        return "failed" if self.failure is not None else self.stage

    @property
    def is_gone(self) -> bool:
        """Whether its folder was moved, deleted, or made anew by another run."""
        try:
            manifest = _load(Path(self.folder) / "manifest.json", _Manifest)
        except StorageError:
            return False  # something is there
        return manifest is None or _id_of(manifest) != self.id


class _Stage(_Part):
    seconds: float = 0.0


class _Manifest(_Part):
    id: str | None = None
    created: str = ""
    openings: int = 1
    failure: str | None = None
    recipe_sha256: str | None = None
    stages: dict[str, _Stage] = {}
    parents: tuple[Parent, ...] = ()
    trial: dict[str, Any] | None = None


class _Named(_Part):
    name: str | None = None
    type: str | None = None


class _Evaluated(_Part):
    systems: dict[str, Any] = {}


class _Recipe(_Part):
    model: _Named = _Named()
    adapter: _Named = _Named()
    evaluation: _Evaluated = _Evaluated()


class _Split(_Part):
    written: dict[str, str | None] = {}


class _Training(_Part):
    stopped: str = ""


class _System(_Part):
    name: str
    metrics: dict[str, Value] = {}


class _Evaluation(_Part):
    primary_metric: str
    systems: tuple[_System, ...] = ()


class _Forgetting(_Part):
    verdict: str | None = None


class _Cost(_Part):
    run_usd: float | None = None


class _Report(_Part):
    cost: _Cost = _Cost()


FILES: dict[str, type[_Part]] = {
    "manifest.json": _Manifest,
    "recipe.json": _Recipe,
    "data/split.json": _Split,
    "training.json": _Training,
    "evaluation.json": _Evaluation,
    "forgetting.json": _Forgetting,
    "report.json": _Report,
}


def new_id() -> str:
    """The name of a new run, for all time."""
    return secrets.token_hex(6)


def place() -> Path:
    """The SQLite file.

    Raises:
        StorageError: this user has no home folder, and nothing else is named.
    """
    given = os.environ.get("LUTHIER_HOME")
    shared = os.environ.get("XDG_DATA_HOME")
    try:
        folder = Path(given) if given else Path(shared or Path.home() / ".local/share") / "luthier"
    except RuntimeError as error:
        raise StorageError(
            f"the registry of runs has no place: {error} Set LUTHIER_HOME to a folder that can be written"
        ) from None
    return folder / "runs.sqlite"


# What a folder says


def read_entry(folder: Path) -> Entry | None:
    """A run's entry as its folder stands; None if there is no run in it.

    Raises:
        StorageError: a file in it is damaged.
    """
    folder = folder.resolve()
    found = {name: _load(folder / name, kind) for name, kind in FILES.items()}
    manifest, recipe = found["manifest.json"], found["recipe.json"]
    if not isinstance(manifest, _Manifest) or not isinstance(recipe, _Recipe):
        return None
    evaluation, report = found["evaluation.json"], found["report.json"]
    split, forgetting = found["data/split.json"], found["forgetting.json"]
    metric = evaluation.primary_metric if isinstance(evaluation, _Evaluation) else None
    systems = evaluation.systems if isinstance(evaluation, _Evaluation) else ()
    written = split.written if isinstance(split, _Split) else {}
    return Entry(
        id=_id_of(manifest),
        folder=str(folder),
        created=manifest.created,
        updated=max((folder / name).stat().st_mtime for name, part in found.items() if part is not None),
        stage=_stage(folder, found, recipe.evaluation.systems.keys() <= {s.name for s in systems}),
        failure=manifest.failure,
        openings=manifest.openings,
        recipe_sha256=manifest.recipe_sha256,
        model=recipe.model.name,
        adapter=recipe.adapter.type,
        rows={name.removesuffix(".jsonl"): digest for name, digest in written.items() if name.endswith(".jsonl")},
        metric=metric,
        systems={s.name: s.metrics[metric] for s in systems if metric in s.metrics},
        forgetting=forgetting.verdict if isinstance(forgetting, _Forgetting) else None,
        seconds=round(sum(stage.seconds for stage in manifest.stages.values()), 3),
        usd=report.cost.run_usd if isinstance(report, _Report) else None,
        trial=manifest.trial,
        parents=manifest.parents,
    )


def _stage(folder: Path, found: dict[str, Any], all_measured: bool) -> str:
    """How far a run came; what was merged has weights without a training."""
    training = found["training.json"]
    ended = isinstance(training, _Training) and training.stopped in ("finished", "early")
    if not ended and not (folder / "adapter").is_dir():
        return "data" if found["data/split.json"] is not None else "begun"
    if found["evaluation.json"] is None or not all_measured:
        return "trained"
    return "reported" if found["report.json"] is not None else "evaluated"


def _id_of(manifest: _Manifest) -> str:
    """The run's id; a run that is older than ids has one made of what it recorded."""
    return manifest.id or canonical_hash([manifest.created, manifest.recipe_sha256])[:12]


def _load(path: Path, kind: type[T]) -> T | None:
    try:
        return kind.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValidationError) as error:
        first = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error.strerror
        raise StorageError(f"{path} is damaged ({first})") from None


# The SQLite file


@contextmanager
def _opened() -> Iterator[sqlite3.Connection]:
    path = place()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=WAIT_SECONDS, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            _require_tables(connection, path)
            yield connection
    except (sqlite3.Error, OSError) as error:
        raise StorageError(
            f"the registry of runs, {path}, cannot be used: {error}. Set LUTHIER_HOME to a folder that can be written; "
            "if the file is damaged, remove it, and `luthier runs --scan FOLDER` makes it anew"
        ) from None


@contextmanager
def _writing(connection: sqlite3.Connection) -> Iterator[None]:
    """A transaction that holds the lock from its first moment on."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _require_tables(connection: sqlite3.Connection, path: Path) -> None:
    def version() -> int:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])

    if version() == 0:
        with _writing(connection):
            if version() == 0:  # no other process was faster
                for statement in SCHEMA.split(";")[:-1]:
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {FORMAT}")
    if version() != FORMAT:
        raise StorageError(
            f"the registry of runs, {path}, was made by another version of Luthier (format {version()}, expected "
            f"{FORMAT}); remove it, and `luthier runs --scan FOLDER` makes it anew"
        )


def enter(folder: Path) -> Entry | None:
    """Write down a run as its folder stands now; None if there is no run in it.

    Raises:
        StorageError: the registry cannot be written, or a file in the folder is damaged.
    """
    with _opened() as connection, _writing(connection):
        return _enter(connection, folder)


def _enter(connection: sqlite3.Connection, folder: Path) -> Entry | None:
    entry = read_entry(folder)
    if entry is None:
        return None
    known = connection.execute("SELECT folder FROM runs WHERE id = ? AND folder != ?", (entry.id, entry.folder))
    for (other,) in known.fetchall():
        if not Path(other).is_dir():  # it was moved here; of a copy, both stay
            _forget(connection, other)
    _forget(connection, entry.folder)
    values = (entry.folder, entry.id, entry.created, entry.model_dump_json())
    connection.execute("INSERT INTO runs VALUES (?, ?, ?, ?)", values)
    connection.executemany("INSERT INTO parents VALUES (?, ?)", [(entry.folder, p.id) for p in entry.parents])
    return entry


def _forget(connection: sqlite3.Connection, folder: str) -> None:
    connection.execute("DELETE FROM runs WHERE folder = ?", (folder,))
    connection.execute("DELETE FROM parents WHERE folder = ?", (folder,))


def scan(folder: Path) -> tuple[list[Entry], list[str]]:
    """Enter every run under `folder`, and forget those under it that are gone.

    Returns:
        The runs that were found, and what is wrong with folders that could not be read.

    Raises:
        RecipeError: there is no such folder.
        StorageError: the registry cannot be written.
    """
    if not folder.is_dir():
        raise RecipeError(f"--scan {folder}: no such folder; expected one with runs in it, such as runs")
    found, damaged, root = [], [], folder.resolve()
    with _opened() as connection:
        for place_of_run in _runs_under(root):
            try:
                with _writing(connection):
                    entry = _enter(connection, place_of_run)
            except StorageError as error:
                damaged.append(str(error))
            else:
                found += [entry] if entry else []
        here = {entry.folder for entry in found}
        for entry in _read(connection, "SELECT entry FROM runs"):
            if entry.folder not in here and Path(entry.folder).is_relative_to(root) and entry.is_gone:
                _forget(connection, entry.folder)
    return found, damaged


def _runs_under(root: Path) -> Iterator[Path]:
    for path, folders, files in os.walk(root):
        is_run = {"manifest.json", "recipe.json"} <= set(files)
        folders[:] = [] if is_run else sorted(name for name in folders if not name.startswith("."))
        if is_run:
            yield Path(path)


def entries() -> list[Entry]:
    """All runs, newest first.

    Raises:
        StorageError: the registry cannot be read.
    """
    if not place().is_file():
        return []
    with _opened() as connection:
        return _read(connection, "SELECT entry FROM runs ORDER BY created DESC, folder DESC")


def children(run_id: str) -> list[Entry]:
    """Runs that came from this one, oldest first.

    Raises:
        StorageError: the registry cannot be read.
    """
    if not place().is_file():
        return []
    query = "SELECT entry FROM runs JOIN parents USING (folder) WHERE parent_id = ? ORDER BY created, folder"
    with _opened() as connection:
        return _read(connection, query, run_id)


def _read(connection: sqlite3.Connection, query: str, *values: str) -> list[Entry]:
    return [Entry(**json.loads(text)) for (text,) in connection.execute(query, values).fetchall()]


def find(name: str) -> Entry:
    """The run that a folder, or the beginning of an id, names.

    Raises:
        RecipeError: there is none, there are several, or its folder is gone.
        StorageError: the folder is damaged, or the registry cannot be read.
    """
    here = read_entry(Path(name)) if Path(name).is_dir() else None
    if here is not None:
        return here
    known = [entry for entry in entries() if entry.id.startswith(name)]
    there = [entry for entry in known if not entry.is_gone]
    if len(there) == 1:
        return there[0]
    if there:
        raise RecipeError(f"{name}: more than one run is called so: {_folders(there)}; give a folder")
    if known:
        raise RecipeError(
            f"{name}: its folder was moved or deleted ({_folders(known)}); `luthier runs --scan FOLDER` finds it again"
        )
    raise RecipeError(f"{name}: neither a run's folder nor the beginning of an id that `luthier runs` lists")


def _folders(found: Sequence[Entry]) -> str:
    return ", ".join(entry.folder for entry in found)
