"""/healthz and /readyz for whoever keeps the process alive, /metrics for Prometheus."""

import time
from typing import Annotated

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from luthier.jobs.database import Database
from luthier.jobs.http.caller import admin_of
from luthier.jobs.http.declared import Answer, Content
from luthier.jobs.metrics import CONTENT_TYPE, Metrics
from luthier.jobs.objects import Health
from luthier.jobs.supervisor import Supervisor
from luthier.serve.api_error import ErrorBody

STALE_SECONDS = 120.0
"""A supervisor that did not go round for so long hangs; to prepare a large file takes less."""
METHODS = ("GET", "POST", "DELETE", "HEAD", "PUT", "PATCH", "OPTIONS")


class HealthRoutes:
    """The handlers."""

    def __init__(self, database: Database, supervisor: Supervisor, metrics: Metrics) -> None:
        self._database, self._supervisor, self._metrics = database, supervisor, metrics

    def add_to(self, app: FastAPI) -> None:
        """Add the routes; the two of health are not the application's own, and free."""
        app.router.routes.append(Route("/healthz", self.alive, methods=["GET"]))
        app.router.routes.append(Route("/readyz", self.ready, methods=["GET"]))
        app.add_api_route("/metrics", self.metrics, methods=["GET"], response_model=None)

    async def alive(self, _: Request) -> Answer[Health]:
        """The process answers."""
        return Answer({"status": "ok"})

    def ready(
        self, _: Request
    ) -> Annotated[
        Answer[Health], Content({"application/json": Health}, also={503: Health | ErrorBody, 507: ErrorBody})
    ]:
        """200 while jobs can be taken and are worked on."""
        with self._database.reading():
            idle = time.monotonic() - self._supervisor.alive_at
        ready = idle < STALE_SECONDS
        return Answer({"status": "ready" if ready else "stale"}, 200 if ready else 503)

    def metrics(self, request: Request) -> Annotated[Response, Content({CONTENT_TYPE: str})]:
        """GET /metrics: of all projects, so for an admin key."""
        admin_of(request)
        return Response(self._metrics.text(), media_type=CONTENT_TYPE)


class Counted:
    """ASGI middleware: every request is counted under its route's pattern."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and count its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), [499]

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                status[0] = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            method = scope["method"] if scope["method"] in METHODS else "other"
            self._metrics.answered(method, route_of(scope), status[0], time.perf_counter() - started)


def route_of(scope: Scope) -> str:
    """The path's pattern, so that no id or name of a client's stands in a log or a figure."""
    route = scope.get("route")
    return str(route.path) if isinstance(route, Route) else "-"
