"""Who looks at a page: a session that a key opened, and the token without which no form of it changes anything.

The cookie holds a random secret, the database its sha256, as with keys. A session ends with its key, when it is signed
out, or after `SECONDS`. Browsers send the cookie to pages of this server alone (`SameSite=Strict`), and scripts cannot
read it. A cookie does not know ports, so another program on this machine could see one come by: keys and data of
several people on one machine need several users of that machine, studio or not.
"""

import hmac
import secrets
from dataclasses import dataclass
from hashlib import sha256

import sqlalchemy as sa
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from luthier.jobs.database import Database, keys, now, projects, sessions
from luthier.jobs.http.caller import KEY, LONGEST_KEY
from luthier.jobs.tenants import Caller, Tenants
from luthier.serve.api_error import ApiError

PATH = "/studio"
SECONDS = 12 * 3600
SESSION = "luthier.session"


@dataclass(frozen=True)
class Session:
    """One that is open."""

    caller: Caller
    key_name: str
    project: str
    """Its name, as people know it."""
    token: str
    """What forms carry."""


class NotSignedIn(Exception):
    """No session: the page to sign in is shown instead."""


class Sessions:
    """The sessions of a database; a dependency of every page."""

    def __init__(self, database: Database, tenants: Tenants) -> None:
        self._database, self._tenants = database, tenants

    async def __call__(self, request: Request) -> None:
        """Note who looks.

        Raises:
            NotSignedIn: nobody that is known.
        """
        secret = request.cookies.get(cookie_of(request), "")
        found = await run_in_threadpool(self.find, secret) if 0 < len(secret) <= LONGEST_KEY else None
        if found is None:
            raise NotSignedIn
        request.scope[SESSION], request.scope[KEY] = found, found.caller

    def open(self, key: str) -> str | None:
        """Begin a session with a key; the secret of its cookie, None if the key opens nothing."""
        caller = self._tenants.caller(key) if 0 < len(key) <= LONGEST_KEY else None
        if caller is None:
            return None
        secret, at = secrets.token_urlsafe(32), now()
        values = {"id": _digest(secret), "created_at": at, "key_id": caller.key_id, "expires_at": at + SECONDS}
        with self._database.writing() as connection:
            connection.execute(sessions.delete().where(sessions.c.expires_at <= at))
            connection.execute(sessions.insert().values(**values))
        return secret

    def find(self, secret: str) -> Session | None:
        """The session of a cookie, if it and its key are still good."""
        query = (
            sa.select(keys.c.id, keys.c.project_id, keys.c.role, keys.c.name, projects.c.name.label("project"))
            .select_from(sessions.join(keys, keys.c.id == sessions.c.key_id))
            .join(projects, projects.c.id == keys.c.project_id)
            .where(sessions.c.id == _digest(secret), sessions.c.expires_at > now(), keys.c.revoked_at.is_(None))
        )
        with self._database.reading() as connection:
            row = connection.execute(query).first()
        if row is None:
            return None
        return Session(Caller(row.id, row.project_id, row.role), row.name, row.project, _token(secret))

    def close(self, secret: str) -> None:
        """End a session."""
        with self._database.writing() as connection:
            connection.execute(sessions.delete().where(sessions.c.id == _digest(secret)))


def session_of(request: Request) -> Session:
    """Who looks; every page has one."""
    found = request.scope[SESSION]
    assert isinstance(found, Session)
    return found


def require_token(request: Request, given: str) -> None:
    """Refuse what none of the forms of a session sent.

    Raises:
        ApiError: 403.
    """
    if not hmac.compare_digest(given.encode(), session_of(request).token.encode()):
        raise ApiError("The page is out of date: open it again and repeat.", status=403, code="csrf_token_missing")


def cookie_of(request: Request) -> str:
    """The cookie's name: browsers do not tell ports apart, and two services on one host would sign each other out."""
    return f"luthier_studio_{request.url.port}" if request.url.port else "luthier_studio"


def set_cookie(request: Request, answer: Response, secret: str) -> None:
    """Let the browser keep the secret; for HTTPS alone if it signed in so, of which only its Origin tells: TLS ends
    at a proxy, and a connection from there is plain HTTP."""
    secure = request.headers.get("origin", "").startswith("https://")
    answer.set_cookie(cookie_of(request), secret, SECONDS, path=PATH, secure=secure, httponly=True, samesite="strict")


def _digest(secret: str) -> str:
    return sha256(secret.encode()).hexdigest()


def _token(secret: str) -> str:
    """Made from the cookie's secret, which nobody can tell from it."""
    return sha256(b"form\0" + secret.encode()).hexdigest()
