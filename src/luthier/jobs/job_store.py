"""Jobs, their events and checkpoints, and the models that came of them: rows that say what is true, written in order.

A job moves only along `MOVES`, and a move and the event that tells of it are one transaction. An event has a key within
its job ("step 12", "queued 1"): to record it again changes nothing, so whoever was killed between two writes says all
of it once more, and no event is lost or doubled.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import sqlalchemy as sa

from luthier.errors import ServeError
from luthier.jobs.database import (
    Database,
    Row,
    checkpoints,
    events,
    insert_new,
    jobs,
    models,
    now,
    permissions,
    projects as all_projects,
    requests,
    webhooks,
)
from luthier.jobs.file_store import missing
from luthier.jobs.ids import CHECKPOINT, EVENT, JOB, PERMISSION, WEBHOOK, new_id
from luthier.jobs.pages import Page, page_of
from luthier.serve.api_error import NO_RETRY, ApiError

Status: TypeAlias = Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
ENDED: frozenset[Status] = frozenset({"succeeded", "failed", "cancelled"})
MOVES: Mapping[Status, frozenset[Status]] = {
    "validating_files": frozenset({"queued", "failed", "cancelled", "paused"}),
    "queued": frozenset({"running", "failed", "cancelled", "paused"}),
    "running": frozenset({"queued", "succeeded", "failed", "cancelled", "paused"}),
    "paused": frozenset({"queued", "cancelled"}),
    "succeeded": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}
"""From each status, those that may follow. Running to queued: its process ended without an end of the job."""
WAITING: tuple[Status, ...] = ("queued", "validating_files", "paused")
MOST_WAITING = 100
"""Jobs of one project."""
MOST_PRIORITY = 1000


@dataclass(frozen=True)
class Told:
    """One event."""

    key: str
    """Within the job; what has the same key is the same event."""
    message: str
    level: Literal["info", "warn", "error"] = "info"
    type: Literal["message", "metrics"] = "message"
    data: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Asked:
    """A job as a client asked for it."""

    model: str
    """As the client named it."""
    base: str
    """The model that this name means here."""
    training_file: str
    validation_file: str | None
    seed: int
    body: Mapping[str, Any]
    """The whole request."""


class JobStore:
    """The jobs of all projects; of one, at most `most_waiting` that have not begun or are paused."""

    def __init__(self, database: Database, most_waiting: int = MOST_WAITING) -> None:
        self._database, self._most_waiting = database, most_waiting

    def create(self, project: str, asked: Asked, idempotency: tuple[str, str] | None = None) -> Row:
        """A new job; with an idempotency key and the request's digest, the job that the same request made before.

        Raises:
            ApiError: 409: the key was used for another request; 429: too many jobs of the project wait.
        """
        with self._database.writing() as connection:
            if idempotency is not None:
                before = _before(connection, project, *idempotency)
                if before is not None:
                    return _job(connection, project, before)
            self._require_place(connection, project)
            job_id, at = new_id(JOB), now()
            values = {
                "id": job_id,
                "created_at": at,
                "project_id": project,
                "status": "validating_files",
                "asked": dict(asked.body),
                "picked": {},
                "base": asked.base,
                "training_file": asked.training_file,
                "validation_file": asked.validation_file,
                "seed": asked.seed,
                "result_files": [],
                "attempts": 0,
            }
            connection.execute(jobs.insert().values(**values))
            if idempotency is not None:
                key, digest = idempotency
                connection.execute(
                    requests.insert().values(
                        project_id=project, idempotency_key=key, sha256=digest, object_id=job_id, created_at=at
                    )
                )
            told = [Told("created", f"Created fine-tuning job: {job_id}")]
            told.append(Told("validating", f"Validating training file: {asked.training_file}"))
            self._tell(connection, job_id, told)
            return _job(connection, project, job_id)

    def _require_place(self, connection: sa.Connection, project: str) -> None:
        count = sa.select(sa.func.count()).where(jobs.c.project_id == project, jobs.c.status.in_(WAITING))
        waiting = connection.scalar(count) or 0
        if waiting >= self._most_waiting:
            raise ApiError(
                f"This project has {waiting:,} jobs that wait or are paused, and may have {self._most_waiting:,}; "
                "try again when one has begun, or cancel some.",
                status=429,
                code="rate_limit_exceeded",
                headers=NO_RETRY,
            )

    def get(self, project: str, job_id: str) -> Row:
        """A job's row.

        Raises:
            ApiError: 404: the project has no such job.
        """
        with self._database.reading() as connection:
            return _job(connection, project, job_id)

    def listed(
        self, project: str, page: Page, wanted: Mapping[str, str] | None, without: bool
    ) -> tuple[Sequence[Row], bool]:
        """A page of the project's jobs.

        Args:
            project: whose.
            page: which part.
            wanted: metadata that they have, by key.
            without: only those without any metadata.
        """
        query = sa.select(jobs).where(jobs.c.project_id == project)
        found = [_has_metadata(key, value, self._database.engine.dialect) for key, value in (wanted or {}).items()]
        if without:
            found.append(jobs.c.asked["metadata"].as_string().is_(None))
        with self._database.reading() as connection:
            return page_of(connection, query, jobs, page, found)

    def events(self, project: str, job_id: str, page: Page) -> tuple[Sequence[Row], bool]:
        """A page of a job's events.

        Raises:
            ApiError: 404.
        """
        with self._database.reading() as connection:
            row = _job(connection, project, job_id)
            return page_of(connection, sa.select(events).where(events.c.job_id == row["id"]), events, page)

    def checkpoints(self, project: str, job_id: str, page: Page) -> tuple[Sequence[Row], bool]:
        """A page of a job's checkpoints.

        Raises:
            ApiError: 404.
        """
        with self._database.reading() as connection:
            row = _job(connection, project, job_id)
            query = sa.select(checkpoints).where(checkpoints.c.job_id == row["id"])
            return page_of(connection, query, checkpoints, page)

    # What the supervisor writes

    def in_status(self, *statuses: Status) -> list[Row]:
        """Jobs of all projects, those that go first in front."""
        with self._database.reading() as connection:
            query = sa.select(jobs).where(jobs.c.status.in_(statuses)).order_by(jobs.c.priority.desc(), jobs.c.seq)
            return list(connection.execute(query).mappings())

    def move(self, job_id: str, to: Status, told: Sequence[Told], allowed: Collection[str] = (), **changes: Any) -> Row:
        """Bring a job into another status, with other changes and the events that tell of it.

        Args:
            job_id: of any project.
            to: where.
            told: events.
            allowed: from where; none given: from wherever `MOVES` lets it.
            changes: of further columns.

        Raises:
            ApiError: 400: the job is not where it could move from.
        """
        with self._database.writing() as connection:
            row = connection.execute(sa.select(jobs).where(jobs.c.id == job_id)).mappings().one()
            if to not in MOVES[row["status"]] or (allowed and row["status"] not in allowed):
                raise ApiError(f"The job {job_id!r} is {row['status']}, and cannot become {to}.", code="wrong_status")
            ended = {"finished_at": now(), "estimated_finish": None} if to in ENDED else {}
            connection.execute(jobs.update().where(jobs.c.id == job_id).values(status=to, **ended, **changes))
            self._tell(connection, job_id, told)
            if to in ENDED:
                to_send = {"type": f"fine_tuning.job.{to}", "object_id": job_id, "next_at": now(), "attempts": 0}
                connection.execute(webhooks.insert().values(id=new_id(WEBHOOK), created_at=now(), **to_send))
            return connection.execute(sa.select(jobs).where(jobs.c.id == job_id)).mappings().one()

    def prioritize(self, job_id: str, priority: int) -> None:
        """Let a job of any project go before those of a lower priority; one that trains is not touched.

        Raises:
            ServeError: there is no such job, it waits for nothing, or the number is out of range.
        """
        if not -MOST_PRIORITY <= priority <= MOST_PRIORITY:
            raise ServeError(f"priority {priority}: expected -{MOST_PRIORITY} to {MOST_PRIORITY}; new jobs have 0")
        with self._database.writing() as connection:
            status = connection.scalar(sa.select(jobs.c.status).where(jobs.c.id == job_id))
            if status is None:
                raise ServeError(f"{job_id}: there is no such job; `luthier service jobs` lists them")
            if status in ENDED:
                raise ServeError(f"{job_id} is {status}, and waits for nothing")
            connection.execute(jobs.update().where(jobs.c.id == job_id).values(priority=priority))

    def note(self, job_id: str, told: Sequence[Told] = (), **changes: Any) -> None:
        """Record events, and change columns other than the status."""
        with self._database.writing() as connection:
            if changes:
                connection.execute(jobs.update().where(jobs.c.id == job_id).values(**changes))
            self._tell(connection, job_id, told)

    def add_checkpoint(self, row: Row, step: int, name: str, metrics: Mapping[str, float]) -> None:
        """Record that a checkpoint is kept; once more changes nothing."""
        values = {"job_id": row["id"], "step_number": step, "name": name, "metrics": dict(metrics)}
        with self._database.writing() as connection:
            insert_new(connection, checkpoints, {"id": new_id(CHECKPOINT), "created_at": now(), **values})

    def drop_checkpoints(self, job_id: str, kept: Collection[int]) -> None:
        """Forget checkpoints whose weights are gone, and the models that they were."""
        gone = checkpoints.c.job_id == job_id, checkpoints.c.step_number.not_in(kept)
        with self._database.writing() as connection:
            connection.execute(models.delete().where(models.c.id.in_(sa.select(checkpoints.c.name).where(*gone))))
            connection.execute(checkpoints.delete().where(*gone))

    def add_model(self, row: Row, name: str, folder: str) -> None:
        """Record what a job made, under the name that clients ask for; once more changes nothing."""
        values = {"project_id": row["project_id"], "job_id": row["id"], "base": row["base"], "folder": folder}
        with self._database.writing() as connection:
            insert_new(connection, models, {"id": name, "created_at": now(), **values})

    # Models and grants

    def models(self, project: str) -> list[Row]:
        """Those that the project trained, and those that were granted to it."""
        with self._database.reading() as connection:
            return list(connection.execute(_usable(project).order_by(models.c.seq)).mappings())

    def model(self, project: str, name: str) -> Row | None:
        """One of `models` by its name."""
        if "\x00" in name:  # PostgreSQL does not compare with what it cannot keep
            return None
        with self._database.reading() as connection:
            return connection.execute(_usable(project).where(models.c.id == name)).mappings().first()

    def places(self) -> dict[str, set[str]]:
        """Where the models lie that each job which succeeded made and still has, by the job's id."""
        query = sa.select(jobs.c.id, models.c.folder).select_from(jobs.outerjoin(models, models.c.job_id == jobs.c.id))
        found: dict[str, set[str]] = {}
        with self._database.reading() as connection:
            for job_id, folder in connection.execute(query.where(jobs.c.status == "succeeded")):
                found.setdefault(job_id, set()).update([folder] if folder is not None else [])
        return found

    def delete_model(self, project: str, name: str) -> tuple[Row, bool]:
        """Remove a model that the project itself trained, with the checkpoint that it may be and all grants of it.

        Returns:
            Its row, and whether its job has ended and has no other.

        Raises:
            ApiError: 404.
        """
        own = models.c.project_id == project, models.c.id == name
        with self._database.writing() as connection:
            row = connection.execute(sa.select(models).where(*own)).mappings().first()
            if row is None:
                raise missing("model", name)
            connection.execute(models.delete().where(*own))
            connection.execute(checkpoints.delete().where(checkpoints.c.name == name))
            connection.execute(permissions.delete().where(permissions.c.checkpoint == name))
            others = sa.exists().where(models.c.job_id == row["job_id"])
            ended = sa.exists().where(jobs.c.id == row["job_id"], jobs.c.status.in_(ENDED))
            return row, bool(connection.scalar(sa.select(~others & ended)))

    def grant(self, project: str, checkpoint: str, projects: Sequence[str]) -> list[Row]:
        """Let other projects use a model or checkpoint of this one.

        Raises:
            ApiError: 404: the project has no such model; 400: there is no such project.
        """
        with self._database.writing() as connection:
            self._require_own(connection, project, checkpoint)
            known = set(connection.scalars(sa.select(all_projects.c.id).where(all_projects.c.id.in_(projects))))
            for number, other in enumerate(projects):
                if other not in known:
                    raise ApiError(f"No such project: {other[:100]!r}.", param=f"project_ids[{number}]")
            for other in dict.fromkeys(projects):
                values = {"id": new_id(PERMISSION), "created_at": now(), "project_id": other, "checkpoint": checkpoint}
                insert_new(connection, permissions, values)
            query = sa.select(permissions).where(
                permissions.c.checkpoint == checkpoint, permissions.c.project_id.in_(projects)
            )
            return list(connection.execute(query.order_by(permissions.c.seq.desc())).mappings())

    def grants(self, project: str, checkpoint: str, page: Page, other: str | None) -> tuple[Sequence[Row], bool]:
        """Who else may use a model of this project.

        Raises:
            ApiError: 404.
        """
        query = sa.select(permissions).where(permissions.c.checkpoint == checkpoint)
        wanted = [] if other is None else [permissions.c.project_id == other]
        with self._database.reading() as connection:
            self._require_own(connection, project, checkpoint)
            return page_of(connection, query, permissions, page, wanted)

    def revoke(self, project: str, checkpoint: str, permission_id: str) -> None:
        """Take a grant back.

        Raises:
            ApiError: 404.
        """
        with self._database.writing() as connection:
            self._require_own(connection, project, checkpoint)
            gone = connection.execute(
                permissions.delete().where(permissions.c.checkpoint == checkpoint, permissions.c.id == permission_id)
            )
            if not gone.rowcount:
                raise missing("permission", permission_id)

    def _require_own(self, connection: sa.Connection, project: str, name: str) -> None:
        of_model = sa.exists().where(models.c.id == name, models.c.project_id == project)
        of_checkpoint = sa.exists().where(
            checkpoints.c.name == name, checkpoints.c.job_id == jobs.c.id, jobs.c.project_id == project
        )
        if not connection.scalar(sa.select(of_model | of_checkpoint)):
            raise missing("model", name)

    def _tell(self, connection: sa.Connection, job_id: str, told: Sequence[Told]) -> None:
        for one in told:
            values = {"job_id": job_id, "key": one.key, "level": one.level, "type": one.type, "message": one.message}
            insert_new(connection, events, {"id": new_id(EVENT), "created_at": now(), "data": one.data, **values})


