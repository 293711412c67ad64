"""Tells an address of the operator's that a job ended, signed by the Standard Webhooks specification.

    webhook-signature: v1,base64(HMAC-SHA256(secret, "id.timestamp.body"))

What is to be told is written in the transaction in which the job ends, so nothing is forgotten; it is sent until it is
taken, so it may come twice, with the same `webhook-id`. `client.webhooks.unwrap` of OpenAI's client checks it.
"""

import base64
import hmac
import json
import logging
import threading
import time
from dataclasses import dataclass, field
from hashlib import sha256

import httpx2
import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from luthier.errors import ServeError
from luthier.jobs.database import Database, Row, now, webhooks
from luthier.serve.failures import place_of

log = logging.getLogger("luthier.jobs")
PREFIX = "whsec_"
LOOK_SECONDS = 1.0
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 5, 3600
GIVE_UP_SECONDS = 3 * 86_400
SEND_SECONDS = 15.0


@dataclass(frozen=True)
class Target:
    """Where to, and signed with what."""

    url: str
    secret: str = field(repr=False)
    """`whsec_` and base64."""

    def key(self) -> bytes:
        """The key of the signature.

        Raises:
            ServeError: the secret is none.
        """
        try:
            found = base64.b64decode(self.secret.removeprefix(PREFIX), validate=True)
        except ValueError:
            found = b""
        if not self.secret.startswith(PREFIX) or len(found) < 16:
            raise ServeError("the secret of webhooks is whsec_ followed by base64 of at least 16 bytes")
        return found


class Webhooks:
    """Sends what is due in a thread."""

    def __init__(self, database: Database, target: Target | None) -> None:
        self._database, self._target = database, target
        self._key = b"" if target is None else target.key()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to send, if there is an address."""
        if self._target is not None:
            self._thread = threading.Thread(target=self._run, name="webhooks", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End; what was not taken is sent after the next start."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def send_due(self) -> None:
        """Send everything whose time has come."""
        with self._database.reading() as connection:
            due = sa.select(webhooks).where(webhooks.c.delivered_at.is_(None), webhooks.c.next_at <= now())
            due = due.where(webhooks.c.created_at > now() - GIVE_UP_SECONDS)  # older ones tell nobody anything new
            rows = list(connection.execute(due.order_by(webhooks.c.seq).limit(100)).mappings())
        for row in rows:
            if self._stop.is_set():
                return
            self._send(row)

    def _run(self) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            try:
                self.send_due()
            except SQLAlchemyError as error:  # the database is away for a while; nothing is lost
                log.warning("webhooks: %s in %s", type(error).__name__, place_of(error))

    def _send(self, row: Row) -> None:
        assert self._target is not None
        body = json.dumps(
            {
                "id": row["id"],
                "object": "event",
                "created_at": row["created_at"],
                "type": row["type"],
                "data": {"id": row["object_id"]},
            }
        )
        stamp = str(int(time.time()))
        signed = hmac.new(self._key, f"{row['id']}.{stamp}.{body}".encode(), sha256).digest()
        headers = {
            "content-type": "application/json",
            "webhook-id": row["id"],
            "webhook-timestamp": stamp,
            "webhook-signature": f"v1,{base64.b64encode(signed).decode()}",
        }
        try:
            answer = httpx2.post(
                self._target.url, content=body, headers=headers, timeout=SEND_SECONDS, follow_redirects=False
            )
            problem = "" if answer.status_code < 300 else f"status {answer.status_code}"
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            problem = type(error).__name__
        self._note(row, problem)

    def _note(self, row: Row, problem: str) -> None:
        attempts = row["attempts"] + 1
        wait = min(FIRST_WAIT_SECONDS * 2 ** (attempts - 1), LONGEST_WAIT_SECONDS)
        if problem:
            log.warning("webhook %s was not taken (%s)", row["id"], problem)
        values = {"attempts": attempts, "next_at": now() + wait}
        if not problem:
            values["delivered_at"] = now()
        with self._database.writing() as connection:
            connection.execute(webhooks.update().where(webhooks.c.id == row["id"]).values(**values))
