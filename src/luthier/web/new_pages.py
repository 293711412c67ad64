"""A new job from a file: what the checks find, what is trained on, what would be picked, and how long it takes."""

import json
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from luthier import registry
from luthier.data.formats.base import FORMATS
from luthier.jobs.database import Row
from luthier.jobs.http.app import Service
from luthier.jobs.http.fine_tuning import FineTuningRoutes
from luthier.jobs.http.reading import read_as
from luthier.jobs.http.schema import CreateJob
from luthier.jobs.model_names import is_tuned
from luthier.jobs.pages import Page
from luthier.jobs.translate import PREFERRED
from luthier.serve.api_error import ApiError
from luthier.web.edits import lines_of
from luthier.web.forms import Posted, posted_of
from luthier.web.looks import Looks
from luthier.web.pages import go_to, show, without_places
from luthier.web.sessions import session_of

METHODS = ("supervised", *PREFERRED)
WHOLE, FRACTIONS = ("n_epochs", "batch_size"), ("learning_rate_multiplier", "beta")
MOST_FILES = 100


class NewPages:
    """The handlers; a job is made by that of the API, so by the same rules."""

    def __init__(self, service: Service, api: FineTuningRoutes) -> None:
        self._service, self._api = service, api
        folder = service.supervisor.folder
        self._looks = Looks(folder.parent / "looks", folder, service.supervisor.limits.at_once)

    def add_to(self, app: FastAPI) -> None:
        """Add the pages."""
        job = "/studio/files/{file_id}/job"
        app.add_api_route(job, self.page, methods=["GET"], response_model=None)
        app.add_api_route(job + "/found", self.found, methods=["GET"], response_model=None)
        app.add_api_route("/studio/jobs", self.create, methods=["POST"], response_model=None)

    async def page(self, request: Request, file_id: str) -> Response:
        """GET /studio/files/{file_id}/job?model="""
        file, rows, model = await run_in_threadpool(self._asked, request, file_id)
        found = await self._found(file, rows, model)
        return await run_in_threadpool(self._page, request, file, rows, model, found)

    async def found(self, request: Request, file_id: str) -> Response:
        """GET /studio/files/{file_id}/job/found?model=: the part of the page that changes"""
        file, rows, model = await run_in_threadpool(self._asked, request, file_id)
        return show(request, "new_found.html.jinja", file=file, model=model, found=await self._found(file, rows, model))

    def _asked(self, request: Request, file_id: str) -> tuple[Row, Path, str]:
        """The file, where its rows lie, and the name of the model."""
        project = session_of(request).caller.project_id
        file = self._service.files.get(project, file_id)
        if file["purpose"] != "fine-tune":
            raise ApiError("This file is not for training.")
        model = request.query_params.get("model") or self._service.names.shown[0]
        return file, self._service.files.path(project, file_id), model

    async def _found(self, file: Row, rows: Path, model: str) -> dict[str, Any]:
        """What a look found by now, without places of this machine."""
        base, start = await run_in_threadpool(self._meant, file["project_id"], model)
        found = await self._looks.found(file["project_id"], rows, base, start)
        return found | {
            name: without_places(found[name], base, model) for name in ("recipe", "trouble") if name in found
        }

    def _page(self, request: Request, file: Row, rows: Path, model: str, found: dict[str, Any]) -> Response:
        others, _ = self._service.files.listed(file["project_id"], Page(limit=MOST_FILES), "fine-tune")
        return show(
            request,
            "new.html.jinja",
            file=file,
            model=model,
            models=self._models(file["project_id"]),
            method=method_for(rows),
            found=found,
            others=[other for other in others if other["id"] != file["id"]],
        )

    def _models(self, project: str) -> list[str]:
        return [*self._service.names.shown, *(row["id"] for row in self._service.jobs.models(project))]

    def _meant(self, project: str, model: str) -> tuple[str, Row | None]:
        """The base that a model's name means, and the model to go on from if it is none itself.

        Raises:
            ApiError: 400 or 404: there is no such model.
        """
        if not is_tuned(model):
            return self._service.names.base_of(model), None
        row = self._service.jobs.model(project, model)
        if row is None:
            raise ApiError(f"No such model: {model[:200]!r}.", status=404)
        return str(row["base"]), row

    def create(self, request: Request) -> Response:
        """POST /studio/jobs"""
        made = self._api.create(request, read_as(job_of(posted_of(request)), CreateJob))
        return go_to(f"/studio/jobs/{json.loads(bytes(made.body))['id']}")


def method_for(rows: Path) -> str:
    """The method that rows are for, by the first of them: all are of one kind, or were refused."""
    _, first = next(lines_of(rows))
    return "dpo" if registry.load(FORMATS, "preference").matches(json.loads(first)) else "supervised"


def job_of(posted: Posted) -> dict[str, Any]:
    """The body of the API that a form means; a field that is empty is left out, and so picked by the service.

    Raises:
        ApiError: 400: the method is none of these, or a number is none.
    """
    method = posted.one("method", "supervised")
    if method not in METHODS:
        raise ApiError(f"'method': expected {' or '.join(METHODS)}.", param="method")
    settings: dict[str, Any] = {}
    for name in (*WHOLE, *FRACTIONS):
        text = posted.one(name)
        if text and (name != "beta" or method == "dpo"):
            settings[name] = _number(name, text)
    body: dict[str, Any] = {"model": posted.one("model"), "training_file": posted.one("training_file")}
    body |= {"method": {"type": method, method: {"hyperparameters": settings}}}
    body |= {name: text for name in ("validation_file", "suffix") if (text := posted.one(name))}
    if posted.one("seed"):
        body["seed"] = posted.number("seed", 0, 0, 2**31 - 1)
    return body


def _number(name: str, text: str) -> float:
    try:
        return int(text) if name in WHOLE else float(text)
    except ValueError:
        raise ApiError(f"{name!r}: expected a number, found {text[:40]!r}.", param=name) from None
