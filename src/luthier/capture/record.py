"""What becomes of an exchange, off the path of the traffic: a row, redacted and written, or a count of why not.

A process of its own makes the rows, and a thread writes them, behind a queue that never waits: where it is full, the
row is lost and told of, and the client notices nothing. In the proxy's own process the search for personal data would
hold up every answer that passes meanwhile.
"""

import datetime
import json
import logging
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256

from prometheus_client import CollectorRegistry, Counter as Count, Gauge, generate_latest

from luthier.capture.redact import Redactor
from luthier.capture.rows import Exchange, NoRow, row_of
from luthier.capture.store import DayFiles, FullError
from luthier.serve.failures import FAILURES, place_of

log = logging.getLogger("luthier.capture")
WAITING = 1000
"""Exchanges that wait to be written."""
WRITTEN_AT_ONCE = 100
TIDY_SECONDS = 600.0
"""Longest time between two looks for what is too old."""
TELL_SECONDS = 60.0
"""A failure is told at most so often; the metric counts all of them."""


def is_sampled(request_id: str, share: float) -> bool:
    """Whether a request is among the share that is kept: its id alone decides, wherever and whenever it is asked."""
    return int.from_bytes(sha256(request_id.encode("utf-8", "surrogatepass")).digest()[:8], "big") < share * 2**64


@dataclass(frozen=True)
class Made:
    """What came of one exchange: a line, or why there is none."""

    line: bytes = b""
    outcome: str = ""
    failure: str = ""
    redacted: Mapping[str, int] = field(default_factory=dict)


def make_lines(redactor: Redactor, exchanges: Sequence[Exchange]) -> list[Made]:
    """The rows of exchanges, redacted, as they are written."""
    return [_made(redactor, exchange) for exchange in exchanges]


def _made(redactor: Redactor, exchange: Exchange) -> Made:
    redacted: Counter[str] = Counter()
    try:
        row = row_of(exchange)
        for part in ("messages", "tools"):
            if part in row:
                row[part], found = redactor.row(row[part])
                redacted += found
        line = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")
    except NoRow as reason:
        return Made(outcome=str(reason))
    except FAILURES as error:  # its message may quote what was sent
        return Made(failure=f"a row cannot be made: {type(error).__name__} in {place_of(error)}")
    return Made(line, redacted=dict(redacted))


def _pool() -> ProcessPoolExecutor:
    """One process that steps back where the machine is busy; it is started with the first row."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_step_back)


def _step_back() -> None:
    os.nice(10)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C reaches it, too, and what waits is written first


class Recorder:
    """Takes exchanges and writes rows until it is closed."""

    def __init__(self, files: DayFiles, redactor: Redactor) -> None:
        self._files, self._redactor = files, redactor
        self._queue: queue.Queue[Exchange | None] = queue.Queue(WAITING)
        self._registry = CollectorRegistry()
        self._outcomes = Count(
            "luthier_capture_requests", "Chat requests, by what was kept.", ("outcome",), registry=self._registry
        )
        self._redacted = Count(
            "luthier_capture_redacted", "Values replaced, by kind.", ("kind",), registry=self._registry
        )
        self._bytes = Gauge("luthier_capture_bytes", "Bytes of all files.", registry=self._registry)
        self.counts: Counter[str] = Counter()
        """By outcome, as the metric has them."""
        self._told: dict[str, float] = {}
        self._pool = _pool()
        self._thread = threading.Thread(target=self._work, name="capture", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._pool.submit(make_lines, self._redactor, ())  # the process is there before the first row
        self._thread.start()

    def close(self) -> None:
        """Write what waits, and end."""
        self._queue.put(None)
        self._thread.join()
        self._pool.shutdown()
        self._files.close()

    def count(self, outcome: str, number: int = 1) -> None:
        """Count requests of which nothing is kept, or a row."""
        self.counts[outcome] += number
        self._outcomes.labels(outcome).inc(number)

    def offer(self, exchange: Exchange) -> None:
        """Let an exchange be recorded; returns at once."""
        try:
            self._queue.put_nowait(exchange)
        except queue.Full:
            self._fail("the disk is slower than the traffic, so a row was lost")

    def metrics(self) -> bytes:
        """For Prometheus."""
        return generate_latest(self._registry)

    def _work(self) -> None:
        is_open = True
        while is_open:
            try:
                batch = [self._queue.get(timeout=TIDY_SECONDS)]
            except queue.Empty:
                batch = []
            while len(batch) < WRITTEN_AT_ONCE and not self._queue.empty():
                batch.append(self._queue.get())
            is_open = None not in batch
            exchanges = [one for one in batch if one is not None]
            self._write(self._lines(exchanges) if exchanges else [])

    def _lines(self, exchanges: Sequence[Exchange]) -> list[bytes]:
        """The rows of exchanges as they are written; what makes none is counted."""
        try:
            made = self._pool.submit(make_lines, self._redactor, exchanges).result()
        except BrokenExecutor:
            self._fail("the process that makes rows was ended; a new one is started", len(exchanges))
            self._pool = _pool()
            return []
        for one in made:
            for kind, number in one.redacted.items():
                self._redacted.labels(kind).inc(number)
            if one.failure:
                self._fail(one.failure)
            elif one.outcome:
                self.count(one.outcome)
        return [one.line for one in made if one.line]

    def _write(self, lines: list[bytes]) -> None:
        today = datetime.datetime.now(datetime.UTC).date()
        try:
            if lines:
                self._files.append(lines, today)
            else:
                self._files.tidy(today)
            self._bytes.set(self._files.size())
        except FullError:
            self._fail("today's rows alone are as many as --keep-bytes allows; nothing more is kept today", len(lines))
        except OSError as error:
            self._fail(f"cannot be written: {error.strerror or error}", len(lines))
        else:
            if lines:
                self.count("recorded", len(lines))

    def _fail(self, why: str, rows: int = 1) -> None:
        """Count and tell it; a clause that was told a moment ago is only counted."""
        if rows:
            self.count("failed", rows)
        now = time.monotonic()
        if now - self._told.get(why, -TELL_SECONDS) >= TELL_SECONDS:
            self._told[why] = now
            log.error("not recorded: %s", why)
