"""Pages from templates: every value is escaped, and nothing on a page may run that is not a file of the studio's.

As in the report, each text passes `visible` first, so that no character of the data turns the direction of a line or
hides; there is no `safe` filter in the templates.
"""

import os
import time
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response

from luthier import report
from luthier.jobs.database import Row
from luthier.report import text
from luthier.serve.api_error import ApiError
from luthier.web.sessions import SESSION

HERE = Path(__file__).parent
STATIC = {
    "studio.css": (HERE / "static/studio.css", "text/css"),
    "report.css": (Path(report.__path__[0]) / "page.css", "text/css"),
    "studio.js": (HERE / "static/studio.js", "text/javascript"),
    "htmx.min.js": (HERE / "static/htmx.min.js", "text/javascript"),
    "icon.svg": (HERE / "static/icon.svg", "image/svg+xml"),
}
"""All files that are sent as they are."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; frame-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # with none at all browsers send `Origin: null` with forms
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


def title_of(job: Row) -> str:
    """What people call a job: the name that it was given, or the end of its id."""
    return str(job["asked"].get("suffix") or f"Job {job['id'][-8:]}")


def without_places(told: str, base: str, name: str) -> str:
    """A text without folders of this machine: a base that lies in one is what the client calls it."""
    return text.without_folders(told.replace(base, name) if os.sep in base else told)


def show(request: Request, name: str, /, status: int = 200, **values: Any) -> HTMLResponse:
    """A page."""
    session = request.scope.get(SESSION)
    body = (
        _environment().get_template(name).render(session=session, path=request.scope["path"], now=time.time(), **values)
    )
    return HTMLResponse(body, status, headers={"content-security-policy": POLICY, "cache-control": "no-store"})


def go_to(path: str, **query: str) -> Response:
    """On to another page, after a form."""
    return RedirectResponse(path + (f"?{urlencode(query)}" if query else ""), 303)


def send_static(request: Request) -> Response:
    """A file of STATIC; its address has its digest, so a browser may keep it.

    Raises:
        ApiError: 404.
    """
    found = STATIC.get(request.path_params["name"])
    if found is None:
        raise ApiError("There is no such file.", status=404)
    path, kind = found
    return FileResponse(path, media_type=kind, headers={"cache-control": "public, max-age=31536000, immutable"})


@cache
def _environment() -> Environment:
    loaders = [PackageLoader("luthier.web", "templates"), PackageLoader("luthier.report", ".")]
    environment = Environment(
        loader=ChoiceLoader(loaders),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": text.number,
        "count": text.count,
        "compact": text.compact,
        "duration": text.duration,
        "memory": text.memory,
        "percent": text.percent,
        "first_line": text.first_line,
        "day": lambda at: time.strftime("%Y-%m-%d %H:%M", time.gmtime(at)),
        "iso": lambda at: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at)),
    }
    environment.globals |= {
        "static": _address,
        "title_of": title_of,
        "difference": text.difference,
        "interval": text.interval,
    }
    return environment


def _finalize(value: Any) -> Any:
    return text.visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@cache
def _address(name: str) -> str:
    return f"/studio/static/{name}?{sha256(STATIC[name][0].read_bytes()).hexdigest()[:12]}"
