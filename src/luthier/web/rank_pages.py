"""Ranking: two answers side by side without the names of their models, and what came of it on a page of its own."""

import json
from typing import Any

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from luthier.jobs.database import Row
from luthier.jobs.http.app import Service
from luthier.jobs.http.audited import note_object
from luthier.jobs.http.fine_tuning import FineTuningRoutes
from luthier.jobs.http.inference import served_as
from luthier.jobs.http.reading import read_as
from luthier.jobs.http.schema import CreateJob
from luthier.jobs.model_names import is_tuned
from luthier.jobs.objects import FileObject
from luthier.jobs.pages import Page
from luthier.jobs.translate import PREFERRED
from luthier.serve.api_error import ApiError
from luthier.web.agreement import Choice, is_swapped
from luthier.web.answering import Answering
from luthier.web.forms import posted_of
from luthier.web.pages import go_to, show
from luthier.web.play_pages import HOTTEST, MOST_TOKENS, chat_models, fraction
from luthier.web.rankings import Rankings, Standing, prompts_of
from luthier.web.sessions import session_of

MADE = "ranked"
"""What people call a job that was made of a ranking."""
MOST_PAIRS, MOST_FILES, LONGEST_NAME = 500, 100, 100
SHOWN: dict[str, tuple[Choice, Choice]] = {
    "a": ("first", "second"),
    "b": ("second", "first"),
    "tie": ("tie", "tie"),
    "skip": ("skip", "skip"),
}
"""What a button means, where the first answer is shown first and where the second is."""


