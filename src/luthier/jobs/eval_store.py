"""Evals, their runs, and the items of runs: what is to be graded, and what came of it.

A run moves only along `MOVES`. It has its items from the beginning, and an item's result is one transaction that
happens once and only while the run goes on; so a server that is killed goes on with the items that have none, and no
result is lost or doubled. Counts are those of the stored results: of a run that goes on they are made anew whenever
someone asks, and with its end they are written down.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import sqlalchemy as sa

from luthier.jobs.database import Database, Row, eval_items, eval_runs, evals, now
from luthier.jobs.file_store import missing
from luthier.jobs.ids import EVAL, EVAL_ITEM, EVAL_RUN, new_id
from luthier.jobs.objects import Outcome, RunStatus, RunSummary
from luthier.jobs.pages import Page, page_of
from luthier.serve.api_error import ApiError

MOVES: Mapping[RunStatus, frozenset[RunStatus]] = {
    "queued": frozenset({"in_progress", "failed", "canceled"}),
    "in_progress": frozenset({"completed", "failed", "canceled"}),
    "completed": frozenset(),
    "failed": frozenset(),
    "canceled": frozenset(),
}
"""From each status, those that may follow."""
PAGE_BYTES = 16 * 1024 * 1024
"""A page of large runs or items ends early."""
PROJECT_BYTES = 4 * 1024 * 1024 * 1024
"""What the runs of a project may hold."""
INSERTED = 500
"""Items in one statement."""


@dataclass(frozen=True)
class Item:
    """A row of a run's data."""

    item: Mapping[str, Any]
    given: Mapping[str, Any] | None = None
    """The sample that came with it."""


@dataclass(frozen=True)
class NewRun:
    """A run as a client asked for it."""

    name: str
    data_source: Mapping[str, Any]
    metadata: Mapping[str, str] | None
    items: Sequence[Item]


@dataclass(frozen=True)
class Result:
    """What came of an item."""

    status: Outcome
    results: Sequence[Mapping[str, Any]]
    """One for each testing criterion, in their order; none if there was nothing to grade."""
    sample: Mapping[str, Any]
    usage: Sequence[Mapping[str, Any]] = ()
    """One for each time that a model was asked, as `per_model_usage` counts them."""


