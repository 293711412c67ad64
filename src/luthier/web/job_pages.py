"""Jobs: the list, and one of them with its curves, events, checkpoints and report."""

from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from luthier.errors import LuthierError
from luthier.jobs.database import Row
from luthier.jobs.http.app import Service
from luthier.jobs.http.fine_tuning import FineTuningRoutes
from luthier.jobs.job_folder import RECIPE, RUN
from luthier.jobs.job_store import ENDED
from luthier.jobs.pages import Page
from luthier.jobs.translate import method_of
from luthier.report.build import build_report
from luthier.report.page import render_page
from luthier.report.plot import curve_plot
from luthier.serve.api_error import ApiError
from luthier.web.job_list import STATUSES, JobList
from luthier.web.pages import go_to, show, without_places
from luthier.web.sessions import session_of

REPORT_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'self'"
"""The report brings its own style and nothing that runs; in its frame it may not even follow a link."""


class JobPages:
    """The handlers; what changes a job goes through those of the API."""

    def __init__(self, service: Service, api: FineTuningRoutes) -> None:
        self._service, self._api, self._list = service, api, JobList(service.database)

    def add_to(self, app: FastAPI) -> None:
        """Add the pages."""
        job = "/studio/jobs/{job_id}"
        app.add_api_route("/studio/jobs", self.listed, methods=["GET"], response_model=None)
        app.add_api_route(job, self.one, methods=["GET"], response_model=None)
        app.add_api_route(job + "/live", self.live, methods=["GET"], response_model=None)
        app.add_api_route(job + "/report", self.report, methods=["GET"], response_model=None)
        app.add_api_route(job + "/cancel", self.cancel, methods=["POST"], response_model=None)
        app.add_api_route(job + "/pause", self.pause, methods=["POST"], response_model=None)
        app.add_api_route(job + "/resume", self.resume, methods=["POST"], response_model=None)

    def listed(self, request: Request) -> Response:
        """GET /studio/jobs?search=&status=&page="""
        query = request.query_params
        search, status, page = query.get("search", ""), query.get("status", ""), query.get("page", "1")
        number = int(page) if page.isascii() and page.isdigit() and len(page) < 9 else 1
        found = self._list.page(session_of(request).caller.project_id, search, status, number)
        return show(
            request,
            "jobs.html.jinja",
            listed=found,
            search=search,
            wanted=status,
            statuses=STATUSES,
            method_of=method_of,
        )

    def one(self, request: Request, job_id: str) -> Response:
        """GET /studio/jobs/{job_id}"""
        row = self._row(request, job_id)
        recipe = self._service.supervisor.folder_of(row) / RECIPE
        return show(
            request,
            "job.html.jinja",
            **self._values(row),
            recipe=without_places(recipe.read_text(encoding="utf-8"), row["base"], row["asked"]["model"])
            if recipe.is_file()
            else None,
            has_report=self._has_run(row),
        )

    def live(self, request: Request, job_id: str) -> Response:
        """GET /studio/jobs/{job_id}/live: the part of the page that changes"""
        return show(request, "job_live.html.jinja", **self._values(self._row(request, job_id)))

    def report(self, request: Request, job_id: str) -> Response:
        """GET /studio/jobs/{job_id}/report: as `luthier report` would write it now, for a frame that may do nothing"""
        row = self._row(request, job_id)
        if not self._has_run(row):
            raise ApiError("This job has no run yet, or no more.", status=404)
        try:
            body = render_page(build_report(self._service.supervisor.folder_of(row) / RUN))
        except LuthierError:  # its message has paths of this machine
            raise ApiError("The run is just being written, or damaged; try again shortly.", status=503) from None
        return HTMLResponse(body, headers={"content-security-policy": REPORT_POLICY, "cache-control": "no-store"})

    def cancel(self, request: Request, job_id: str) -> Response:
        """POST /studio/jobs/{job_id}/cancel"""
        self._api.cancel(request, job_id)
        return go_to(f"/studio/jobs/{job_id}")

    def pause(self, request: Request, job_id: str) -> Response:
        """POST /studio/jobs/{job_id}/pause"""
        self._api.pause(request, job_id)
        return go_to(f"/studio/jobs/{job_id}")

    def resume(self, request: Request, job_id: str) -> Response:
        """POST /studio/jobs/{job_id}/resume"""
        self._api.resume(request, job_id)
        return go_to(f"/studio/jobs/{job_id}")

    def _row(self, request: Request, job_id: str) -> Row:
        return self._service.jobs.get(session_of(request).caller.project_id, job_id)

    def _has_run(self, row: Row) -> bool:
        return (self._service.supervisor.folder_of(row) / RUN / "manifest.json").is_file()

    def _values(self, row: Row) -> dict[str, Any]:
        found = self._list.training(row["id"])
        kept, _ = self._service.jobs.checkpoints(row["project_id"], row["id"], Page(limit=100))
        return {
            "job": row,
            "ended": row["status"] in ENDED,
            "method": method_of(row["asked"]),
            "picked": row["picked"],
            "training": found.training,
            "total": found.total,
            "figures": found.figures,
            "curve": curve_plot(found.training),
            "events": self._list.latest(row["id"]),
            "checkpoints": kept,
        }
