"""All routes of the service behind its guards. Every route asks for a key but the two that tell of health.

Bodies are read by closed types and stores do the work in threads, so a slow disk holds up nobody else.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi import Depends, FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp

from luthier.jobs.audit import Audit
from luthier.jobs.database import Database
from luthier.jobs.eval_store import EvalStore
from luthier.jobs.eval_worker import EvalWorker
from luthier.jobs.file_store import FileStore
from luthier.jobs.gateway import Gateway
from luthier.jobs.http.audited import Audited
from luthier.jobs.http.caller import Keys, fields_of
from luthier.jobs.http.document import DocumentRoutes
from luthier.jobs.http.evals import EvalRoutes
from luthier.jobs.http.files import FileRoutes
from luthier.jobs.http.fine_tuning import FineTuningRoutes, Names
from luthier.jobs.http.graders import GraderRoutes
from luthier.jobs.http.health import Counted, HealthRoutes, route_of
from luthier.jobs.http.inference import InferenceRoutes
from luthier.jobs.http.models import ModelRoutes
from luthier.jobs.http.reading import require_no_nul
from luthier.jobs.http.storage_errors import tell_storage_errors
from luthier.jobs.http.uploads import UploadRoutes
from luthier.jobs.job_store import JobStore
from luthier.jobs.metrics import Metrics
from luthier.jobs.supervisor import Supervisor
from luthier.jobs.tenants import Tenants
from luthier.jobs.traces import telemetry
from luthier.jobs.webhooks import Webhooks
from luthier.serve.access_log import AccessLog
from luthier.serve.error_answers import tell_errors
from luthier.serve.guard import HostGuard


@dataclass(frozen=True)
class Service:
    """An open service: the parts that requests reach."""

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


def build_app(
    service: Service,
    hosts: Hosts,
    traces: bool = False,
    front: Callable[[Service, ASGIApp], ASGIApp] = lambda _service, api: api,
) -> ASGIApp:
    """The application behind its guards; its lifespan starts and stops the supervisor.

    Args:
        service: what is open.
        hosts: which Host headers are its own.
        traces: send spans.
        front: puts pages for people before the API, behind the same guards.
    """
    counted = Counted(Audited(front(service, build_routes(service, traces)), service.audit), service.metrics)
    return AccessLog(HostGuard(counted, hosts.names, hosts.any_address), route_of, fields_of)


def build_routes(service: Service, traces: bool = False) -> FastAPI:
    """All routes; the application itself asks for the key, for any route that it will ever have."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.gateway.open()
        service.supervisor.start()
        service.webhooks.start()
        service.eval_worker.start()
        try:
            yield
        finally:
            await service.eval_worker.stop()  # before the models go: what they no longer answer is not to be recorded
            await run_in_threadpool(service.supervisor.stop)  # a job that ends now has vLLM told of what it made
            await service.gateway.close()
            await run_in_threadpool(service.webhooks.stop)

    app = FastAPI(
        lifespan=lifespan,
        dependencies=[Depends(Keys(service.tenants)), Depends(require_no_nul)],
        openapi_url=None,  # FastAPI's own route would be free and know too little; ours is DocumentRoutes
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry=telemetry(traces),
    )
    FileRoutes(service.files).add_to(app)
    UploadRoutes(service.files).add_to(app)
    FineTuningRoutes(service.jobs, service.files, service.names).add_to(app)
    ModelRoutes(service.jobs, service.names, service.gateway, service.supervisor.folder).add_to(app)
    GraderRoutes(service.jobs, service.names, service.gateway).add_to(app)
    EvalRoutes(service.evals, service.jobs, service.files, service.names).add_to(app)
    InferenceRoutes(service.jobs, service.names, service.gateway).add_to(app)
    HealthRoutes(service.database, service.supervisor, service.metrics).add_to(app)
    DocumentRoutes().add_to(app)
    tell_errors(app)
    tell_storage_errors(app)
    return app
