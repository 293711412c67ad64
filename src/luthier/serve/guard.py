"""What a request must pass before any route sees it: a Host that is this server's, and no foreign web page behind it.

A browser can be made to send requests to loopback: by a page on another site (`Origin` tells), or by a name that
resolves to this machine (DNS rebinding; `Host` tells). Both are refused for every method, and no CORS header is ever
sent. Decisions use the raw ASGI headers and path, never a URL that is rebuilt from them.
"""

import hmac
import ipaddress
from collections.abc import Iterable
from hashlib import sha256

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from luthier.serve.api_error import ApiError

ADMIN = "/v1/adapters"
"""What the paths of the admin's routes begin with."""
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


class HostGuard:
    """ASGI middleware: 403 for a foreign Host or Origin."""

    def __init__(self, app: ASGIApp, names: Iterable[str] = (), any_address: bool = False) -> None:
        self._app = app
        self._names = LOOPBACK_NAMES | {name.lower().rstrip(".") for name in names}
        self._any_address = any_address

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 403."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._require_known(scope)
        except ApiError as error:
            await JSONResponse(error.body(), error.status)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _require_known(self, scope: Scope) -> None:
        hosts = _header(scope, b"host")
        if len(hosts) != 1 or not self._knows(hosts[0]):
            raise ApiError(
                "This Host is not served here; `--allow-host NAME`, or `allow_hosts` of a job service, adds a name.",
                status=403,
                code="host_not_allowed",
            )
        for origin in _header(scope, b"origin"):
            scheme, separator, host = origin.partition("://")
            if not separator or scheme not in ("http", "https") or not self._knows(host):
                raise ApiError(
                    "Web pages of other sites may not use this server.", status=403, code="origin_not_allowed"
                )

    def _knows(self, host: str) -> bool:
        name = host_name(host)
        if name is None:
            return False
        return name in self._names or (self._any_address and is_address(name))


def _header(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def host_name(host: str) -> str | None:
    """The name or address in a Host header without its port, in lower case; None if it is malformed."""
    text = host.strip().lower()
    if text.startswith("["):
        name, bracket, port = text[1:].partition("]")
        port = port.removeprefix(":") if port.startswith(":") or not port else "?"
        return name if bracket and (not port or port.isdigit()) and is_address(name) else None
    name, _, port = text.partition(":")
    if not name or (port and not port.isdigit()) or not all(c.isalnum() or c in "-._" for c in name):
        return None
    return name.rstrip(".")


def is_address(name: str) -> bool:
    """Whether this is an IP address: rebinding needs a name, so an address in Host is never an attack."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether a server bound here can be reached from this machine only."""
    return host == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)


class KeyCheck:
    """A dependency of every route but /healthz: 401 without the right bearer key. Only hashes of keys are kept.

    Routes under `ADMIN` need the admin's key, and do not exist without one; it opens the others, too.
    """

    def __init__(self, key: str | None, admin_key: str | None = None) -> None:
        self._admin = [_digest(admin_key)] if admin_key is not None else []
        self._all = [_digest(key), *self._admin] if key is not None else []

    async def __call__(self, request: Request) -> None:
        """Let the request pass, or raise the 401 or 404."""
        is_admin = request.scope["path"].startswith(ADMIN)
        self._require_key(request, self._admin if is_admin and self._admin else self._all)
        if is_admin and not self._admin:
            raise ApiError("There is no such path; `luthier serve --admin-key-env` makes it.", status=404)

    def _require_key(self, request: Request, digests: list[bytes]) -> None:
        if not digests:
            return
        headers = request.headers.getlist("authorization")
        scheme, _, key = (headers[0] if len(headers) == 1 else "").partition(" ")
        right = [hmac.compare_digest(_digest(key.strip()), digest) for digest in digests]
        if scheme.lower() != "bearer" or not any(right):
            raise ApiError(
                "A valid API key is required: `Authorization: Bearer KEY`.",
                status=401,
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )


def _digest(key: str) -> bytes:
    return sha256(key.encode()).digest()
