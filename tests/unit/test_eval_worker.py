"""Runs of evals when models are gone, when something is wrong with us, and when nobody answers yet."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.postgres import database_url

from luthier.jobs.database import Database, Row, sqlite_url
from luthier.jobs.eval_store import EvalStore, Item, NewRun
from luthier.jobs.eval_worker import EvalWorker
from luthier.jobs.gateway import Gateway, Served
from luthier.jobs.tenants import Tenants
from luthier.serve.api_error import ApiError, model_not_found

CHECK = {"type": "string_check", "name": "same", "input": "{{item.a}}", "reference": "1", "operation": "eq"}
ASKING = {
    "type": "completions",
    "model": "gone",
    "input_messages": {"type": "template", "template": [{"role": "user", "content": "{{item.a}}"}]},
}


class Place:
    """A store, and a worker over it."""

    def __init__(self, folder: Path, resolve: Callable[[str, str], Served]) -> None:
        database = Database(database_url(folder) or sqlite_url(folder / "a.sqlite"))
        self.store = EvalStore(database)
        self._gateway = Gateway(folder / "served", folder)
        self._resolve = resolve
        self._project = Tenants(database).project("one")
        config = {"item_schema": {}, "include_sample_schema": False}
        self._eval = self.store.create(self._project, "", config, [CHECK], None)["id"]

    def add(self, source: Any, count: int = 3) -> Row:
        """A run over texts of "1"."""
        return self.store.add_run(
            self._project, self._eval, NewRun("", source, None, [Item({"a": "1"}) for _ in range(count)])
        )

    def now(self, run: Row) -> Row:
        """The run as it is."""
        return self.store.run(self._project, self._eval, run["id"])

    async def work(self, until: Callable[[], bool]) -> None:
        """Let a worker go until something holds."""
        worker = EvalWorker(self.store, self._gateway, self._resolve)
        worker.start()
        end = time.monotonic() + 30
        while not until():
            assert time.monotonic() < end
            await asyncio.sleep(0.05)
        await worker.stop()
        await self._gateway.close()


def test_a_run_whose_model_is_gone_fails_with_the_reason(tmp_path: Path) -> None:
    def resolve(_: str, name: str) -> Served:
        raise model_not_found(name, [])

    place = Place(tmp_path, resolve)
    run = place.add(ASKING)
    asyncio.run(place.work(lambda: place.now(run)["status"] == "failed"))
    assert place.now(run)["error"]["code"] == "model_not_found" and "'gone'" in place.now(run)["error"]["message"]


def test_a_mistake_of_ours_fails_one_run_and_the_next_one_is_done(tmp_path: Path) -> None:
    def resolve(_: str, name: str) -> Served:
        raise TypeError("a mistake")

    place = Place(tmp_path, resolve)
    broken, whole = place.add(ASKING), place.add({"type": "jsonl"})
    asyncio.run(place.work(lambda: place.now(whole)["status"] == "completed"))
    assert place.now(broken)["status"] == "failed" and place.now(broken)["error"]["code"] == "internal_error"
    assert place.now(whole)["summary"]["result_counts"]["passed"] == 3


@pytest.mark.parametrize("end", ["cancel", "delete", "stop"])
def test_a_run_that_waits_for_its_model_can_be_ended(tmp_path: Path, end: str) -> None:
    asked: list[str] = []

    def resolve(_: str, name: str) -> Served:
        asked.append(name)
        raise ApiError("busy", status=429, code="rate_limit_exceeded")

    place = Place(tmp_path, resolve)
    run = place.add(ASKING)

    def is_over() -> bool:
        if asked and end == "cancel":
            place.store.move(run["id"], "canceled")
        elif asked and end == "delete":
            place.store.delete(run["project_id"], run["eval_id"])
        return bool(asked)

    start = time.monotonic()
    asyncio.run(place.work(is_over))
    assert time.monotonic() - start < 5
    if end == "delete":
        assert place.store.next_runs() == []
    else:
        assert place.now(run)["status"] == ("canceled" if end == "cancel" else "in_progress")
        assert place.store.waiting(run["id"]) == [0, 1, 2]  # what could not be asked for is not an error of the item
