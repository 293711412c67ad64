"""The one database of the service: SQLite (WAL) by default, PostgreSQL by URL, one code path.

Tables hold what was asked for and what became of it; the bytes of files and the folders of runs lie beside it. A
transaction that writes takes a lock at its begin (SQLite's own, or an advisory one of PostgreSQL), so two of them wait
for each other instead of failing half way, and no code has to think of what another one writes meanwhile. SQLite's
`synchronous = FULL` and PostgreSQL's usual commit make what was answered with 200 survive a power cut.

`seq` of a row counts up in the order of creation. Lists go by it, as times repeat.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from luthier.errors import ServeError, StorageError

metadata = sa.MetaData()
Row: TypeAlias = sa.RowMapping
WAIT_SECONDS = 30.0
"""How long a writer waits for another one."""
WRITER, SERVER = 0x4C757468, 0x4C757469
"""Numbers of PostgreSQL's advisory locks: of the transaction that writes, and of the one server."""


def _id() -> list[sa.Column[Any]]:
    # ids that clients see are random; `seq` is what orders, and never leaves
    return [
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("id", sa.Text, nullable=False, unique=True),  # of models: their names, as long as an alias makes them
        sa.Column("created_at", sa.BigInteger, nullable=False),
    ]


def _project() -> sa.Column[Any]:
    return sa.Column("project_id", sa.String(64), sa.ForeignKey("projects.id"), nullable=False, index=True)


