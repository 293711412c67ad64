"""Projects and the keys that open them.

A key is shown once, when it is made; the database holds its sha256, which is enough for a random key of 256 bits. A
`member` key opens what belongs to its project; an `admin` key also grants checkpoints to other projects. What is not
the caller's does not exist for him: every query of the service carries the project of the key.
"""

import secrets
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal, TypeAlias

import sqlalchemy as sa

from luthier.errors import ServeError
from luthier.jobs.database import Database, keys, now, projects
from luthier.jobs.ids import KEY, PROJECT, new_id

Role: TypeAlias = Literal["member", "admin"]
ROLES: tuple[Role, ...] = ("member", "admin")
SECRET = "sk-luthier-"
LONGEST_NAME = 64


@dataclass(frozen=True)
class Caller:
    """Who sends a request."""

    key_id: str
    project_id: str
    role: Role

    @property
    def is_admin(self) -> bool:
        """May grant checkpoints to other projects."""
        return self.role == "admin"


class Tenants:
    """The projects and keys of a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def project(self, name: str) -> str:
        """The id of a project, which is made if there is none of the name.

        Raises:
            ServeError: the name is empty or longer than 64 characters.
        """
        _require_name("project", name)
        with self._database.writing() as connection:
            found = connection.scalar(sa.select(projects.c.id).where(projects.c.name == name))
            if found is not None:
                return str(found)
            made = new_id(PROJECT)
            connection.execute(projects.insert().values(id=made, created_at=now(), name=name))
            return made

    def add_key(self, project: str, name: str, role: Role = "member", secret: str | None = None) -> str:
        """A new key of a project, by the project's name; returned once, and kept nowhere.

        Raises:
            ServeError: the role is none, a name is empty or too long, or a given secret is shorter than 8 characters.
        """
        _require_name("key", name)
        if role not in ROLES:
            raise ServeError(f"role {role!r}: expected member or admin")
        secret = secret or SECRET + secrets.token_urlsafe(32)
        if len(secret) < 8:
            raise ServeError("a key has at least 8 characters")
        values = {
            "id": new_id(KEY),
            "created_at": now(),
            "project_id": self.project(project),
            "name": name,
            "role": role,
            "sha256": _digest(secret),
        }
        with self._database.writing() as connection:
            connection.execute(keys.insert().values(**values))
        return secret

    def revoke(self, key_id: str) -> bool:
        """End a key; False if there is none that works."""
        with self._database.writing() as connection:
            changed = connection.execute(
                keys.update().where(keys.c.id == key_id, keys.c.revoked_at.is_(None)).values(revoked_at=now())
            )
            return changed.rowcount == 1

    def caller(self, secret: str) -> Caller | None:
        """Who holds this key; None if nobody does.

        Looked up by its digest, so how long that takes tells nothing of the key.
        """
        with self._database.reading() as connection:
            row = connection.execute(
                sa.select(keys.c.id, keys.c.project_id, keys.c.role).where(
                    keys.c.sha256 == _digest(secret), keys.c.revoked_at.is_(None)
                )
            ).first()
        return None if row is None else Caller(row.id, row.project_id, row.role)

    def listed(self) -> list[sa.RowMapping]:
        """All keys with their projects' names, without anything secret."""
        with self._database.reading() as connection:
            found = connection.execute(
                sa.select(
                    keys.c.id,
                    keys.c.name,
                    keys.c.role,
                    keys.c.created_at,
                    keys.c.revoked_at,
                    projects.c.name.label("project"),
                )
                .join(projects, projects.c.id == keys.c.project_id)
                .order_by(keys.c.seq)
            )
            return list(found.mappings())


def _require_name(what: str, name: str) -> None:
    if not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
        raise ServeError(f"the name of a {what} has 1 to {LONGEST_NAME} printable characters; this is {name[:80]!r}")


def _digest(secret: str) -> bytes:
    return sha256(secret.encode()).digest()