class EvalStore:
    """The evals of all projects."""

    def __init__(self, database: Database, project_bytes: int = PROJECT_BYTES) -> None:
        self._database, self._project_bytes = database, project_bytes

    def create(
        self,
        project: str,
        name: str,
        config: Mapping[str, Any],
        criteria: Sequence[Mapping[str, Any]],
        metadata: Mapping[str, str] | None,
    ) -> Row:
        """A new eval."""
        eval_id, at = new_id(EVAL), now()
        values = {"id": eval_id, "created_at": at, "updated_at": at, "project_id": project, "name": name}
        values |= {"data_source_config": config, "testing_criteria": list(criteria), "metadata": metadata}
        with self._database.writing() as connection:
            connection.execute(evals.insert().values(**values))
            return _eval(connection, project, eval_id)

    def get(self, project: str, eval_id: str) -> Row:
        """An eval's row.

        Raises:
            ApiError: 404: the project has no such eval.
        """
        with self._database.reading() as connection:
            return _eval(connection, project, eval_id)

    def listed(self, project: str, page: Page, by_update: bool) -> tuple[Sequence[Row], bool]:
        """A page of the project's evals, in the order of creation or of their last update."""
        query = sa.select(evals).where(evals.c.project_id == project)
        with self._database.reading() as connection:
            return page_of(connection, query, evals, page, first_by=(evals.c.updated_at,) if by_update else ())

    def update(self, project: str, eval_id: str, changes: Mapping[str, Any]) -> Row:
        """Change an eval's name and metadata.

        Raises:
            ApiError: 404.
        """
        with self._database.writing() as connection:
            row = _eval(connection, project, eval_id)
            connection.execute(evals.update().where(evals.c.id == row["id"]).values(updated_at=now(), **changes))
            return _eval(connection, project, eval_id)

    def delete(self, project: str, eval_id: str) -> None:
        """Remove an eval with all its runs.

        Raises:
            ApiError: 404.
        """
        with self._database.writing() as connection:
            row = _eval(connection, project, eval_id)
            _remove_runs(connection, eval_runs.c.eval_id == row["id"])
            connection.execute(evals.delete().where(evals.c.id == row["id"]))

    def add_run(self, project: str, eval_id: str, new: NewRun) -> Row:
        """A new run, with all its items.

        Raises:
            ApiError: 404; 413: the project has no room.
        """
        run_id, at = new_id(EVAL_RUN), now()
        rows: list[dict[str, Any]] = [
            {"created_at": at, "run_id": run_id, "number": number, "item": one.item, "given": one.given}
            | {"id": new_id(EVAL_ITEM), "bytes": _size(one.item) + _size(one.given)}
            for number, one in enumerate(new.items)
        ]
        size = _size(new.data_source) + sum(row["bytes"] for row in rows)
        values = {"id": run_id, "created_at": at, "project_id": project, "eval_id": eval_id, "status": "queued"}
        values |= {"name": new.name, "data_source": new.data_source, "metadata": new.metadata, "bytes": size}
        with self._database.writing() as connection:
            _eval(connection, project, eval_id)
            kept = sa.select(sa.func.coalesce(sa.func.sum(eval_runs.c.bytes), 0))
            if int(connection.scalar(kept.where(eval_runs.c.project_id == project)) or 0) + size > self._project_bytes:
                raise ApiError(
                    f"The runs of the project may hold {self._project_bytes:,} bytes; delete some.",
                    status=413,
                    code="quota_exceeded",
                )
            connection.execute(eval_runs.insert().values(**values))
            for start in range(0, len(rows), INSERTED):
                connection.execute(eval_items.insert(), rows[start : start + INSERTED])
            return _run(connection, project, eval_id, run_id)

    def run(self, project: str, eval_id: str, run_id: str) -> Row:
        """A run's row.

        Raises:
            ApiError: 404.
        """
        with self._database.reading() as connection:
            return _run(connection, project, eval_id, run_id)

    def runs(self, project: str, eval_id: str, page: Page, status: str | None) -> tuple[Sequence[Row], bool]:
        """A page of an eval's runs.

        Raises:
            ApiError: 404.
        """
        with self._database.reading() as connection:
            row = _eval(connection, project, eval_id)
            query = sa.select(eval_runs).where(eval_runs.c.eval_id == row["id"])
            wanted = [] if status is None else [eval_runs.c.status == status]
            size = sa.func.length(sa.cast(eval_runs.c.data_source, sa.Text))
            return _light_page(connection, query, eval_runs, size, page, wanted)

    def cancel(self, project: str, eval_id: str, run_id: str) -> Row:
        """End a run, which keeps the results that it has; once more changes nothing.

        Raises:
            ApiError: 404; 400: it has ended otherwise.
        """
        row = self.run(project, eval_id, run_id)
        return row if row["status"] == "canceled" else self.move(row["id"], "canceled")

    def delete_run(self, project: str, eval_id: str, run_id: str) -> None:
        """Remove a run with its items.

        Raises:
            ApiError: 404.
        """
        with self._database.writing() as connection:
            row = _run(connection, project, eval_id, run_id)
            _remove_runs(connection, eval_runs.c.id == row["id"])

    def items(
        self, project: str, eval_id: str, run_id: str, page: Page, status: str | None
    ) -> tuple[Sequence[Row], bool]:
        """A page of those items of a run that have a result.

        Raises:
            ApiError: 404.
        """
        with self._database.reading() as connection:
            query = _with_result(_run(connection, project, eval_id, run_id))
            wanted = [] if status is None else [eval_items.c.status == status]
            return _light_page(connection, query, eval_items, eval_items.c.bytes, page, wanted)

    def item(self, project: str, eval_id: str, run_id: str, item_id: str) -> Row:
        """An item that has a result.

        Raises:
            ApiError: 404.
        """
        with self._database.reading() as connection:
            query = _with_result(_run(connection, project, eval_id, run_id))
            found = connection.execute(query.where(eval_items.c.id == item_id)).mappings().first()
        if found is None:
            raise missing("output_item", item_id)
        return found

    def summary(self, row: Row) -> RunSummary:
        """A run's counts, as its object has them."""
        if row["summary"] is not None:
            return cast(RunSummary, row["summary"])
        with self._database.reading() as connection:
            return _summary(connection, row)

    # What the worker writes

    def next_runs(self) -> list[Row]:
        """The oldest run of each project that has not ended, so that nobody waits for all runs of another."""
        oldest = sa.select(sa.func.min(eval_runs.c.seq)).where(eval_runs.c.status.in_(("queued", "in_progress")))
        query = sa.select(eval_runs).where(eval_runs.c.seq.in_(oldest.group_by(eval_runs.c.project_id)))
        with self._database.reading() as connection:
            return list(connection.execute(query.order_by(eval_runs.c.seq)).mappings())

    def move(self, run_id: str, to: RunStatus, error: Mapping[str, str] | None = None) -> Row:
        """Bring a run into another status; with an end its counts are written down.

        Raises:
            ApiError: 400: the run is not where it could move from; 404: it is gone.
        """
        with self._database.writing() as connection:
            row = connection.execute(sa.select(eval_runs).where(eval_runs.c.id == run_id)).mappings().first()
            if row is None:
                raise missing("eval_run", run_id)
            if to not in MOVES[row["status"]]:
                raise ApiError(f"The run {run_id!r} is {row['status']}, and cannot become {to}.", code="wrong_status")
            changes: dict[str, Any] = {"status": to, "error": error}
            if not MOVES[to]:
                changes["summary"] = _summary(connection, row)
            connection.execute(eval_runs.update().where(eval_runs.c.id == run_id).values(**changes))
            return connection.execute(sa.select(eval_runs).where(eval_runs.c.id == run_id)).mappings().one()

    def waiting(self, run_id: str) -> list[int]:
        """The numbers of a run's items without a result."""
        query = sa.select(eval_items.c.number).where(eval_items.c.run_id == run_id, eval_items.c.status.is_(None))
        with self._database.reading() as connection:
            return list(connection.scalars(query.order_by(eval_items.c.number)))

    def to_grade(self, run_id: str, number: int) -> Row | None:
        """An item; None if its run is gone."""
        query = sa.select(eval_items).where(eval_items.c.run_id == run_id, eval_items.c.number == number)
        with self._database.reading() as connection:
            return connection.execute(query).mappings().first()

    def record(self, run_id: str, number: int, result: Result) -> bool:
        """Keep an item's result; False if the run does not go on, or the item has one."""
        goes_on = sa.exists().where(eval_runs.c.id == run_id, eval_runs.c.status == "in_progress")
        values: dict[str, Any] = {
            "status": result.status,
            "results": list(result.results),
            "sample": dict(result.sample),
        }
        values |= {"usage": list(result.usage), "created_at": now()}
        added = _size(values["results"]) + _size(values["sample"])
        here = eval_items.c.run_id == run_id, eval_items.c.number == number, eval_items.c.status.is_(None)
        with self._database.writing() as connection:
            changed = connection.execute(
                eval_items.update().where(*here, goes_on).values(bytes=eval_items.c.bytes + added, **values)
            )
            if changed.rowcount == 1:
                size = {"bytes": eval_runs.c.bytes + added}
                connection.execute(eval_runs.update().where(eval_runs.c.id == run_id).values(**size))
            return changed.rowcount == 1


