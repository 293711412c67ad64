"""A small HTTP server that speaks as much of the chat API as a client sees, and misbehaves on request."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Reply:
    """What is sent back."""

    body: bytes
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    before_seconds: float = 0.0
    """How long it takes."""
    drips: int = 0
    """The body comes in so many parts, a tenth of a second apart."""


def completion(text: str | None, usage: tuple[int, int] | None = (10, 5), **more: Any) -> Reply:
    """A chat completion."""
    message = {"role": "assistant", "content": text, **more}
    reason = "tool_calls" if "tool_calls" in more else "stop"
    values: dict[str, Any] = {"model": "served", "choices": [{"message": message, "finish_reason": reason}]}
    if usage is not None:
        values["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
    return Reply(json.dumps(values).encode())


def echo(body: dict[str, Any], _number: int) -> Reply:
    """What the user said last."""
    return completion(body["messages"][-1]["content"])


@dataclass
class Heard:
    """What the server was sent."""

    url: str
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    most_at_once: int = 0
    now: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def serving(answer: Callable[[dict[str, Any], int], Reply] = echo) -> Iterator[Heard]:
    """A server on a loopback port; `answer` is given the request and its number, from 0."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with heard.lock:
                number = len(heard.bodies)
                heard.bodies.append(body)
                heard.headers.append({"path": self.path, **{k.lower(): v for k, v in self.headers.items()}})
                heard.now += 1
                heard.most_at_once = max(heard.most_at_once, heard.now)
            try:
                self._send(answer(body, number))
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True
            finally:
                with heard.lock:
                    heard.now -= 1

        def _send(self, reply: Reply) -> None:
            time.sleep(reply.before_seconds)
            self.send_response(reply.status)
            for name, value in reply.headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            size = max(1, len(reply.body) // (reply.drips + 1))
            for start in range(0, len(reply.body), size):
                self.wfile.write(reply.body[start : start + size])
                self.wfile.flush()
                time.sleep(0.1 if reply.drips else 0)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    heard = Heard(f"http://127.0.0.1:{server.server_address[1]}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield heard
    finally:
        server.shutdown()
        thread.join(timeout=20)
        server.server_close()