projects = sa.Table("projects", metadata, *_id(), sa.Column("name", sa.String(64), nullable=False, unique=True))
keys = sa.Table(
    "keys",
    metadata,
    *_id(),
    _project(),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("sha256", sa.LargeBinary(32), nullable=False, unique=True),
    sa.Column("revoked_at", sa.BigInteger),
)
files = sa.Table(
    "files",
    metadata,
    *_id(),
    _project(),
    sa.Column("filename", sa.Text, nullable=False),
    sa.Column("purpose", sa.String(32), nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False, index=True),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("status_details", sa.Text),
    sa.Column("expires_at", sa.BigInteger),
)
uploads = sa.Table(
    "uploads",
    metadata,
    *_id(),
    _project(),
    sa.Column("filename", sa.Text, nullable=False),
    sa.Column("purpose", sa.String(32), nullable=False),
    sa.Column("mime_type", sa.Text, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("expires_at", sa.BigInteger, nullable=False),
    sa.Column("file_seconds", sa.Integer),
    sa.Column("file_id", sa.String(255)),
)
upload_parts = sa.Table(
    "upload_parts",
    metadata,
    *_id(),
    sa.Column("upload_id", sa.String(255), sa.ForeignKey("uploads.id"), nullable=False, index=True),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
)
jobs = sa.Table(
    "jobs",
    metadata,
    *_id(),
    _project(),
    sa.Column("status", sa.String(32), nullable=False, index=True),
    sa.Column("asked", sa.JSON, nullable=False),
    sa.Column("picked", sa.JSON, nullable=False),
    sa.Column("base", sa.Text, nullable=False),
    sa.Column("training_file", sa.String(255), nullable=False),
    sa.Column("validation_file", sa.String(255)),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False, default=0),
    sa.Column("error", sa.JSON),
    sa.Column("fine_tuned_model", sa.Text, unique=True),
    sa.Column("started_at", sa.BigInteger),
    sa.Column("finished_at", sa.BigInteger),
    sa.Column("estimated_finish", sa.BigInteger),
    sa.Column("trained_tokens", sa.BigInteger),
    sa.Column("result_files", sa.JSON, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
)
requests = sa.Table(
    "requests",
    metadata,
    sa.Column("project_id", sa.String(64), primary_key=True),
    sa.Column("idempotency_key", sa.String(255), primary_key=True),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("object_id", sa.String(255), nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
)
events = sa.Table(
    "events",
    metadata,
    *_id(),
    sa.Column("job_id", sa.String(255), sa.ForeignKey("jobs.id"), nullable=False, index=True),
    sa.Column("key", sa.String(64), nullable=False),
    sa.Column("level", sa.String(8), nullable=False),
    sa.Column("type", sa.String(32), nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("data", sa.JSON),
    sa.UniqueConstraint("job_id", "key"),
)
checkpoints = sa.Table(
    "checkpoints",
    metadata,
    *_id(),
    sa.Column("job_id", sa.String(255), sa.ForeignKey("jobs.id"), nullable=False, index=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("step_number", sa.Integer, nullable=False),
    sa.Column("metrics", sa.JSON, nullable=False),
    sa.UniqueConstraint("job_id", "step_number"),
)
permissions = sa.Table(
    "permissions",
    metadata,
    *_id(),
    _project(),
    sa.Column("checkpoint", sa.Text, nullable=False, index=True),
    sa.UniqueConstraint("project_id", "checkpoint"),
)
models = sa.Table(
    "models",
    metadata,
    *_id(),
    _project(),
    sa.Column("job_id", sa.String(255), sa.ForeignKey("jobs.id"), nullable=False),
    sa.Column("base", sa.Text, nullable=False),
    sa.Column("folder", sa.Text, nullable=False),
)
evals = sa.Table(
    "evals",
    metadata,
    *_id(),
    _project(),
    sa.Column("updated_at", sa.BigInteger, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("data_source_config", sa.JSON, nullable=False),
    sa.Column("testing_criteria", sa.JSON, nullable=False),
    sa.Column("metadata", sa.JSON),
)
eval_runs = sa.Table(
    "eval_runs",
    metadata,
    *_id(),
    _project(),
    sa.Column("eval_id", sa.String(255), sa.ForeignKey("evals.id"), nullable=False, index=True),
    sa.Column("status", sa.String(16), nullable=False, index=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("data_source", sa.JSON, nullable=False),
    sa.Column("metadata", sa.JSON),
    sa.Column("error", sa.JSON),
    sa.Column("summary", sa.JSON),
    sa.Column("bytes", sa.BigInteger, nullable=False),
)
eval_items = sa.Table(
    "eval_items",
    metadata,
    *_id(),
    sa.Column("run_id", sa.String(255), sa.ForeignKey("eval_runs.id"), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("item", sa.JSON, nullable=False),
    sa.Column("given", sa.JSON),
    sa.Column("status", sa.String(8)),
    sa.Column("results", sa.JSON),
    sa.Column("sample", sa.JSON),
    sa.Column("usage", sa.JSON),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("run_id", "number"),
)
audit = sa.Table(
    "audit",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("key_id", sa.String(255), nullable=False),
    sa.Column("project_id", sa.String(64), nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("object_id", sa.Text, nullable=False),
    sa.Column("chain", sa.String(64), nullable=False),
)
webhooks = sa.Table(
    "webhooks",
    metadata,
    *_id(),
    sa.Column("type", sa.String(64), nullable=False),
    sa.Column("object_id", sa.String(255), nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("next_at", sa.BigInteger, nullable=False),
    sa.Column("delivered_at", sa.BigInteger),
)
sessions = sa.Table(
    "sessions",
    metadata,
    *_id(),
    sa.Column("key_id", sa.String(255), sa.ForeignKey("keys.id"), nullable=False, index=True),
    sa.Column("expires_at", sa.BigInteger, nullable=False),
)
edits = sa.Table(
    "edits",
    metadata,
    *_id(),
    _project(),
    sa.Column("file_id", sa.String(255), nullable=False, index=True),
    sa.Column("line", sa.Integer, nullable=False),
    sa.Column("text", sa.Text),
    sa.Column("undone_at", sa.BigInteger),
)
rankings = sa.Table(
    "rankings",
    metadata,
    *_id(),
    _project(),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("first", sa.Text, nullable=False),
    sa.Column("second", sa.Text, nullable=False),
    sa.Column("sampling", sa.JSON, nullable=False),
)
ranked_pairs = sa.Table(
    "ranked_pairs",
    metadata,
    *_id(),
    sa.Column("ranking_id", sa.String(255), sa.ForeignKey("rankings.id"), nullable=False, index=True),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("messages", sa.JSON, nullable=False),
    sa.Column("first", sa.Text),
    sa.Column("second", sa.Text),
    sa.UniqueConstraint("ranking_id", "number"),
)
ratings = sa.Table(
    "ratings",
    metadata,
    *_id(),
    sa.Column("pair_id", sa.String(255), sa.ForeignKey("ranked_pairs.id"), nullable=False, index=True),
    sa.Column("key_id", sa.String(255), sa.ForeignKey("keys.id"), nullable=False),
    sa.Column("choice", sa.String(8), nullable=False),
    sa.Column("undone_at", sa.BigInteger),
)
_migrations = sa.Table(
    "migrations",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("applied_at", sa.BigInteger, nullable=False),
)

MIGRATIONS: tuple[tuple[str, Callable[[sa.Connection], None]], ...] = ()
"""Steps that bring an older database to the tables above, by name, the oldest first. A new database has them all."""


class Database:
    """Connections to the service's database; any thread may use it.

    Args:
        url: as SQLAlchemy reads it: `sqlite:////var/lib/luthier/service.sqlite`, `postgresql+psycopg://...`.

    Raises:
        StorageError: it cannot be opened, or was made by a newer version.
    """

    def __init__(self, url: str) -> None:
        try:
            parsed = sa.make_url(url)
        except ArgumentError:
            raise StorageError("database: expected a URL, such as postgresql+psycopg://USER@HOST/NAME") from None
        kind, shown = parsed.get_backend_name(), parsed.render_as_string(hide_password=True)
        if kind not in PREPARED:
            raise StorageError(f"the database {shown} is of another kind; expected one of {', '.join(PREPARED)}")
        try:
            self.engine = sa.create_engine(parsed, pool_pre_ping=kind != "sqlite", hide_parameters=True)
            PREPARED[kind](self.engine)
            self._migrate()
        except ImportError as error:
            raise StorageError(
                f"the database {shown} cannot be opened: {error}; install luthier[postgres], and write "
                "postgresql+psycopg://"
            ) from None
        except SQLAlchemyError as error:
            raise StorageError(f"the database {shown} cannot be opened: {error}") from None

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A transaction that writes nothing."""
        with self.engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction; what is in it is done at the end, or none of it."""
        with self.engine.connect().execution_options(writes=True) as connection, connection.begin():
            yield connection

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep a second server from a PostgreSQL database; from SQLite's file, the lock of its folder keeps it.

        Raises:
            ServeError: there is one.
        """
        if self.engine.dialect.name != "postgresql":
            yield
            return
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            if not connection.scalar(sa.select(sa.func.pg_try_advisory_lock(SERVER))):
                raise ServeError("another server works with this database")
            yield

    def close(self) -> None:
        """Let all connections go."""
        self.engine.dispose()

    def _migrate(self) -> None:
        with self.writing() as connection:
            is_new = not sa.inspect(connection).has_table("migrations")
            metadata.create_all(connection)
            applied = set(connection.scalars(sa.select(_migrations.c.name)))
            unknown = applied - {name for name, _ in MIGRATIONS}
            if unknown:
                raise StorageError(
                    f"the database was changed by a newer version of Luthier ({', '.join(sorted(unknown))}); "
                    "use that version, or a copy from before"
                )
            for name, step in MIGRATIONS:
                if name not in applied:
                    if not is_new:
                        step(connection)
                    connection.execute(_migrations.insert().values(name=name, applied_at=now()))


def insert_new(connection: sa.Connection, table: sa.Table, values: Mapping[str, Any]) -> None:
    """Insert a row unless one with the same unique values is there."""
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    connection.execute(insert(table).values(**values).on_conflict_do_nothing())


def sqlite_url(path: Path) -> str:
    """The URL of a SQLite file."""
    return sa.URL.create("sqlite", database=str(path)).render_as_string(hide_password=False)


def now() -> int:
    """Seconds since 1970, as OpenAI's objects carry them."""
    return int(time.time())


def _prepare_postgres(engine: sa.Engine) -> None:
    """A patient lock, and one transaction at a time that writes."""

    @sa.event.listens_for(engine, "begin")
    def begun(connection: sa.Connection) -> None:
        if connection.get_execution_options().get("writes", False):
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = {int(WAIT_SECONDS * 1000)}")
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITER})")

    @sa.event.listens_for(engine, "handle_error")
    def failed(context: sa.ExceptionContext) -> None:
        for error in (context.original_exception, context.sqlalchemy_exception):
            if error is not None:  # its detail quotes the row, and an error may end in a log
                error.args = tuple(str(text).partition("\nDETAIL:")[0] for text in error.args)


def _prepare_sqlite(engine: sa.Engine) -> None:
    """WAL, a patient lock, and transactions that begin where SQLAlchemy says so."""

    @sa.event.listens_for(engine, "connect")
    def connected(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver would begin transactions by its own rules
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {int(WAIT_SECONDS * 1000)}")
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()

    @sa.event.listens_for(engine, "begin")
    def begun(connection: sa.Connection) -> None:
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


PREPARED: Mapping[str, Callable[[sa.Engine], None]] = {"sqlite": _prepare_sqlite, "postgresql": _prepare_postgres}
