"""The HTTP side: routes, limits on what a request may cost, and answers in OpenAI's shapes.

The order of checks is fixed: Host and Origin, key, size and type of the body, fields, model, queue, template, context.
Only what has passed them all reaches the model.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import uvicorn
from fastapi import Depends, FastAPI, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from luthier.serve.access_log import AccessLog, note_tokens
from luthier.serve.api_error import ApiError, deadline_passed, model_not_found, unsupported
from luthier.serve.backend import Backend
from luthier.serve.body import read_body, unless_gone
from luthier.serve.chat import ChatRequest, parse_chat
from luthier.serve.classification import ClassifyRequest, parse_classify
from luthier.serve.completion import CompletionRequest, parse_completion
from luthier.serve.constraint import GRAMMARS
from luthier.serve.decision import DecisionRequest, parse_decision
from luthier.serve.embedding_request import parse_embedding
from luthier.serve.error_answers import tell_errors
from luthier.serve.fields import Fields, parse_body
from luthier.serve.guard import ADMIN, HostGuard, KeyCheck
from luthier.serve.ids import new_id
from luthier.serve.limits import Access, HttpLimits
from luthier.serve.models import ServedModel
from luthier.serve.replies import chat_choice, completion_choice, head, model_card, usage
from luthier.serve.rerank import parse_rerank
from luthier.serve.reward import ScoreRequest, parse_score
from luthier.serve.served import Served
from luthier.serve.server import server_of
from luthier.serve.streams import EventStream, chat_events, completion_events
from luthier.serve.work import Completion, Work


def build_server(backend: Backend, access: Access, limits: HttpLimits | None = None) -> uvicorn.Server:
    """A server that is ready to run."""
    limits = limits or HttpLimits()
    return server_of(build_app(backend, access, limits), limits.deadline_seconds)


def build_app(backend: Backend, access: Access, limits: HttpLimits) -> ASGIApp:
    """The application behind its guards, and the log around both; its lifespan starts and stops the backend."""
    routes = build_routes(backend, access, limits)
    return AccessLog(HostGuard(routes, access.hosts, access.any_address))


def build_routes(backend: Backend, access: Access, limits: HttpLimits) -> FastAPI:
    """All routes. The application itself asks for the key, for any route that it will ever have; /healthz alone is not
    one of its own routes, and free.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        backend.start()
        try:
            yield
        finally:
            backend.stop()

    app = FastAPI(
        lifespan=lifespan,
        dependencies=[Depends(KeyCheck(access.key, access.admin_key))],
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    api = Api(backend, limits)
    app.add_api_route("/v1/models", api.list_models, methods=["GET"], response_model=None)
    app.add_api_route("/v1/models/{name:path}", api.get_model, methods=["GET"], response_model=None)
    app.add_api_route("/v1/chat/completions", api.chat, methods=["POST"], response_model=None)
    app.add_api_route("/v1/completions", api.completions, methods=["POST"], response_model=None)
    app.add_api_route("/v1/decisions", api.decide, methods=["POST"], response_model=None)
    app.add_api_route("/score", api.score, methods=["POST"], response_model=None)
    app.add_api_route("/classify", api.classify, methods=["POST"], response_model=None)
    app.add_api_route("/v1/embeddings", api.embed, methods=["POST"], response_model=None)
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):  # vLLM's own, Jina's and Cohere's
        app.add_api_route(path, api.rerank, methods=["POST"], response_model=None)
    app.add_api_route(ADMIN, api.list_adapters, methods=["GET"], response_model=None)
    app.add_api_route(ADMIN, api.add_adapter, methods=["POST"], response_model=None)
    app.add_api_route(ADMIN + "/{name:path}", api.remove_adapter, methods=["DELETE"], response_model=None)
    app.router.routes.append(Route("/healthz", api.health, methods=["GET"]))
    tell_errors(app)
    return app


