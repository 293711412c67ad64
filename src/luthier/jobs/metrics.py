"""Figures of the service for Prometheus: requests by route and their time, jobs by status, the supervisor's pulse."""

import time
from collections.abc import Iterator

import sqlalchemy as sa
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from luthier.jobs.database import Database, files, jobs
from luthier.jobs.job_store import MOVES
from luthier.jobs.supervisor import Supervisor

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0)


class Metrics:
    """The figures of one service; a registry of its own, so that two in a process do not mix."""

    def __init__(self, database: Database, supervisor: Supervisor) -> None:
        self._registry = CollectorRegistry()
        labels = ("method", "route", "status")
        self._requests = Counter("luthier_requests", "Requests answered.", labels, registry=self._registry)
        self._seconds = Histogram(
            "luthier_request_seconds",
            "How long an answer took.",
            ("method", "route"),
            buckets=BUCKETS,
            registry=self._registry,
        )
        self._registry.register(_State(database, supervisor))

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request; `route` is a pattern, never what a client wrote."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    def text(self) -> bytes:
        """All figures, as Prometheus reads them."""
        return generate_latest(self._registry)


class _State(Collector):
    """What the database holds, looked up when it is asked for."""

    def __init__(self, database: Database, supervisor: Supervisor) -> None:
        self._database, self._supervisor = database, supervisor

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Jobs by status, bytes of files, seconds since the supervisor went round."""
        with self._database.reading() as connection:
            count = sa.select(jobs.c.status, sa.func.count()).group_by(jobs.c.status)
            found = {status: number for status, number in connection.execute(count)}
            kept = connection.scalar(sa.select(sa.func.coalesce(sa.func.sum(files.c.bytes), 0)))
        by_status = GaugeMetricFamily("luthier_jobs", "Jobs by status.", labels=["status"])
        for status in MOVES:
            by_status.add_metric([status], found.get(status, 0))
        yield by_status
        yield GaugeMetricFamily("luthier_file_bytes", "Bytes of all files.", value=float(kept or 0))
        age = time.monotonic() - self._supervisor.alive_at
        yield GaugeMetricFamily("luthier_supervisor_idle_seconds", "Since the supervisor last went round.", value=age)
