"""The studio put together: its pages before the API, under the same guards and over the same services.

Pages are at / and below /studio; every other path is the API's, which takes no cookie. Every page but the one to sign
in needs a session, and whatever is posted needs its token: both are dependencies of the whole application.
"""

from fastapi import Depends, FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from luthier.jobs.http.app import Service
from luthier.jobs.http.fine_tuning import FineTuningRoutes
from luthier.jobs.http.reading import require_no_nul
from luthier.jobs.http.storage_errors import tell_storage_errors
from luthier.serve.access_log import request_id
from luthier.serve.api_error import ApiError, internal
from luthier.web.compare_pages import ComparePages
from luthier.web.file_pages import FilePages
from luthier.web.forms import require_form
from luthier.web.job_pages import JobPages
from luthier.web.new_pages import NewPages
from luthier.web.pages import HEADERS, go_to, send_static, show
from luthier.web.play_pages import PlayPages
from luthier.web.rank_pages import RankPages
from luthier.web.sessions import NotSignedIn, Sessions
from luthier.web.sign_in import SignIn

HOME = "/studio/jobs"


def with_studio(service: Service, api: ASGIApp) -> ASGIApp:
    """The API with the studio's pages before it."""
    return _Front(api, _Headed(build_studio(service)))


def build_studio(service: Service) -> FastAPI:
    """All pages."""
    sessions = Sessions(service.database, service.tenants)
    app = FastAPI(
        dependencies=[Depends(sessions), Depends(require_no_nul), Depends(require_form)],
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    api = FineTuningRoutes(service.jobs, service.files, service.names)
    app.router.routes.append(Route("/", _home, methods=["GET"]))
    app.router.routes.append(Route("/studio", _home, methods=["GET"]))
    app.router.routes.append(Route("/studio/static/{name}", send_static, methods=["GET"]))
    SignIn(sessions).add_to(app)
    JobPages(service, api).add_to(app)
    FilePages(service).add_to(app)
    NewPages(service, api).add_to(app)
    PlayPages(service).add_to(app)
    RankPages(service, api).add_to(app)
    ComparePages(service).add_to(app)
    app.add_exception_handler(NotSignedIn, _not_signed_in)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unforeseen)
    tell_storage_errors(app)
    return app


class _Front:
    """ASGI: what is the studio's goes there, all else to the API, whose lifespan counts."""

    def __init__(self, api: ASGIApp, studio: ASGIApp) -> None:
        self._api, self._studio = api, studio

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        is_page = scope["type"] == "http" and (path in ("/", "/studio") or path.startswith("/studio/"))
        await (self._studio if is_page else self._api)(scope, receive, send)


class _Headed:
    """ASGI middleware: headers that every answer of the studio has."""

    def __init__(self, app: ASGIApp) -> None:
        self._app, self._headers = app, [(name.encode(), value.encode()) for name, value in HEADERS.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def headed(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *self._headers]
            await send(message)

        await self._app(scope, receive, headed)


async def _home(_: Request) -> Response:
    return RedirectResponse(HOME, 303)


async def _not_signed_in(request: Request, _: Exception) -> Response:
    if "hx-request" in request.headers:  # a part of a page: the whole of it goes to where one signs in
        return Response(status_code=401, headers={"hx-redirect": "/studio/sign-in"})
    return go_to("/studio/sign-in")


async def _api_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, ApiError):
        raise error
    if "text/html" not in request.headers.get("accept", ""):
        return JSONResponse(error.body(), error.status, headers=error.headers)
    return show(request, "error.html.jinja", error.status, message=error.message)


async def _http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    message = {404: "There is no such page.", 405: "This page does not take this."}.get(error.status_code, "Refused.")
    return show(request, "error.html.jinja", error.status_code, message=message)


async def _unforeseen(request: Request, _: Exception) -> Response:
    return show(request, "error.html.jinja", 500, message=internal(request_id(request.scope)).message)
