"""Every request that changed something is in the audit log before its answer is sent."""

import json

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from luthier.jobs.audit import Audit
from luthier.jobs.gateway import PATHS
from luthier.jobs.http.caller import KEY
from luthier.jobs.tenants import Caller

OBJECT, ASKED = "luthier.object", "luthier.asked"
CHANGING = ("POST", "DELETE", "PUT", "PATCH")
ASKING = (*(f"/v1{path}" for paths in PATHS.values() for path in paths), "/v1/fine_tuning/alpha/graders/run")
"""Routes that are POSTed to and change nothing; so does what validates."""


def note_object(request: Request, object_id: str) -> None:
    """Let the audit log know the id of what this request makes."""
    request.scope[OBJECT] = object_id


def note_asked(request: Request) -> None:
    """Let the audit log know that this request changes nothing, though it is POSTed."""
    request.scope[ASKED] = True


class Audited:
    """ASGI middleware around the routes."""

    def __init__(self, app: ASGIApp, audit: Audit) -> None:
        self._app, self._audit = app, audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and note it if it changed something."""
        if scope["type"] != "http" or scope["method"] not in CHANGING:
            await self._app(scope, receive, send)
            return

        async def noted(message: Message) -> None:
            caller, route = scope.get(KEY), scope.get("route")
            if message["type"] == "http.response.start" and message["status"] < 400 and isinstance(caller, Caller):
                path = route.path if isinstance(route, Route) else "-"
                if path not in ASKING and not path.endswith("/validate") and ASKED not in scope:
                    object_id = scope.get(OBJECT) or json.dumps(scope.get("path_params", {}), sort_keys=True)
                    await run_in_threadpool(self._audit.note, caller, f"{scope['method']} {path}", object_id)
            await send(message)

        await self._app(scope, receive, noted)
