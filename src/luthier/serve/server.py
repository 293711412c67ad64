"""Starting the server: where it may listen, and a clean end."""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import uvicorn
from starlette.types import ASGIApp
from uvicorn.config import LOGGING_CONFIG
from uvicorn.protocols.http.h11_impl import H11Protocol

from luthier.errors import ServeError
from luthier.serve.access_log import JsonLines
from luthier.serve.chat import MAX_N
from luthier.serve.guard import host_name, is_address, is_loopback
from luthier.serve.limits import Access, HttpLimits, Limits

LogFormat: TypeAlias = Literal["text", "json"]
MAX_CONNECTIONS = 512
HEADER_SECONDS = 10.0
"""Longest time between the first moment of a connection, or of a request on it, and the end of its headers."""
HEADER_BYTES = 32 * 1024


@dataclass(frozen=True)
class Address:
    """Where the server listens, and who may use it."""

    host: str = "127.0.0.1"
    port: int = 8000
    api_key_env: str | None = None
    """Name of the environment variable that holds the key; the key itself never stands on a command line."""
    allow_hosts: tuple[str, ...] = ()
    admin_key_env: str | None = None
    """Name of the environment variable that holds the key of the admin's routes."""


def require_sensible(http: HttpLimits, rows: Limits, queue: int) -> None:
    """Check the limits that the command line sets.

    Raises:
        ServeError: one is out of range.
    """
    for name, value, low, high in (
        ("--rows", rows.rows, MAX_N, 256),
        ("--queue", queue, 1, 4096),
        ("--deadline", http.deadline_seconds, 1, 86_400),
        ("--max-tokens", http.default_tokens, 1, 1_000_000),
    ):
        if not low <= value <= high:
            raise ServeError(f"{name} {value}: expected {low} to {high}")


def parse_encoders(given: Sequence[str], option: str, example: str) -> dict[str, str]:
    """Each `NAME=MODEL` of the command line by its name; a model alone is called as it is named, a folder by its name.

    Raises:
        ServeError: a name or a model is empty, or a name is given twice.
    """
    found: dict[str, str] = {}
    for text in given:
        name, equals, model = text.partition("=") if not os.path.exists(text) else ("", "", text)
        if not equals:
            model = text
            name = os.path.basename(os.path.abspath(text)) if os.path.exists(text) else text
        if not name or not model:
            raise ServeError(f"{option} {text}: expected a model such as {example}, or NAME=MODEL")
        if name in found:
            raise ServeError(f"two models have the same name: {name}; give one another with {option} NAME=MODEL")
        found[name] = model
    return found


def access_for(address: Address, environment: Mapping[str, str]) -> Access:
    """Who may use a server at this address.

    Raises:
        ServeError: the address can be reached from other machines and there is no key, the key's variable is missing
            or holds less than 16 characters, or an allowed host is not a bare name.
    """
    names, any_address = hosts_of(address)
    key = _key("--api-key-env", address.api_key_env, environment)
    admin_key = _key("--admin-key-env", address.admin_key_env, environment)
    local = is_loopback(address.host)
    if not local and key is None:
        raise ServeError(
            f"--host {address.host} can be reached from other machines, so a key is needed: put a long random text "
            "into an environment variable and name it with --api-key-env"
        )
    return Access(key, names, admin_key, any_address)


def hosts_of(address: Address) -> tuple[tuple[str, ...], bool]:
    """Names that may stand in a Host header beside loopback's, and whether any IP address may.

    Raises:
        ServeError: an allowed host is not a bare name.
    """
    for name in address.allow_hosts:
        if not is_address(name) and host_name(name) != name.lower().rstrip("."):
            raise ServeError(f"--allow-host (allow_hosts) {name}: expected a name alone, without scheme, port or path")
    wildcard = address.host in ("0.0.0.0", "::", "")
    return address.allow_hosts if wildcard else (*address.allow_hosts, address.host), wildcard


def _key(option: str, variable: str | None, environment: Mapping[str, str]) -> str | None:
    """The key in an environment variable.

    Raises:
        ServeError: the variable is not set, or holds a short one.
    """
    if variable is None:
        return None
    key = environment.get(variable, "").strip()
    if len(key) < 16:
        found = "is not set" if not key else "holds a key of less than 16 characters"
        raise ServeError(f"{option} {variable}: the variable {found}; set it to a long random text")
    return key


def listen(address: Address) -> socket.socket:
    """A bound socket, taken before the model is loaded so that a busy port is known at once.

    Raises:
        ServeError: the port is taken, or this machine has no such address.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    # asyncio switches Nagle's delay off only where the protocol is named; with it, a second small write waits 40 ms
    found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((address.host, address.port))
        found.listen(128)
    except (OSError, OverflowError, UnicodeError) as error:
        found.close()
        raise ServeError(
            f"cannot listen on {address.host}:{address.port}: {error}; choose another --port or --host"
        ) from None
    return found


def url_of(bound: socket.socket) -> str:
    """What a client gives as `base_url`."""
    host, port = bound.getsockname()[:2]
    if is_address(host) and ":" in host:
        host = f"[{host}]"
    return f"http://{host}:{port}/v1"


class Connection(H11Protocol):
    """Closes a connection that holds a place without asking for anything: its headers do not arrive."""

    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The headers of the first request are awaited."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """A trickle of bytes is no request, and does not begin the time anew."""
        self._watch()
        super().data_received(data)
        if self._is_answering():
            self._stop_watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is awaited any more."""
        self._stop_watch()
        super().connection_lost(exc)

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _watch(self) -> None:
        if self._waiting is None and not self._is_answering():
            self._waiting = self.loop.call_later(HEADER_SECONDS, self._give_up)

    def _stop_watch(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _give_up(self) -> None:
        self._waiting = None
        if not self._is_answering():
            self.transport.close()


def server_of(app: ASGIApp, patience_seconds: float, form: LogFormat = "text") -> uvicorn.Server:
    """A server of an application; at its end what is in flight has `patience_seconds` to finish."""
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        lifespan="on",
        access_log=False,  # it would write paths that clients chose
        log_level="warning",
        log_config=LOGGING_CONFIG if form == "text" else None,  # its own handler, or ours
        proxy_headers=False,
        server_header=False,
        date_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        h11_max_incomplete_event_size=HEADER_BYTES,
        timeout_graceful_shutdown=int(patience_seconds),
    )
    return uvicorn.Server(config)


def run(server: uvicorn.Server, bound: socket.socket) -> None:
    """Answer requests until ctrl-C or SIGTERM; what is in flight is finished first, and then this returns."""
    # uvicorn repeats the signal when all is finished
    before = signal.signal(signal.SIGTERM, lambda _number, _frame: None)
    try:
        server.run(sockets=[bound])
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
        bound.close()


def set_up_log(form: LogFormat = "text") -> None:
    """Write the server's own lines to standard error, one a request; as JSON, the lines of libraries too."""
    handler = logging.StreamHandler()
    text = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(JsonLines() if form == "json" else text)
    if form == "json":
        logging.getLogger().addHandler(handler)
        logging.captureWarnings(True)
    for name in ("luthier.serve", "luthier.jobs", "luthier.capture"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        if form == "text":
            logger.addHandler(handler)
            logger.propagate = False
