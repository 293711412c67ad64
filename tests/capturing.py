"""`luthier capture` in a thread, before any endpoint."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.listening import listening

from luthier.capture import open_redactor
from luthier.capture.proxy import Consent, Proxy, build_app
from luthier.capture.record import Recorder
from luthier.capture.store import DayFiles, Retention
from luthier.serve.limits import Access
from luthier.serve.server import Address, listen, server_of

YES = {"X-Luthier-Consent": "yes"}


@contextmanager
def capturing(
    to: str,
    folder: Path,
    consent: Consent | None = None,
    retention: Retention | None = None,
    access: Access | None = None,
) -> Iterator[tuple[str, Recorder]]:
    """The proxy's base URL and its recorder; at the end all rows are written."""
    access = access or Access()
    recorder = Recorder(DayFiles(folder, retention or Retention(30, 10**9)), open_redactor([]))
    bound = listen(Address(port=0))
    server = server_of(build_app(Proxy(to, consent or Consent(), recorder, access), access), 10.0)
    with listening(server, bound) as url:
        yield url, recorder


def rows_in(folder: Path) -> list[dict[str, Any]]:
    """What was recorded, in order."""
    lines = [line for path in sorted(folder.glob("capture-*.jsonl")) for line in path.read_text("utf-8").splitlines()]
    return [json.loads(line) for line in lines]