class Api:
    """The handlers."""

    def __init__(self, backend: Backend, limits: HttpLimits) -> None:
        self._backend, self._limits = backend, limits

    async def health(self, _: Request) -> Response:
        """200 while requests can be answered, 503 otherwise; the one route that needs no key."""
        healthy = self._backend.healthy
        return JSONResponse({"status": "ok" if healthy else "down"}, 200 if healthy else 503)

    async def list_models(self) -> Response:
        """GET /v1/models"""
        cards = [model_card(served.name, served.created) for served in self._backend.models.values()]
        cards += [model_card(name) for name in self._backend.encoders]
        return JSONResponse({"object": "list", "data": cards})

    async def get_model(self, name: str) -> Response:
        """GET /v1/models/{id}"""
        if name in self._backend.encoders:
            return JSONResponse(model_card(name))
        served = self._backend.models.get(name)
        if served is None:
            raise self._unknown(name)
        return JSONResponse(model_card(served.name, served.created))

    async def list_adapters(self) -> Response:
        """GET /v1/adapters: what is registered, and whether it is served."""
        served = self._backend.models
        data = [{"id": name, "object": "adapter", "served": name in served} for name in self._backend.registered()]
        return JSONResponse({"object": "list", "data": data})

    async def add_adapter(self, request: Request) -> Response:
        """POST /v1/adapters with `{"name": ...}`"""
        fields = Fields(parse_body(await read_body(request, self._limits)))
        name = fields.required_text("name", 64)
        fields.finish()
        served = await self._backend.add(name)
        return JSONResponse(model_card(served.name, served.created))

    async def remove_adapter(self, name: str) -> Response:
        """DELETE /v1/adapters/{name}"""
        await self._backend.remove(name)
        return JSONResponse({"id": name, "object": "model", "deleted": True})

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions"""
        asked = parse_chat(await read_body(request, self._limits))
        served = self._served(asked.common.model)
        with ExitStack() as held:
            held.enter_context(self._backend.seat())
            served.require(asked)
            ids = await self._backend.prompt_ids(served.name, asked.messages, asked.tools)
            work = self._work(served, asked, tuple(ids))
            if isinstance(served, ServedModel) and (asked.schema is not None or asked.calls is not None):
                work = replace(work, held=await asyncio.to_thread(GRAMMARS.held, served, asked))
            if asked.common.stream:
                events = chat_events(self._backend, served, asked, work)
                return EventStream(events, held.pop_all(), asked.common.include_usage)
            return await self._answer_chat(request, asked, served, work)

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions"""
        asked = parse_completion(await read_body(request, self._limits))
        served = self._served(asked.common.model)
        with ExitStack() as held:
            held.enter_context(self._backend.seat())
            served.require(asked)
            works = [self._work(served, asked, await self._prompt(served, p)) for p in asked.prompts]
            if asked.common.stream:
                events = completion_events(self._backend, served, asked, works)
                return EventStream(events, held.pop_all(), asked.common.include_usage)
            return await self._answer_completions(request, asked, served, works)

    async def decide(self, request: Request) -> Response:
        """POST /v1/decisions"""
        asked = parse_decision(await read_body(request, self._limits))
        served = self._served(asked.model)
        with self._backend.seat():
            served.require(asked)
            return await unless_gone(request, self._decide(request, asked, served))

    async def _decide(self, request: Request, asked: DecisionRequest, served: Served) -> Response:
        seconds = self._limits.deadline_seconds
        try:
            async with asyncio.timeout(seconds):
                choices = await self._backend.choices(served.name, asked)
                scores = await self._backend.score(served.name, choices)
        except TimeoutError:
            raise deadline_passed(seconds, "Ask fewer questions at a time.") from None
        body = asked.body(scores, sum(one.tokens for one in choices))
        note_tokens(request.scope, usage(body["usage"]["input_tokens"], 0))
        return JSONResponse(body)

    async def score(self, request: Request) -> Response:
        """POST /score"""
        asked = parse_score(await read_body(request, self._limits))
        served = self._served(asked.model)
        with self._backend.seat():
            served.require(asked)
            return await unless_gone(request, self._score(request, asked, served))

    async def _score(self, request: Request, asked: ScoreRequest, served: Served) -> Response:
        seconds = self._limits.deadline_seconds
        try:
            async with asyncio.timeout(seconds):
                judged, tokens = await self._backend.judge(served.name, asked.conversation)
        except TimeoutError:
            raise deadline_passed(seconds, "Send a shorter chat.") from None
        note_tokens(request.scope, usage(tokens, 0))
        return JSONResponse(asked.body(judged, tokens))

    async def classify(self, request: Request) -> Response:
        """POST /classify"""
        asked = parse_classify(await read_body(request, self._limits))
        served = self._served(asked.model)
        with self._backend.seat():
            served.require(asked)
            return await unless_gone(request, self._classify(request, asked, served))

    async def _classify(self, request: Request, asked: ClassifyRequest, served: Served) -> Response:
        seconds = self._limits.deadline_seconds
        try:
            async with asyncio.timeout(seconds):
                said, tokens, threshold = await self._backend.classify(served.name, asked)
        except TimeoutError:
            raise deadline_passed(seconds, "Send fewer or shorter texts.") from None
        note_tokens(request.scope, usage(tokens, 0))
        return JSONResponse(asked.body(said, tokens, threshold))

    async def embed(self, request: Request) -> Response:
        """POST /v1/embeddings"""
        asked = parse_embedding(await read_body(request, self._limits))
        model = self._backend.embedders.get(asked.model)
        if model is None:
            raise self._other(asked.model, "vectors come from an encoder (--embedder)")
        with self._backend.seat():
            found = await unless_gone(request, model.embed(asked, self._limits.deadline_seconds))
        note_tokens(request.scope, usage(found.tokens, 0))
        return Response(found.body, media_type="application/json")

    async def rerank(self, request: Request) -> Response:
        """POST /rerank"""
        asked = parse_rerank(await read_body(request, self._limits))
        model = self._backend.rerankers.get(asked.model)
        if model is None:
            raise self._other(asked.model, "documents are put in order by a cross-encoder (--reranker)")
        with self._backend.seat():
            found = await unless_gone(request, model.rerank(asked, self._limits.deadline_seconds))
        note_tokens(request.scope, usage(found.tokens, 0))
        return JSONResponse(found.body)

    async def _answer_chat(self, request: Request, asked: ChatRequest, served: Served, work: Work) -> Response:
        created = int(time.time())
        done = await unless_gone(request, self._backend.complete(work))
        scored = work.sampling.top_logprobs is not None
        body = head("chat.completion", new_id("chatcmpl"), created, served)
        body["choices"] = [chat_choice(i, c, served, bool(asked.tools), scored) for i, c in enumerate(done)]
        return _finished(request, body, len(work.ids), done)

    async def _answer_completions(
        self, request: Request, asked: CompletionRequest, served: Served, works: list[Work]
    ) -> Response:
        created = int(time.time())
        groups = await unless_gone(request, _all(self._backend, works))
        done = [completion for group in groups for completion in group]
        scored = asked.common.sampling.top_logprobs is not None
        body = head("text_completion", new_id("cmpl"), created, served)
        body["choices"] = [completion_choice(i, c, scored) for i, c in enumerate(done)]
        return _finished(request, body, sum(len(work.ids) for work in works), done)

    def _served(self, name: str) -> Served:
        served = self._backend.models.get(name)
        if served is None:
            raise self._other(name, "chats are answered by a model that writes")
        return served

    def _other(self, name: str, wanted: str) -> ApiError:
        """What is wrong with a name that is none of the wanted kind."""
        kinds = {
            "it answers in words": self._backend.models,
            "it makes vectors of texts (/v1/embeddings)": self._backend.embedders,
            "it puts documents in order (/rerank)": self._backend.rerankers,
        }
        for kind, names in kinds.items():
            if name in names:
                return unsupported("model", f"{kind}; {wanted}")
        return self._unknown(name)

    def _unknown(self, name: str) -> ApiError:
        return model_not_found(name, [*self._backend.models, *self._backend.encoders])

    async def _prompt(self, served: Served, prompt: str | tuple[int, ...]) -> tuple[int, ...]:
        if isinstance(prompt, str):
            return tuple(await self._backend.text_ids(served.name, prompt))
        return prompt

    def _work(self, served: Served, asked: ChatRequest | CompletionRequest, ids: tuple[int, ...]) -> Work:
        common, room = asked.common, served.max_tokens - len(ids)
        if not ids:
            raise ApiError("'prompt' is empty: there is nothing to continue.", param="prompt")
        vocabulary = served.vocabulary
        for param, tokens in (("prompt", ids), ("logit_bias", common.sampling.logit_bias)):
            if not all(0 <= token < vocabulary for token in tokens):
                raise ApiError(f"Token ids must be between 0 and {vocabulary - 1}.", param=param, code="out_of_range")
        wanted = asked.max_tokens
        if room < (wanted or 1):
            raise ApiError(
                f"This model's context is {served.max_tokens} tokens: the prompt has {len(ids)} and "
                f"{wanted or 'at least 1'} more were asked for.",
                param="messages" if isinstance(asked, ChatRequest) else "prompt",
                code="context_length_exceeded",
            )
        return Work(
            model=served.name,
            ids=ids,
            max_new_tokens=wanted or min(room, self._limits.default_tokens),
            sampling=common.sampling,
            n=common.n,
            stop=common.stop,
            deadline_seconds=self._limits.deadline_seconds,
        )


def _finished(request: Request, body: dict[str, Any], prompt_tokens: int, done: list[Completion]) -> Response:
    body["usage"] = usage(prompt_tokens, sum(c.done.generated_tokens for c in done))
    note_tokens(request.scope, body["usage"])
    return JSONResponse(body)


async def _all(backend: Backend, works: list[Work]) -> list[list[Completion]]:
    tasks = [asyncio.ensure_future(backend.complete(work)) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
