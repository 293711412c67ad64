"""A job service on a loopback port, in this process or in one that can be killed, and a client for it."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
from tests.conforming import Conforming
from tests.postgres import database_url

from luthier.jobs.http.app import Hosts, Service, build_app
from luthier.jobs.service import Options, open_service
from luthier.serve import server

MODEL = "gpt-4o-mini"
ENDED = ("succeeded", "failed", "cancelled")


def rows(count: int = 60, seed: int = 0) -> bytes:
    """A training file of short conversations."""
    asked = [(f"Say {seed}-{n}.", f"It is {n}.") for n in range(count)]
    made = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in asked]
    return "".join(json.dumps(row) + "\n" for row in made).encode()


@dataclass(frozen=True)
class Running:
    """A service that answers."""

    service: Service
    url: str
    wrong: list[str]
    """Answers that are not as openapi.json says; what a test brings about on purpose it takes out."""

    def client(self, project: str = "default", role: Any = "member") -> openai.OpenAI:
        """A client with a key of its own."""
        key = self.service.tenants.add_key(project, "test", role)
        return openai.OpenAI(base_url=self.url, api_key=key, max_retries=0)


def options_of(folder: Path, model: Path, **more: Any) -> Options:
    """A service of one base, over SQLite or, by `make postgres`, over a database of its own there."""
    own = {"database": database_url(folder), **more}
    return Options(folder, bases=(str(model),), aliases={MODEL: str(model)}, **own)


def new_key(folder: Path, model: Path) -> str:
    """A key of a service that does not run."""
    with open_service(options_of(folder, model)) as service:
        return service.tenants.add_key("default", "test")


@contextmanager
def running(folder: Path, model: Path, at_once: int = 1, closed: bool = True, **more: Any) -> Iterator[Running]:
    """A service in this process, with more of `Options`; `closed`: as of `Conforming`."""
    with open_service(options_of(folder, model, at_once=at_once, **more)) as service:
        bound = server.listen(server.Address(port=0))
        app = Conforming(build_app(service, Hosts()), closed)
        serving = server.server_of(app, 5.0)
        thread = threading.Thread(target=serving.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        while not serving.started:
            time.sleep(0.01)
        try:
            yield Running(service, server.url_of(bound), app.wrong)
        finally:
            serving.should_exit = True
            thread.join()
        assert not app.wrong, f"{len(app.wrong)} of {app.seen} answers are not as openapi.json says: {app.wrong[:5]}"


def start(
    folder: Path, model: Path, log: Path, options: Sequence[str] = (), more: Mapping[str, str] | None = None
) -> "tuple[subprocess.Popen[bytes], str]":
    """A service in a process of its own, with more in its environment, and its address."""
    command = [sys.executable, "-m", "luthier.cli.main", "up", "--data", str(folder), "--port", "0"]
    command += ["--model", str(model), "--alias", f"{MODEL}={model}", *options]
    url = database_url(folder)
    command += [] if url is None else ["--set", f"database={url}"]
    before = log.stat().st_size if log.exists() else 0
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**environment(), **(more or {})})
    for _ in range(600):
        found = re.search(rb" at (http://\S+) ", log.read_bytes()[before:])
        if found:
            return process, found[1].decode()
        if process.poll() is not None:
            break
        time.sleep(0.1)
    raise AssertionError(log.read_text())


def environment() -> Mapping[str, str]:
    """Of a process that writes bytecode, as many are started."""
    return {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}


def wait_for(client: openai.OpenAI, job_id: str, wanted: Sequence[str] = ENDED, seconds: float = 120.0) -> Any:
    """The job, once it is in one of the statuses."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        job = client.fine_tuning.jobs.retrieve(job_id)
        if job.status in wanted:
            return job
        time.sleep(0.2)
    raise AssertionError(f"{job.status} after {seconds} s; {[e.message for e in events_of(client, job_id)]}")


def events_of(client: openai.OpenAI, job_id: str) -> list[Any]:
    """All events, the oldest first, over as many pages as it takes."""
    return list(client.fine_tuning.jobs.list_events(job_id, limit=50))[::-1]