def _has_metadata(key: str, value: str, dialect: sa.Dialect) -> sa.ColumnElement[bool]:
    """Whether a job has an entry; the key is compared, and never part of a JSON path, which has no way to quote it."""
    each = sa.func.json_each_text if dialect.name == "postgresql" else sa.func.json_each
    entry = each(jobs.c.asked["metadata"]).table_valued("key", "value")
    return sa.exists(sa.select(entry.c.key).where(entry.c.key == key, entry.c.value == value).correlate(jobs))


def _job(connection: sa.Connection, project: str, job_id: str) -> Row:
    query = sa.select(jobs).where(jobs.c.project_id == project, jobs.c.id == job_id)
    row = connection.execute(query).mappings().first()
    if row is None:
        raise missing("fine_tuning_job", job_id)
    return row


def _before(connection: sa.Connection, project: str, key: str, digest: str) -> str | None:
    query = sa.select(requests).where(requests.c.project_id == project, requests.c.idempotency_key == key)
    row = connection.execute(query).mappings().first()
    if row is None:
        return None
    if row["sha256"] != digest:
        raise ApiError(
            "This Idempotency-Key was used for another request; take a new key.",
            status=409,
            code="idempotency_key_reused",
        )
    return str(row["object_id"])


def _usable(project: str) -> sa.Select[Any]:
    """Models that a project trained or was granted, and the method of each; none for the API's usual one."""
    granted = sa.select(permissions.c.checkpoint).where(permissions.c.project_id == project)
    query = sa.select(models, jobs.c.asked["method"]["type"].as_string().label("method"))
    query = query.join(jobs, jobs.c.id == models.c.job_id)
    return query.where((models.c.project_id == project) | models.c.id.in_(granted))
