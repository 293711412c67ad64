"""The proxy: every request under `/v1` goes to the endpoint as it came, every answer comes back as it went.

Bytes pass through as they arrive, both ways; what is recorded is a copy beside them. Nothing is followed, retried,
cached or remembered between requests.
"""

import asyncio
import hmac
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256

import httpx2
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from luthier.capture.record import Recorder, is_sampled
from luthier.capture.rows import Exchange, digest_of
from luthier.errors import ServeError
from luthier.serve.api_error import ApiError, gone
from luthier.serve.body import unless_gone
from luthier.serve.guard import HostGuard, KeyCheck
from luthier.serve.limits import Access

CONSENT = "x-luthier-consent"
"""`yes`: this request may be recorded; `no`: it may not, whatever the key says. It is not passed on."""
REQUEST_ID = "x-request-id"
CAPTURE_ID = "x-luthier-capture-id"
"""In an answer: what stands for the request in the row that may come of it."""
CHAT = "chat/completions"
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]
LAST_EVENT = b"data: [DONE]"
LARGEST = 8 * 1024 * 1024
"""Bytes of a request or an answer that is recorded; larger ones only pass through."""
TIMEOUT = {"connect": 10.0, "read": 600.0, "write": 60.0, "pool": 10.0}
CONNECTIONS = 512
IDLE_SECONDS = 2.0
"""Connections that wait longer are closed before the endpoint does so: a request could meet its closing."""
OF_A_HOP = frozenset(
    {
        "connection",
        "expect",
        "host",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Headers that are for one connection alone."""
LONGEST_ID = 200
LAST_PORT = 65_535


def require_url(url: str) -> None:
    """Check that an endpoint can be asked.

    Raises:
        ServeError: it is no URL of a server, or holds a password.
    """
    try:
        found = httpx2.URL(url)
    except httpx2.InvalidURL:
        found = httpx2.URL("")
    is_base = found.scheme in ("http", "https") and found.host and not (found.query or found.fragment or found.userinfo)
    if not is_base or (found.port or 0) > LAST_PORT:
        raise ServeError(f"--to {url}: expected the base of an endpoint, such as https://api.example.com/v1")


@dataclass(frozen=True)
class Consent:
    """What may be recorded."""

    share: float = 1.0
    """Of the requests that were consented to."""
    keys: frozenset[bytes] = field(default=frozenset(), repr=False)
    """sha256 of the keys whose holders agreed for all that they send."""

    def given(self, headers: Mapping[str, str]) -> bool:
        """Whether the one who sent this agreed that it is kept."""
        said = headers.get(CONSENT)
        if said is not None:
            return said.strip().lower() == "yes"
        scheme, _, key = headers.get("authorization", "").partition(" ")
        digest = sha256(key.strip().encode()).digest()
        # every key is compared: how long it takes says nothing
        return scheme.lower() == "bearer" and any([hmac.compare_digest(digest, known) for known in self.keys])


class _Copy:
    """Bytes that passed by, up to a limit."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self.is_whole = False

    def add(self, chunk: bytes) -> None:
        self._size += len(chunk)
        if self._size <= LARGEST:
            self._parts.append(chunk)

    @property
    def fits(self) -> bool:
        return self._size <= LARGEST

    def data(self) -> bytes:
        return b"".join(self._parts)


class Proxy:
    """Passes requests on to an endpoint.

    Args:
        url: the endpoint's base, such as `https://api.example.com/v1`.
        consent: what may be recorded.
        recorder: takes it.
        access: who may use the proxy.
    """

    def __init__(self, url: str, consent: Consent, recorder: Recorder, access: Access) -> None:
        self._url, self._consent, self._recorder = httpx2.URL(url.rstrip("/")), consent, recorder
        self._check = KeyCheck(access.key)
        limits = httpx2.Limits(max_connections=CONNECTIONS, keepalive_expiry=IDLE_SECONDS)
        # a transport and no client: it keeps no cookies, follows nowhere, and adds no header of its own
        self._transport = httpx2.AsyncHTTPTransport(limits=limits, trust_env=False)

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """The recorder and the connections live as long as the application."""
        self._recorder.start()
        async with self._transport:
            yield
        self._recorder.close()

    async def health(self, _: Request) -> Response:
        """200 while this proxy answers; of the endpoint it says nothing."""
        return JSONResponse({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        """Figures for Prometheus."""
        try:
            await self._check(request)
        except ApiError as error:
            return _refused(error)
        return Response(self._recorder.metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def pass_on(self, request: Request) -> Response:
        """Any request under `/v1`."""
        started, created = time.perf_counter(), int(time.time())
        request_id = request.headers.get(REQUEST_ID, "")[:LONGEST_ID] or uuid.uuid4().hex
        try:
            await self._check(request)
        except ApiError as error:
            return _refused(error)
        is_recorded = self._is_recorded(request, request_id)
        asked, told = _Copy(), _Copy()
        try:
            upstream = await self._send(request, asked if is_recorded else None)
        except ApiError as error:
            if is_recorded:
                self._recorder.count("client_gone" if error.status == gone().status else "upstream_error")
            return _refused(error)
        headers = [(k, v) for k, v in upstream.headers.raw if k.decode("latin-1").lower() not in OF_A_HOP]
        if is_recorded:
            headers.append((CAPTURE_ID.encode(), digest_of(request_id).encode()))

        async def body() -> AsyncIterator[bytes]:
            try:
                async for chunk in upstream.stream:  # type: ignore[union-attr]
                    if is_recorded:
                        told.add(chunk)
                    yield chunk
                told.is_whole = True
            finally:
                if is_recorded:  # before anything is awaited: a client that hangs up ends this, too
                    taken = time.perf_counter() - started
                    self._record(request_id, upstream, asked, told, (created, taken))
                await upstream.aclose()

        answer = StreamingResponse(body(), upstream.status_code)
        answer.raw_headers = headers
        return answer

    def _is_recorded(self, request: Request, request_id: str) -> bool:
        """Whether a copy is kept; of chats, what is not kept is counted."""
        if request.method != "POST" or request.path_params["path"] != CHAT:
            return False
        if not self._consent.given(request.headers):
            self._recorder.count("no_consent")
            return False
        if not is_sampled(request_id, self._consent.share):
            self._recorder.count("not_sampled")
            return False
        return True

    async def _send(self, request: Request, copy: _Copy | None) -> httpx2.Response:
        """The head of the endpoint's answer.

        Raises:
            ApiError: 502 or 504: there is none; 499: the client hung up.
        """
        dropped = OF_A_HOP | {CONSENT, "accept-encoding"}
        headers = [(k, v) for k, v in request.headers.raw if k.decode("latin-1") not in dropped]
        headers.append((b"accept-encoding", b"identity"))  # what is recorded is read as it came
        path = request.scope["raw_path"].removeprefix(b"/v1")
        target = self._url.copy_with(raw_path=self._url.raw_path.rstrip(b"/") + path + _query(request))
        is_read = asyncio.Event()

        async def content() -> AsyncIterator[bytes]:
            async for chunk in request.stream():
                if copy is not None:
                    copy.add(chunk)
                if chunk:
                    yield chunk
            is_read.set()

        has_body = "content-length" in request.headers or "transfer-encoding" in request.headers
        sent = httpx2.Request(
            request.method,
            target,
            headers=headers,
            content=content() if has_body else None,
            extensions={"timeout": TIMEOUT},
        )
        try:
            return await self._answered(request, sent, is_read if has_body else None)
        except ClientDisconnect:  # amid its body
            raise gone() from None
        except httpx2.TimeoutException:
            raise ApiError("The endpoint does not answer in time.", status=504, code="upstream_timeout") from None
        except httpx2.HTTPError as error:
            raise ApiError(
                f"The endpoint cannot be reached: {type(error).__name__}.", status=502, code="upstream_unreachable"
            ) from None

    async def _answered(self, request: Request, sent: httpx2.Request, is_read: asyncio.Event | None) -> httpx2.Response:
        """What comes back; given up as soon as the client hangs up, so that the endpoint need not go on."""
        task = asyncio.ensure_future(self._transport.handle_async_request(sent))
        if is_read is not None:  # until then the client's messages are those of the body
            waits = asyncio.ensure_future(is_read.wait())
            try:
                await asyncio.wait({task, waits}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                waits.cancel()
        return await unless_gone(request, task)

    def _record(
        self, request_id: str, upstream: httpx2.Response, asked: _Copy, told: _Copy, times: tuple[int, float]
    ) -> None:
        """Hand an exchange over, or count why not."""
        is_stream = upstream.headers.get("content-type", "").partition(";")[0].strip() == "text/event-stream"
        # clients hang up when they have read the last event, which comes before the end of the connection's
        is_whole = told.is_whole or (is_stream and told.data().rstrip().endswith(LAST_EVENT))
        if upstream.status_code != 200:
            self._recorder.count("upstream_error")
        elif not is_whole:
            self._recorder.count("client_gone")
        elif not (asked.fits and told.fits):
            self._recorder.count("too_large")
        elif upstream.headers.get("content-encoding", "identity") != "identity":
            self._recorder.count("encoded")
        else:
            self._recorder.offer(Exchange(request_id, asked.data(), told.data(), is_stream, *times))


def _query(request: Request) -> bytes:
    query: bytes = request.scope["query_string"]
    return b"?" + query if query else b""


def _refused(error: ApiError) -> Response:
    return JSONResponse(error.body(), error.status, headers=dict(error.headers))


def build_app(proxy: Proxy, access: Access) -> ASGIApp:
    """The application behind its guard."""
    routes = [
        Route("/healthz", proxy.health, methods=["GET"]),
        Route("/metrics", proxy.metrics, methods=["GET"]),
        Route("/v1/{path:path}", proxy.pass_on, methods=METHODS),
    ]
    return HostGuard(Starlette(routes=routes, lifespan=proxy.lifespan), access.hosts, access.any_address)