def summary_of(criteria: Sequence[Mapping[str, Any]], rows: Iterable[Row]) -> RunSummary:
    """The counts of items with `status`, `results` and `usage`.

    An item passes if all criteria passed, and is errored if one of them could not be applied. Such a grade counts
    neither as passed nor as failed for its criterion, but as `errored`, which OpenAI's object does not have.
    """
    counts = {"total": 0, "passed": 0, "failed": 0, "errored": 0}
    names = {"pass": "passed", "fail": "failed", "error": "errored"}
    by_criterion = [{"testing_criteria": one["name"], "passed": 0, "failed": 0, "errored": 0} for one in criteria]
    by_model: dict[str, dict[str, Any]] = {}
    for row in rows:
        counts["total"] += 1
        counts[names[row["status"]]] += 1
        for result, found in zip(row["results"] or (), by_criterion, strict=False):
            found["passed" if result["passed"] else "errored" if result.get("errors") else "failed"] += 1
        for one in row["usage"] or ():
            empty = {"model_name": one["model_name"], **dict.fromkeys(USAGE, 0)}
            used = by_model.setdefault(one["model_name"], empty)
            for name in USAGE:
                used[name] += one[name]
    found = {
        "result_counts": counts,
        "per_testing_criteria_results": by_criterion,
        "per_model_usage": [by_model[name] for name in sorted(by_model)],
    }
    return cast(RunSummary, found)


