"""Who changed what: an append-only list whose entries each carry a digest of all that stood before them.

    chain_n = sha256(chain_(n-1), at, key, project, action, object)

An entry that is changed, left out or put in between breaks the chain at its place, which `verify` finds. Somebody who
may write to the database may also make a new chain, so keep the last link (`luthier service audit`) elsewhere.
"""

import json
import threading
from dataclasses import dataclass
from hashlib import sha256

import sqlalchemy as sa

from luthier.jobs.database import Database, Row, audit, now
from luthier.jobs.tenants import Caller

FIRST = "0" * 64
FIELDS = ("at", "key_id", "project_id", "action", "object_id")


@dataclass(frozen=True)
class Verified:
    """What a look at the whole list found."""

    entries: int
    last: str
    """The last link; compare it with one that was kept."""
    broken_at: int | None
    """The first entry, from 1 on, that does not follow from those before it; None: all do."""


class Audit:
    """The list of a database."""

    def __init__(self, database: Database) -> None:
        self._database, self._lock = database, threading.Lock()

    def note(self, caller: Caller, action: str, object_id: str) -> None:
        """Add an entry."""
        with self._lock, self._database.writing() as connection:
            last = connection.scalar(sa.select(audit.c.chain).order_by(audit.c.seq.desc()).limit(1)) or FIRST
            values = {
                "at": now(),
                "key_id": caller.key_id,
                "project_id": caller.project_id,
                "action": action,
                "object_id": object_id,
            }
            connection.execute(audit.insert().values(**values, chain=_link(last, [values[name] for name in FIELDS])))

    def verify(self) -> Verified:
        """Go along the whole chain."""
        last, count = FIRST, 0
        with self._database.reading() as connection:
            for row in connection.execute(sa.select(audit).order_by(audit.c.seq)).mappings():
                count += 1
                if row["chain"] != _link(last, [row[name] for name in FIELDS]):
                    return Verified(count, last, count)
                last = row["chain"]
        return Verified(count, last, None)

    def listed(self) -> list[Row]:
        """All entries, the oldest first."""
        with self._database.reading() as connection:
            return list(connection.execute(sa.select(audit).order_by(audit.c.seq)).mappings())


def _link(last: str, values: list[object]) -> str:
    return sha256(json.dumps([last, *values], ensure_ascii=False).encode()).hexdigest()
