"""Jobs as a list for people: searched, by status, and a page at a time, whatever their number."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa

from luthier.jobs.database import Database, Row, events, jobs
from luthier.jobs.job_store import MOVES
from luthier.report.build import build_training
from luthier.report.folder import Metrics
from luthier.report.schema import Training

ROWS = 50
"""Of a page."""
LATEST_EVENTS = 200
LONGEST_SEARCH = 200
STATUSES = tuple(MOVES)
FIGURES = {
    "accuracy": "Pairs told right",
    "validation_accuracy": "Pairs told right, validation",
    "train_mean_reward": "Mean reward",
    "full_valid_mean_reward": "Mean reward, validation",
}
"""Of a step, as events have them."""


@dataclass(frozen=True)
class Listed:
    """A page of jobs."""

    rows: Sequence[Row]
    found: int
    """On all pages."""
    counts: Mapping[str, int]
    """Of the project, by status."""
    page: int
    """From 1 on."""

    @property
    def pages(self) -> int:
        """How many there are."""
        return max(1, -(-self.found // ROWS))


class JobList:
    """Looks jobs up in the database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def page(self, project: str, search: str, status: str, page: int) -> Listed:
        """Jobs of a project, the newest first, whose id, model or name has the words that are searched for."""
        wanted = [jobs.c.project_id == project]
        if status in STATUSES:
            wanted.append(jobs.c.status == status)
        shown = sa.func.lower(
            jobs.c.id
            + " "
            + sa.func.coalesce(jobs.c.fine_tuned_model, "")
            + " "
            + sa.func.coalesce(jobs.c.asked["model"].as_string(), "")
            + " "
            + sa.func.coalesce(jobs.c.asked["suffix"].as_string(), "")
        )
        wanted += [shown.contains(word, autoescape=True) for word in search[:LONGEST_SEARCH].lower().split()]
        count = sa.select(jobs.c.status, sa.func.count()).where(jobs.c.project_id == project).group_by(jobs.c.status)
        with self._database.reading() as connection:
            found = connection.scalar(sa.select(sa.func.count()).select_from(jobs).where(*wanted)) or 0
            page = min(max(page, 1), max(1, -(-found // ROWS)))
            query = sa.select(jobs).where(*wanted).order_by(jobs.c.seq.desc()).limit(ROWS).offset((page - 1) * ROWS)
            rows = connection.execute(query).mappings().all()
            counts = {status: number for status, number in connection.execute(count)}
        return Listed(rows, found, counts, page)

    def latest(self, job_id: str) -> Sequence[Row]:
        """What a job told last, the newest first."""
        query = sa.select(events).where(events.c.job_id == job_id).order_by(events.c.seq.desc()).limit(LATEST_EVENTS)
        with self._database.reading() as connection:
            return connection.execute(query).mappings().all()

    def training(self, job_id: str) -> "Progress":
        """How far a job is."""
        query = sa.select(events.c.data).where(events.c.job_id == job_id, events.c.type == "metrics")
        with self._database.reading() as connection:
            steps = sorted(connection.scalars(query), key=lambda one: int(one["step"]))
        if not steps:
            return Progress()
        metrics = Metrics(
            {one["step"]: one["train_loss"] for one in steps},
            {one["step"]: one["full_valid_loss"] for one in steps if "full_valid_loss" in one},
            sum(one.get("seconds", 0.0) for one in steps),
            0.0,
            sum(one.get("tokens", 0) for one in steps),
            sum(one.get("trained_tokens", 0) for one in steps),
        )
        latest: dict[str, float] = {}
        for one in steps:
            latest |= {shown: one[name] for name, shown in FIGURES.items() if name in one}
        return Progress(build_training(None, metrics), steps[-1]["total_steps"], latest)


@dataclass(frozen=True)
class Progress:
    """What a job's steps say by now."""

    training: Training | None = None
    """Its losses, as the report draws them."""
    total: int | None = None
    """Steps that it will take."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """The latest of what methods other than the usual one measure, by the words that people read."""
