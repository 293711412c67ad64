"""All routes of the service behind its guards. Every route asks for a key but the two that tell of health.

Bodies are read by closed types and stores do the work in threads, so a slow disk holds up nobody else.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import Depends, FastAPI, Request
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from luthier.jobs.audit import Audit
from luthier.jobs.database import Database
from luthier.jobs.eval_store import EvalStore
from luthier.jobs.eval_worker import EvalWorker
from luthier.jobs.file_store import FileStore
from luthier.jobs.gateway import Gateway
from luthier.jobs.http.audited import Audited
from luthier.jobs.http.caller import Keys
from luthier.jobs.http.evals import EvalRoutes
from luthier.jobs.http.files import FileRoutes
from luthier.jobs.http.fine_tuning import FineTuningRoutes, Names
from luthier.jobs.http.graders import GraderRoutes
from luthier.jobs.http.health import Counted, HealthRoutes, route_of
from luthier.jobs.http.inference import InferenceRoutes
from luthier.jobs.http.models import ModelRoutes
from luthier.jobs.http.reading import require_no_nul
from luthier.jobs.http.uploads import UploadRoutes
from luthier.jobs.job_store import JobStore
from luthier.jobs.metrics import Metrics
from luthier.jobs.supervisor import Supervisor
from luthier.jobs.tenants import Tenants
from luthier.jobs.webhooks import Webhooks
from luthier.serve.access_log import AccessLog, request_id
from luthier.serve.api_error import ApiError, internal
from luthier.serve.guard import HostGuard


@dataclass(frozen=True)
class Parts:
    """The parts that requests reach."""

    database: Database
    tenants: Tenants
    files: FileStore
    jobs: JobStore
    supervisor: Supervisor
    names: Names
    gateway: Gateway
    audit: Audit
    metrics: Metrics
    webhooks: Webhooks
    evals: EvalStore
    eval_worker: EvalWorker


@dataclass(frozen=True)
class Hosts:
    """Which Host headers are this server's."""

    names: tuple[str, ...] = ()
    any_address: bool = False


def build_app(parts: Parts, hosts: Hosts) -> ASGIApp:
    """The application behind its guards; its lifespan starts and stops the supervisor."""
    counted = Counted(Audited(build_routes(parts), parts.audit), parts.metrics)
    return AccessLog(HostGuard(counted, hosts.names, hosts.any_address), route_of)


def build_routes(parts: Parts) -> FastAPI:
    """All routes; the application itself asks for the key, for any route that it will ever have."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        parts.supervisor.start()
        parts.webhooks.start()
        parts.eval_worker.start()
        try:
            yield
        finally:
            await parts.eval_worker.stop()  # before the models go: what they no longer answer is not to be recorded
            await parts.gateway.close()
            await run_in_threadpool(parts.supervisor.stop)
            await run_in_threadpool(parts.webhooks.stop)

    app = FastAPI(
        lifespan=lifespan,
        dependencies=[Depends(Keys(parts.tenants)), Depends(require_no_nul)],
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    FileRoutes(parts.files).add_to(app)
    UploadRoutes(parts.files).add_to(app)
    FineTuningRoutes(parts.jobs, parts.files, parts.names).add_to(app)
    ModelRoutes(parts.jobs, parts.names).add_to(app)
    GraderRoutes(parts.jobs, parts.names, parts.gateway).add_to(app)
    EvalRoutes(parts.evals, parts.jobs, parts.files, parts.names).add_to(app)
    InferenceRoutes(parts.jobs, parts.names, parts.gateway).add_to(app)
    HealthRoutes(parts.database, parts.supervisor, parts.metrics).add_to(app)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unforeseen)
    return app


async def _api_error(_: Request, error: Exception) -> Response:
    if not isinstance(error, ApiError):
        raise error
    return JSONResponse(error.body(), error.status, headers=error.headers)


async def _unforeseen(request: Request, _: Exception) -> Response:
    """What is sent; starlette then raises the error again, and the log takes note of its kind."""
    return JSONResponse(internal(request_id(request.scope)).body(), 500)


async def _http_error(_: Request, error: Exception) -> Response:
    """What the router itself refuses: an unknown path or method."""
    if not isinstance(error, HTTPException):
        raise error
    messages: dict[int, str] = {404: "There is no such path.", 405: "This path does not take this method."}
    body: dict[str, Any] = ApiError(messages.get(error.status_code, "Refused."), status=error.status_code).body()
    return JSONResponse(body, error.status_code, headers=error.headers)
