"""One line of log for each request: its id, route, status, duration and token counts, and no text of a client's.

A failure that nobody foresaw becomes a 500 with the request's id, and its kind and place go to the log. Its message
does not: it may quote a prompt.
"""

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from luthier.serve.api_error import internal
from luthier.serve.failures import FAILURES, place_of
from luthier.serve.ids import new_id

log = logging.getLogger("luthier.serve")

KEY = "luthier.request"
FIELDS = "luthier_fields"
"""Attribute of a log record: the fields of a line for whoever wants them apart."""
ROUTES = (
    "/healthz",
    "/v1/models",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/decisions",
    "/v1/embeddings",
    "/score",
    "/classify",
    "/v1/adapters",
)
NAMED = ("/v1/models/", "/v1/adapters/")
"""Routes that end in a name, which a client chose and the log leaves out."""


@dataclass
class _Notes:
    """What the handlers tell the log."""

    id: str
    status: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


def note_tokens(scope: Scope, usage: dict[str, Any] | None) -> None:
    """Let the log line of this request say how many tokens it took."""
    notes = scope.get(KEY)
    if usage and isinstance(notes, _Notes):
        notes.prompt_tokens, notes.completion_tokens = usage["prompt_tokens"], usage["completion_tokens"]


def request_id(scope: Scope) -> str:
    """The id that this request has in the log; "" outside of it."""
    notes = scope.get(KEY)
    return notes.id if isinstance(notes, _Notes) else ""


class AccessLog:
    """ASGI middleware around the application.

    Args:
        app: what answers.
        route_of: what the log calls a request's path.
        caller_of: who sent it, as further fields.
    """

    def __init__(
        self,
        app: ASGIApp,
        route_of: Callable[[Scope], str] | None = None,
        caller_of: Callable[[Scope], Mapping[str, str]] | None = None,
    ) -> None:
        self._app, self._route_of, self._caller_of = app, route_of or _route_of, caller_of or (lambda _: {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and write its line."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        notes = scope[KEY] = _Notes(new_id("req"))
        started = time.perf_counter()

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                notes.status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", notes.id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except FAILURES as error:
            told = {"id": notes.id, "failed": type(error).__name__, "at": place_of(error)}
            log.error("id=%s failed: %s in %s", *told.values(), extra={FIELDS: told})
            if not notes.status:
                await JSONResponse(internal(notes.id).body(), 500)(scope, receive, noted)
        finally:
            _write(scope, notes, self._route_of(scope), time.perf_counter() - started, self._caller_of(scope))


def _route_of(scope: Scope) -> str:
    path = scope["path"]
    named = next((f"{start}{{id}}" for start in NAMED if path.startswith(start)), "-")
    return path if path in ROUTES else named


def _write(scope: Scope, notes: _Notes, route: str, seconds: float, caller: Mapping[str, str]) -> None:
    level = logging.DEBUG if route in ("/healthz", "/readyz") else logging.INFO
    known = scope["method"] in ("GET", "POST", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS")
    told = {
        "id": notes.id,
        "method": scope["method"] if known else "-",
        "route": route,
        "status": notes.status or "gone",
        "ms": round(seconds * 1000),
        "prompt_tokens": notes.prompt_tokens,
        "completion_tokens": notes.completion_tokens,
        **caller,
    }
    log.log(level, " ".join(f"{name}={value}" for name, value in told.items()), extra={FIELDS: told})


class JsonLines(logging.Formatter):
    """A JSON object for each line of the log: of a request its fields, of everything else its message."""

    def format(self, record: logging.LogRecord) -> str:
        """Without a traceback: its last line quotes what failed, which may be a client's."""
        told = vars(record).get(FIELDS) or {"message": record.getMessage()}
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        return json.dumps({"time": at, "level": record.levelname, "logger": record.name, **told})
