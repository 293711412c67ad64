"""/v1/chat/completions, /v1/completions, /v1/decisions and /v1/embeddings, by the gateway."""

from typing import Any

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from luthier.jobs.gateway import Gateway, Served
from luthier.jobs.http.caller import caller_of
from luthier.jobs.http.fine_tuning import Names
from luthier.jobs.http.reading import object_of
from luthier.jobs.job_store import JobStore
from luthier.serve.api_error import ApiError, model_not_found


class InferenceRoutes:
    """The handlers."""

    def __init__(self, jobs: JobStore, names: Names, gateway: Gateway) -> None:
        self._jobs, self._names, self._gateway = jobs, names, gateway

    def add_to(self, app: FastAPI) -> None:
        """Add the routes."""
        app.add_api_route("/v1/chat/completions", self.chat, methods=["POST"], response_model=None)
        app.add_api_route("/v1/completions", self.complete, methods=["POST"], response_model=None)
        app.add_api_route("/v1/decisions", self.decide, methods=["POST"], response_model=None)
        app.add_api_route("/v1/embeddings", self.embed, methods=["POST"], response_model=None)

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions"""
        return await self._answer(request, "/chat/completions")

    async def complete(self, request: Request) -> Response:
        """POST /v1/completions"""
        return await self._answer(request, "/completions")

    async def decide(self, request: Request) -> Response:
        """POST /v1/decisions"""
        return await self._answer(request, "/decisions")

    async def embed(self, request: Request) -> Response:
        """POST /v1/embeddings"""
        return await self._answer(request, "/embeddings")

    async def _answer(self, request: Request, path: str) -> Response:
        body: dict[str, Any] = await object_of(request)
        name = body.get("model")
        if not isinstance(name, str):
            raise ApiError("'model' must be a string.", param="model", code="invalid_type")
        model = await run_in_threadpool(served_as, self._jobs, self._names, caller_of(request).project_id, name)
        return await self._gateway.pass_on(path, body, model)


def served_as(jobs: JobStore, names: Names, project: str, name: str) -> Served:
    """What a project's name of a model means.

    Raises:
        ApiError: 404: nothing.
    """
    if name in names.shown:
        return Served(names.aliases.get(name, name))
    if name in names.embedders:
        return Served(names.embedders[name], name, kind="embedder")
    if name in names.ggufs:
        path = names.ggufs[name]
        return Served(str(path), path.stem, kind="gguf")
    row = jobs.model(project, name)
    if row is None:
        raise model_not_found(name, [*names.listed, *(row["id"] for row in jobs.models(project))])
    return Served.of(row)
