"""The playground: the same question to bases, adapters and models with passages, side by side, as they write."""

import json

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from luthier.examples import Message
from luthier.jobs.http.app import Service
from luthier.jobs.http.audited import note_asked
from luthier.jobs.http.inference import served_as
from luthier.jobs.model_names import is_checkpoint, is_tuned, named_base
from luthier.jobs.pages import Page
from luthier.rag.passages import Passage
from luthier.rag.prompt import with_passages
from luthier.serve.api_error import ApiError
from luthier.web.forms import posted_of
from luthier.web.pages import show
from luthier.web.passages import Corpora
from luthier.web.sessions import session_of

MOST_TOKENS, HOTTEST = 4096, 2.0
PASSAGES = "x-luthier-passages"
MOST_FILES = 100
SHOWN_CHARACTERS = 90


class PlayPages:
    """The handlers."""

    def __init__(self, service: Service) -> None:
        self._service, self._corpora = service, Corpora(service.files)

    def add_to(self, app: FastAPI) -> None:
        """Add the pages."""
        app.add_api_route("/studio/playground", self.page, methods=["GET"], response_model=None)
        app.add_api_route("/studio/playground/answer", self.answer, methods=["POST"], response_model=None)

    def page(self, request: Request) -> Response:
        """GET /studio/playground?model=: with that model beside its base"""
        project, asked = session_of(request).caller.project_id, request.query_params.get("model")
        known = chat_models(self._service, project)
        chosen = {asked, named_base(asked)} if asked else set(known[:1])
        corpora, _ = self._service.files.listed(project, Page(limit=MOST_FILES), "user_data")
        return show(request, "playground.html.jinja", models=known, chosen=chosen, corpora=corpora, is_tuned=is_tuned)

    async def answer(self, request: Request) -> Response:
        """POST /studio/playground/answer: of one model, as the API streams it"""
        note_asked(request)
        project, posted = session_of(request).caller.project_id, posted_of(request)
        question = posted.one("question")
        if not question:
            raise ApiError("Write a question first.", param="question")
        system = posted.one("system")
        messages = (*((Message("system", system),) if system else ()), Message("user", question))
        found: list[Passage] = []
        if posted.one("corpus"):
            corpus = await run_in_threadpool(self._corpora.of, project, posted.one("corpus"))
            found = await run_in_threadpool(corpus.find, question)
            messages = with_passages(messages, found)
        name = posted.one("model")
        body = {
            "model": name,
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            "max_completion_tokens": posted.number("most_tokens", 200, 1, MOST_TOKENS),
            "temperature": fraction(posted.one("temperature", "0"), HOTTEST),
            "seed": posted.number("seed", 0, 0, 2**31 - 1),
            "stream": True,
        }
        model = await run_in_threadpool(served_as, self._service.jobs, self._service.names, project, name)
        answer = await self._service.gateway.pass_on("/chat/completions", body, model)
        # ASCII alone, so whatever a passage begins with can stand in a header
        answer.headers[PASSAGES] = json.dumps([" ".join(one.titled.split())[:SHOWN_CHARACTERS] for one in found])
        return answer


def chat_models(service: Service, project: str) -> list[str]:
    """All that can be chatted with: what is served, then what jobs made, the latest first, their checkpoints last."""
    made = [str(row["id"]) for row in service.jobs.models(project) if row["method"] != "reward"][::-1]
    made.sort(key=is_checkpoint)
    return [*service.names.shown, *service.names.ggufs, *made]


def fraction(text: str, most: float) -> float:
    """A number from 0 on.

    Raises:
        ApiError: 400.
    """
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= most:
        raise ApiError(f"'temperature': expected a number from 0 to {most:g}.", param="temperature")
    return value
