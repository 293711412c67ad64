"""A plugin for the client's tests: before each of them the database is what it was.

They name fixed ids, delete them, and ask for them again. It runs in the client's environment, so it knows nothing of
Luthier: it copies every table back from a copy.
"""

import os
import sqlite3
from contextlib import closing

import pytest

LIVE, SEED = "LUTHIER_CONFORMANCE_DATABASE", "LUTHIER_CONFORMANCE_SEED"


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Put all rows back."""
    with closing(sqlite3.connect(os.environ[LIVE], timeout=30, isolation_level=None)) as database:
        database.execute("ATTACH ? AS seed", (os.environ[SEED],))
        database.execute("BEGIN IMMEDIATE")
        names = [name for (name,) in database.execute("SELECT name FROM seed.sqlite_master WHERE type = 'table'")]
        own = [name for name in names if not name.startswith("sqlite_")]
        for name in own:
            database.execute(f'DELETE FROM main."{name}"')
        for name in own:
            database.execute(f'INSERT INTO main."{name}" SELECT * FROM seed."{name}"')
        database.execute("COMMIT")
