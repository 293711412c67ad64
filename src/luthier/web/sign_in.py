"""The page on which a key opens a session, and how that ends."""

from urllib.parse import parse_qs

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from luthier.jobs.http.reading import chunks_of
from luthier.serve.api_error import ApiError
from luthier.web.pages import go_to, show
from luthier.web.sessions import PATH, Sessions, cookie_of, set_cookie

MOST_BYTES = 4096


class SignIn:
    """The handlers."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def add_to(self, app: FastAPI) -> None:
        """Add the pages; those to sign in are not the application's own, as nobody has a session there."""
        app.router.routes.append(Route("/studio/sign-in", self.page, methods=["GET"]))
        app.router.routes.append(Route("/studio/sign-in", self.open, methods=["POST"]))
        app.add_api_route("/studio/sign-out", self.close, methods=["POST"], response_model=None)

    async def page(self, request: Request) -> Response:
        """GET /studio/sign-in"""
        return show(request, "sign_in.html.jinja", wrong=False)

    async def open(self, request: Request) -> Response:
        """POST /studio/sign-in

        Raises:
            ApiError: 403: another site sent it; 413.
        """
        # there is no token yet; a browser says whose form this is, and its Origin was held against our names already
        if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            raise ApiError("Sign in from the studio's own page.", status=403, code="origin_not_allowed")
        body = bytearray()
        async for chunk in chunks_of(request):
            body += chunk
            if len(body) > MOST_BYTES:
                raise ApiError("This is too long for a key.", status=413)
        key = parse_qs(body.decode("latin-1")).get("key", [""])[-1].strip()
        secret = await run_in_threadpool(self._sessions.open, key)
        if secret is None:
            return show(request, "sign_in.html.jinja", 401, wrong=True)
        answer = go_to("/studio/jobs")
        set_cookie(request, answer, secret)
        return answer

    def close(self, request: Request) -> Response:
        """POST /studio/sign-out"""
        self._sessions.close(request.cookies[cookie_of(request)])
        answer = go_to("/studio/sign-in")
        answer.delete_cookie(cookie_of(request), path=PATH)
        return answer
