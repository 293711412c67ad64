"""/v1/chat/completions and /v1/completions, by the gateway."""

from typing import Any

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from luthier.jobs.gateway import Gateway
from luthier.jobs.http.caller import caller_of
from luthier.jobs.http.reading import object_of
from luthier.jobs.job_store import JobStore
from luthier.serve.api_error import ApiError, model_not_found


class InferenceRoutes:
    """The handlers."""

    def __init__(self, jobs: JobStore, gateway: Gateway) -> None:
        self._jobs, self._gateway = jobs, gateway

    def add_to(self, app: FastAPI) -> None:
        """Add the routes."""
        app.add_api_route("/v1/chat/completions", self.chat, methods=["POST"], response_model=None)
        app.add_api_route("/v1/completions", self.complete, methods=["POST"], response_model=None)

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions"""
        return await self._answer(request, "/chat/completions")

    async def complete(self, request: Request) -> Response:
        """POST /v1/completions"""
        return await self._answer(request, "/completions")

    async def _answer(self, request: Request, path: str) -> Response:
        body: dict[str, Any] = await object_of(request)
        name = body.get("model")
        if not isinstance(name, str):
            raise ApiError("'model' must be a string.", param="model", code="invalid_type")
        project = caller_of(request).project_id
        model = await run_in_threadpool(self._jobs.model, project, name)
        if model is None:
            known = [row["id"] for row in await run_in_threadpool(self._jobs.models, project)]
            raise model_not_found(name, known)
        return await self._gateway.pass_on(path, body, model)