class RankPages:
    """The handlers."""

    def __init__(self, service: Service, api: FineTuningRoutes) -> None:
        self._service, self._api = service, api
        self._rankings = Rankings(service.database)
        self._answering = Answering(service, self._rankings)

    def add_to(self, app: FastAPI) -> None:
        """Add the pages."""
        one = "/studio/rankings/{ranking_id}"
        app.add_api_route("/studio/rankings", self.listed, methods=["GET"], response_model=None)
        app.add_api_route("/studio/rankings", self.create, methods=["POST"], response_model=None)
        app.add_api_route(one, self.rate_page, methods=["GET"], response_model=None)
        app.add_api_route(one, self.rate, methods=["POST"], response_model=None)
        app.add_api_route(one + "/again", self.again, methods=["POST"], response_model=None)
        app.add_api_route(one + "/undo", self.undo, methods=["POST"], response_model=None)
        app.add_api_route(one + "/results", self.results, methods=["GET"], response_model=None)
        app.add_api_route(one + "/preferences.jsonl", self.export, methods=["GET"], response_model=None)
        app.add_api_route(one + "/train", self.train, methods=["POST"], response_model=None)

    def listed(self, request: Request) -> Response:
        """GET /studio/rankings"""
        project = session_of(request).caller.project_id
        files, _ = self._service.files.listed(project, Page(limit=MOST_FILES), "fine-tune")
        models = chat_models(self._service, project)
        return show(
            request,
            "rankings.html.jinja",
            rankings=self._rankings.listed(project),
            files=files,
            models=models,
            made=next(filter(is_tuned, models), models[0]),
        )

    def create(self, request: Request) -> Response:
        """POST /studio/rankings"""
        project, posted = session_of(request).caller.project_id, posted_of(request)
        models = posted.one("first"), posted.one("second")
        for name in models:
            served_as(self._service.jobs, self._service.names, project, name)
        sampling = {
            "temperature": fraction(posted.one("temperature", "0.7"), HOTTEST),
            "most_tokens": posted.number("most_tokens", 200, 1, MOST_TOKENS),
            "seed": posted.number("seed", 0, 0, 2**31 - 1),
        }
        if models[0] == models[1] and not sampling["temperature"]:
            raise ApiError("Two answers of one model differ only above temperature 0.", param="temperature")
        file = self._service.files.get(project, posted.one("file"))
        prompts = prompts_of(self._service.files.path(project, file["id"]), posted.number("pairs", 20, 1, MOST_PAIRS))
        name = posted.one("name", str(file["filename"]))[:LONGEST_NAME]
        made = self._rankings.create(project, name, models, sampling, prompts)
        note_object(request, made)
        return go_to(f"/studio/rankings/{made}")

    async def rate_page(self, request: Request, ranking_id: str) -> Response:
        """GET /studio/rankings/{ranking_id}: the next pair of this rater"""
        ranking = await run_in_threadpool(self._ranking, request, ranking_id)
        waiting = len(await run_in_threadpool(self._rankings.unanswered, ranking["id"]))
        if waiting:
            self._answering.go_on(ranking)
        standing = await run_in_threadpool(self._rankings.standing, ranking["id"])
        rater = session_of(request).caller.key_id
        left = [pair for pair in standing.pairs if rater not in standing.said.get(pair["id"], {})]
        pair = left[0] if left else None
        answers = None
        if pair is not None:
            swapped = is_swapped(pair["id"], rater)
            answers = (pair["second"], pair["first"]) if swapped else (pair["first"], pair["second"])
        return show(
            request,
            "rank.html.jinja",
            ranking=ranking,
            pair=pair,
            answers=answers,
            rated=len(standing.pairs) - len(left),
            waiting=waiting,
            total=len(standing.pairs) + waiting,
            trouble=self._answering.trouble(ranking["id"]) if waiting else None,
        )

    def rate(self, request: Request, ranking_id: str) -> Response:
        """POST /studio/rankings/{ranking_id}: what the rater says of a pair, by how it was shown"""
        ranking, posted = self._ranking(request, ranking_id), posted_of(request)
        rater, pair = session_of(request).caller.key_id, posted.one("pair")
        meant = SHOWN.get(posted.one("choice"))
        if meant is None:
            raise ApiError(f"'choice': expected {', '.join(SHOWN)}.", param="choice")
        self._rankings.rate(ranking["id"], pair, rater, meant[is_swapped(pair, rater)])
        note_object(request, pair)
        return go_to(f"/studio/rankings/{ranking['id']}")

    async def again(self, request: Request, ranking_id: str) -> Response:
        """POST /studio/rankings/{ranking_id}/again: answer further, though it went wrong"""
        ranking = await run_in_threadpool(self._ranking, request, ranking_id)
        self._answering.go_on(ranking, again=True)
        return go_to(f"/studio/rankings/{ranking['id']}")

    def undo(self, request: Request, ranking_id: str) -> Response:
        """POST /studio/rankings/{ranking_id}/undo"""
        ranking = self._ranking(request, ranking_id)
        self._rankings.undo(ranking["id"], session_of(request).caller.key_id)
        return go_to(f"/studio/rankings/{ranking['id']}")

    def results(self, request: Request, ranking_id: str) -> Response:
        """GET /studio/rankings/{ranking_id}/results"""
        ranking = self._ranking(request, ranking_id)
        standing = self._rankings.standing(ranking["id"])
        return show(
            request,
            "rank_results.html.jinja",
            ranking=ranking,
            standing=standing,
            verdicts=standing.verdicts,
            preferences=len(standing.preferences()),
        )

    def export(self, request: Request, ranking_id: str) -> Response:
        """GET /studio/rankings/{ranking_id}/preferences.jsonl: a download for dpo"""
        standing = self._rankings.standing(self._ranking(request, ranking_id)["id"])
        headers = {"content-disposition": 'attachment; filename="preferences.jsonl"', "cache-control": "no-store"}
        return Response(lines_of_preferences(standing), media_type="application/octet-stream", headers=headers)

    def train(self, request: Request, ranking_id: str) -> Response:
        """POST /studio/rankings/{ranking_id}/train: the preferences become a file of the project, and a job on it

        Raises:
            ApiError: 400: there is no preference yet, or the model cannot be trained; 413, 429.
        """
        ranking, posted = self._ranking(request, ranking_id), posted_of(request)
        standing = self._rankings.standing(ranking["id"])
        if not standing.preferences():
            raise ApiError("No pair has a winner yet.")
        model, method = posted.one("model"), posted.one("method")
        if method not in PREFERRED:
            raise ApiError(f"'method': expected {' or '.join(PREFERRED)}.", param="method")
        file = self._keep(ranking, standing)
        body: dict[str, Any] = {"model": model, "training_file": file["id"], "method": {"type": method}, "suffix": MADE}
        try:
            made = self._api.create(request, read_as(body, CreateJob))
        except ApiError:  # nobody asked for the file alone
            self._service.files.delete(ranking["project_id"], file["id"])
            raise
        return go_to(f"/studio/jobs/{json.loads(bytes(made.body))['id']}")

    def _keep(self, ranking: Row, standing: Standing) -> FileObject:
        with self._service.files.receiver(ranking["project_id"]) as received:
            received.write(lines_of_preferences(standing))
            return self._service.files.add(ranking["project_id"], "preferences.jsonl", "fine-tune", received)

    def _ranking(self, request: Request, ranking_id: str) -> Row:
        return self._rankings.get(session_of(request).caller.project_id, ranking_id)


def lines_of_preferences(standing: Standing) -> bytes:
    """The export: a JSON object a line for each pair with a winner."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in standing.preferences()).encode()
