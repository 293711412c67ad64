"""/v1/chat/completions, /v1/completions, /v1/decisions and /v1/embeddings, by the gateway."""

from typing import Annotated, Any

from fastapi import Depends, FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from luthier.jobs.gateway import Gateway, Served
from luthier.jobs.http.caller import caller_of
from luthier.jobs.http.declared import Content, Passed
from luthier.jobs.http.fine_tuning import Names
from luthier.jobs.job_store import JobStore
from luthier.serve.api_error import ApiError, model_not_found, unsupported
from luthier.serve.bodies import ChatBody, CompletionBody, DecisionBody, EmbeddingBody
from luthier.serve.objects import ChatCompletion, Decision, EmbeddingList, TextCompletion

EVENTS = "text/event-stream"


class InferenceRoutes:
    """The handlers."""

    def __init__(self, jobs: JobStore, names: Names, gateway: Gateway) -> None:
        self._jobs, self._names, self._gateway = jobs, names, gateway

    def add_to(self, app: FastAPI) -> None:
        """Add the routes."""
        told: dict[int | str, dict[str, Any]] = {
            404: {"description": "No such model"},
            429: {"description": "The queue of the model is full"},
            503: {
                "description": "The model cannot be loaded, its process ended, or the database cannot be used right now"
            },
            504: {"description": "The answer took too long"},
        }
        routes = {
            "/v1/chat/completions": self.chat,
            "/v1/completions": self.complete,
            "/v1/decisions": self.decide,
            "/v1/embeddings": self.embed,
        }
        for path, handler in routes.items():
            app.add_api_route(path, handler, methods=["POST"], response_model=None, responses=told)

    async def chat(
        self, request: Request, body: Annotated[dict[str, Any], Depends(Passed(ChatBody))]
    ) -> Annotated[Response, Content({"application/json": ChatCompletion, EVENTS: Any})]:
        """POST /v1/chat/completions; events if `stream` is true"""
        return await self._answer(request, "/chat/completions", body)

    async def complete(
        self, request: Request, body: Annotated[dict[str, Any], Depends(Passed(CompletionBody))]
    ) -> Annotated[Response, Content({"application/json": TextCompletion, EVENTS: Any})]:
        """POST /v1/completions; events if `stream` is true"""
        return await self._answer(request, "/completions", body)

    async def decide(
        self, request: Request, body: Annotated[dict[str, Any], Depends(Passed(DecisionBody))]
    ) -> Annotated[Response, Content({"application/json": Decision})]:
        """POST /v1/decisions"""
        return await self._answer(request, "/decisions", body)

    async def embed(
        self, request: Request, body: Annotated[dict[str, Any], Depends(Passed(EmbeddingBody))]
    ) -> Annotated[Response, Content({"application/json": EmbeddingList})]:
        """POST /v1/embeddings"""
        return await self._answer(request, "/embeddings", body)

    async def _answer(self, request: Request, path: str, body: dict[str, Any]) -> Response:
        name = body.get("model")
        if not isinstance(name, str):
            raise ApiError("'model' must be a string.", param="model", code="invalid_type")
        model = await run_in_threadpool(served_as, self._jobs, self._names, caller_of(request).project_id, name)
        return await self._gateway.pass_on(path, body, model)


def served_as(jobs: JobStore, names: Names, project: str, name: str) -> Served:
    """What a project's name of a model means.

    Raises:
        ApiError: 404: nothing; 400: a model that answers nothing.
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
    if row["method"] == "reward":
        raise unsupported("model", "it judges answers, and writes none")
    return Served.of(row)
