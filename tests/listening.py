"""A server in a thread of the test's own process."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from luthier.serve.server import url_of


@contextmanager
def listening(server: uvicorn.Server, bound: socket.socket) -> Iterator[str]:
    """Its base URL; it is ended as ctrl-C would."""
    url = url_of(bound)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        deadline = time.monotonic() + 10
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        assert server.started
        yield url
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        bound.close()
    assert not thread.is_alive()