USAGE = ("invocation_count", "prompt_tokens", "completion_tokens", "cached_tokens", "total_tokens")


def _eval(connection: sa.Connection, project: str, eval_id: str) -> Row:
    query = sa.select(evals).where(evals.c.project_id == project, evals.c.id == eval_id)
    row = connection.execute(query).mappings().first()
    if row is None:
        raise missing("eval", eval_id)
    return row


def _run(connection: sa.Connection, project: str, eval_id: str, run_id: str) -> Row:
    mine = eval_runs.c.project_id == project, eval_runs.c.eval_id == eval_id, eval_runs.c.id == run_id
    row = connection.execute(sa.select(eval_runs).where(*mine)).mappings().first()
    if row is None:
        raise missing("eval_run", run_id)
    return row


def _with_result(run: Row) -> sa.Select[Any]:
    return sa.select(eval_items).where(eval_items.c.run_id == run["id"], eval_items.c.status.is_not(None))


def _summary(connection: sa.Connection, run: Row) -> RunSummary:
    criteria = connection.scalar(sa.select(evals.c.testing_criteria).where(evals.c.id == run["eval_id"]))
    query = _with_result(run).with_only_columns(eval_items.c.status, eval_items.c.results, eval_items.c.usage)
    return summary_of(criteria or (), connection.execute(query).mappings())


def _remove_runs(connection: sa.Connection, which: sa.ColumnElement[bool]) -> None:
    connection.execute(eval_items.delete().where(eval_items.c.run_id.in_(sa.select(eval_runs.c.id).where(which))))
    connection.execute(eval_runs.delete().where(which))


def _light_page(
    connection: sa.Connection,
    query: sa.Select[Any],
    table: sa.Table,
    size: sa.ColumnElement[int],
    page: Page,
    wanted: Sequence[sa.ColumnElement[bool]],
) -> tuple[Sequence[Row], bool]:
    """As `page_of`; ends early where the rows are large, as clients ask for the rest anyway."""
    heads, more = page_of(connection, query.with_only_columns(table.c.id, size.label("bytes")), table, page, wanted)
    ids: list[str] = []
    room = PAGE_BYTES
    for head in heads:
        room -= head["bytes"]
        if ids and room < 0:
            more = True
            break
        ids.append(head["id"])
    rows = connection.execute(sa.select(table).where(table.c.id.in_(ids))).mappings()
    by_id = {row["id"]: row for row in rows}
    return [by_id[one] for one in ids], more


def _size(value: Any) -> int:
    return len(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"))
