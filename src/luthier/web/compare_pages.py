"""Runs side by side: what differs in their settings, how their losses fell, and the rows that two of them share."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from luthier.comparison import Comparison, Side, compare_runs, read_side
from luthier.errors import LuthierError
from luthier.jobs.database import Row
from luthier.jobs.http.app import Service
from luthier.jobs.job_folder import RUN
from luthier.report.plot import CurvePlot, curve_plot
from luthier.report.schema import Training
from luthier.report.text import as_text
from luthier.run_folder import RunFolder
from luthier.serve.api_error import ApiError
from luthier.web.job_list import JobList
from luthier.web.pages import show, title_of, without_places
from luthier.web.sessions import session_of

MOST = 4
"""Runs beside each other."""
OWN = ("data", "cost", "tracking", "model.name", "adapter.start_from")
"""Settings that differ by where things lie on this machine; what was trained from stands above them."""


@dataclass(frozen=True)
class Compared:
    """One of the runs."""

    job: Row
    training: Training | None
    curve: CurvePlot | None
    recipe: Mapping[str, Any]


class ComparePages:
    """The handlers."""

    def __init__(self, service: Service) -> None:
        self._service, self._list = service, JobList(service.database)

    def add_to(self, app: FastAPI) -> None:
        """Add the page."""
        app.add_api_route("/studio/compare", self.page, methods=["GET"], response_model=None)

    def page(self, request: Request) -> Response:
        """GET /studio/compare?job=&job=&search="""
        project, query = session_of(request).caller.project_id, request.query_params
        chosen = list(dict.fromkeys(one for one in query.getlist("job") if one))
        if len(chosen) > MOST:
            raise ApiError(f"At most {MOST} runs are compared at once.")
        runs = [self._read(self._service.jobs.get(project, one)) for one in chosen]
        flat = [{key: _told(run, value) for key, value in leaves(run.recipe)} for run in runs]
        known = [one for one in flat if one]
        keys = sorted({key for one in known for key in one if any(one[key] != other.get(key) for other in known)})
        search = query.get("search", "")
        return show(
            request,
            "compare.html.jinja",
            runs=runs,
            settings={key: [one.get(key) for one in flat] for key in keys},
            paired=self._pair(runs) if len(runs) == 2 else None,
            chosen=chosen,
            listed=self._list.page(project, search, "", 1),
            search=search,
            most=MOST,
        )

    def _read(self, row: Row) -> Compared:
        training = self._list.training(row["id"]).training
        recipe = RunFolder(self._service.supervisor.folder_of(row) / RUN, listed=False).recipe_values() or {}
        return Compared(row, training, curve_plot(training), recipe)

    def _pair(self, runs: list[Compared]) -> "Paired | None":
        """What both runs share; None if one of them is just being written, or gone."""
        folders = [self._service.supervisor.folder_of(run.job) / RUN for run in runs]
        try:
            sides: list[Side] = [read_side(folder) for folder in folders]
        except LuthierError:
            return None
        found = compare_runs(*sides)
        named = {str(folder): title_of(run.job) for folder, run in zip(folders, runs, strict=True)}
        return Paired(found, [_without_folders(text, named) for text in found.left_out])


@dataclass(frozen=True)
class Paired:
    """Two runs, with jobs' names in the place of folders."""

    found: Comparison
    left_out: list[str]


def leaves(recipe: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, str]]:
    """The settings of a recipe by their dotted keys, as people read them; those that are not set are left out."""
    for key, value in recipe.items():
        name = f"{at}{key}"
        if name in OWN or value is None:
            continue
        if isinstance(value, Mapping):
            yield from leaves(value, f"{name}.")
        else:
            yield name, as_text(value)


def _told(run: Compared, value: str) -> str:
    return without_places(value, run.job["base"], run.job["asked"]["model"])


def _without_folders(text: str, named: Mapping[str, str]) -> str:
    for folder, name in named.items():
        text = text.replace(folder, name)
    return text
