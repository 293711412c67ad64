"""A service with its studio on a loopback port in this process, and jobs as if they had been trained."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.jobs_service import options_of

from luthier.jobs.database import events, jobs, now
from luthier.jobs.http.app import Hosts, Service, build_app
from luthier.jobs.ids import EVENT, JOB, new_id
from luthier.jobs.results import metrics_data, step_message
from luthier.jobs.service import open_service
from luthier.serve import server
from luthier.web.studio import with_studio


@dataclass(frozen=True)
class Studio:
    """One that answers."""

    service: Service
    url: str
    """Without a slash at its end."""

    def key(self, project: str = "default", name: str = "anna") -> str:
        """A new key."""
        return self.service.tenants.add_key(project, name)


@contextmanager
def studio(folder: Path, model: Path, at_once: int = 1, **more: Any) -> Iterator[Studio]:
    """A service with its studio."""
    with open_service(options_of(folder, model, at_once=at_once, **more)) as service:
        bound = server.listen(server.Address(port=0))
        serving = server.server_of(build_app(service, Hosts(), front=with_studio), 5.0)
        thread = threading.Thread(target=serving.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        while not serving.started:
            time.sleep(0.01)
        try:
            yield Studio(service, server.url_of(bound).removesuffix("/v1"))
        finally:
            serving.should_exit = True
            thread.join()


def add_jobs(service: Service, project: str, count: int, status: str = "succeeded", **more: Any) -> list[str]:
    """Jobs that are in the database alone."""
    at = now()
    rows = [
        {
            "id": new_id(JOB),
            "created_at": at - 60 * (count - number),
            "project_id": project,
            "status": status,
            "asked": {"model": "gpt-4o-mini", "training_file": "file-x", "suffix": f"try-{number}"},
            "picked": {"n_epochs": 3, "batch_size": 8, "learning_rate_multiplier": 1.0},
            "base": "base",
            "training_file": "file-x",
            "seed": number,
            "result_files": [],
            "attempts": 1,
            **more,
        }
        for number in range(count)
    ]
    with service.database.writing() as connection:
        connection.execute(jobs.insert(), rows)
    return [str(row["id"]) for row in rows]


def add_steps(service: Service, job_id: str, done: int, total: int) -> None:
    """Events of steps, with losses that fall."""
    told = []
    for number in range(1, done + 1):
        step: dict[str, Any] = {"step": number, "loss": 2.2 / number**0.4 + 0.08 * (number * 7919 % 13) / 13}
        step |= {"seconds": 1.3, "tokens": 900, "trained_tokens": 220}
        if number % 10 == 0:
            step["validation_loss"] = 2.1 / number**0.38 + 0.1
        told.append(
            {
                "id": new_id(EVENT),
                "created_at": now() - (done - number),
                "job_id": job_id,
                "key": f"step {number}",
                "level": "info",
                "type": "metrics",
                "message": step_message(step, total),
                "data": metrics_data(step, total),
            }
        )
    with service.database.writing() as connection:
        connection.execute(events.insert(), told)


def chats(count: int) -> bytes:
    """A training file in which something is to be found: a repeated row and an e-mail address."""
    rows = [
        {
            "messages": [
                {"role": "system", "content": "You answer in one short sentence."},
                {"role": "user", "content": f"What is {n} plus {n + 1}?"},
                {"role": "assistant", "content": f"It is {2 * n + 1}."},
            ]
        }
        for n in range(count)
    ]
    rows[3]["messages"][1]["content"] = "Who are you? Write to jane.roe@mail-works.net."
    rows[5] = rows[4]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()
