"""The queue: validates the files of new jobs, starts a process for each that may run, and tells what it does.

    validating_files -> queued -> running -> succeeded | failed | cancelled, and paused between

All that is true stands in the database and in the folders of jobs. A supervisor that is killed takes its processes with
it; the next one finds jobs that were running, puts them back into the queue, and their processes go on from the last
checkpoint. Events of a step come from the run's own log and have the step as their key, so reading it again from the
beginning adds what is missing and nothing else.
"""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from luthier.errors import LuthierError
from luthier.jobs.blobs import Blobs
from luthier.jobs.database import Row, now
from luthier.jobs.environment import child_environment
from luthier.jobs.file_store import RESULTS, FileStore
from luthier.jobs.ids import FILE, JOB
from luthier.jobs.job_folder import DONE, ENDED, LOG, REFUSED, RUN, STOPPED, TRAIN, VALIDATION, kept_steps
from luthier.jobs.job_store import JobStore, Told
from luthier.jobs.private import private_file, private_folder
from luthier.jobs.results import as_csv, checkpoint_metrics, metrics_data, step_message
from luthier.jobs.traces import tell_attempt
from luthier.jobs.translate import write_recipe
from luthier.serve.api_error import ApiError
from luthier.serve.failures import place_of

_logger = logging.getLogger("luthier.jobs")
TICK_SECONDS = 0.5
PROGRAM = "luthier.cli.job_process"
PATIENCE_SECONDS = 120.0
"""How long a process that was told to stop may finish its step and save."""
OWNER = "luthier"
"""The middle part of the names of models, as `ft:BASE:OWNER:SUFFIX:ID`."""
DEATHS, MOST_DEATHS = "deaths.json", 5
"""A process that dies so often without a further checkpoint is not started again."""
SWEEP_SECONDS = 60.0


@dataclass(frozen=True)
class Limits:
    """What jobs may take."""

    at_once: int = 1
    """Jobs that train at the same time."""
    seconds: float = 7 * 86_400.0
    """Longest time of one job."""
    free_bytes: int = 2 * 2**30
    """Left free on the disk, or no job is started."""


@dataclass
class _Log:
    """How far a run's log was read."""

    inode: int = 0
    """A process that goes on writes the log anew, without the steps that it will do again."""
    offset: int = 0
    """Bytes."""
    steps: list[dict[str, Any]] = field(default_factory=list)
    kept: tuple[int, ...] | None = None
    """The steps that the database has as checkpoints; None: it was not looked."""


@dataclass
class _Child:
    """One process at work."""

    process: "subprocess.Popen[bytes]"
    started: float
    attempt: int
    began: int = field(default_factory=time.time_ns)
    told_at: float | None = None
    """When it was told to stop."""
    log: _Log = field(default_factory=_Log)


class Supervisor:
    """Drives all jobs.

    Args:
        store: of jobs.
        files: of files.
        blobs: where their bytes lie.
        folder: in which every job has a folder of its own.
        limits: of jobs.
    """

    def __init__(self, store: JobStore, files: FileStore, blobs: Blobs, folder: Path, limits: Limits) -> None:
        self._store, self._files, self._blobs = store, files, blobs
        self._folder, self._limits = folder, limits
        self._children: dict[str, _Child] = {}
        self._preparing: dict[str, Future[None]] = {}
        self._preparer = ThreadPoolExecutor(1, "prepare")
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._swept = 0.0
        self.alive_at = time.monotonic()
        """When it last went round."""
        private_folder(folder)

    def start(self) -> None:
        """Take up what was left, and go round in a thread."""
        self._blobs.forget_unfinished()
        self._recover()
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Let every process finish its step and save, and put its job back into the queue."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def tick(self) -> None:
        """Go round once."""
        with self._lock:
            self.alive_at = time.monotonic()
            if time.monotonic() - self._swept > SWEEP_SECONDS:
                self._swept = time.monotonic()
                self._files.sweep()
            for row in self._store.in_status("validating_files"):
                if row["id"] not in self._preparing:  # a large file takes a minute, and nothing else waits for it
                    self._preparing[row["id"]] = self._preparer.submit(self._prepare, row)
            for job_id, future in list(self._preparing.items()):
                if future.done():
                    del self._preparing[job_id]
                    future.result()
            running = {row["id"]: row for row in self._store.in_status("running")}
            for job_id, child in list(self._children.items()):
                self._look_after(job_id, child, running.get(job_id))
            free = self._limits.at_once - len(self._children)
            queued = self._store.in_status("queued") if free > 0 else []
            for row in [row for row in queued if row["id"] not in self._children][: max(free, 0)]:
                self._begin(row)

    def folder_of(self, row: Row) -> Path:
        """A job's folder; its name is an id that the service made."""
        return self._folder / str(row["id"])

    def _run(self) -> None:
        while not self._stop.wait(TICK_SECONDS):
            try:
                self.tick()
            except (LuthierError, SQLAlchemyError, OSError, ValueError, KeyError) as error:
                # one job's trouble is not every job's; the next round tries again. Its message may quote a row
                _logger.error("supervisor: %s in %s", type(error).__name__, place_of(error))
        self._end_all()

    def _end_all(self) -> None:
        """In the thread that started the processes: the kernel ends them when that thread ends."""
        self._preparer.shutdown(cancel_futures=True)
        with self._lock:
            for child in self._children.values():
                child.process.send_signal(signal.SIGTERM)
            running = {row["id"]: row for row in self._store.in_status("running")}
            for job_id, child in self._children.items():
                with suppress(subprocess.TimeoutExpired):
                    child.process.wait(PATIENCE_SECONDS)
                child.process.kill()
                child.process.wait()
                _trace(job_id, child)
                if job_id in running:
                    self._settle(running[job_id], child)
            self._children.clear()

    def _recover(self) -> None:
        for row in self._store.in_status("running"):
            self._read_log(row, _Log())
            told = Told(f"restart {row['attempts']}", "The server was started again; the job goes on.", "warn")
            self._store.move(row["id"], "queued", [told])

    def _prepare(self, row: Row) -> None:
        """Give the job copies of its files and a recipe."""
        folder = self.folder_of(row)
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(mode=0o700)
            for name, file_id in ((TRAIN, row["training_file"]), (VALIDATION, row["validation_file"])):
                if file_id is not None:
                    digest = self._files.get(row["project_id"], file_id)["sha256"]
                    os.link(self._blobs.path(digest), folder / name)
            picked = write_recipe(folder, row["base"], row["asked"], row["seed"])
        except (LuthierError, ApiError, OSError) as error:
            self._fail(row, "invalid_training_file", _shown(error, row, folder), "training_file")
            return
        told = [Told("validated", "Files validated, moving job to queued state")]
        if row["validation_file"] is None:
            told.append(
                Told("held out", "A share of the training file is held out to choose the best checkpoint.", "info")
            )
        with suppress(ApiError):  # it was cancelled meanwhile
            self._store.move(row["id"], "queued", told, ("validating_files",), picked=picked.dump())

    def _begin(self, row: Row) -> None:
        if shutil.disk_usage(self._folder).free < self._limits.free_bytes:
            self._store.note(row["id"], [Told("no room", "The disk is nearly full; the job waits.", "warn")])
            return
        folder = self.folder_of(row)
        (folder / ENDED).unlink(missing_ok=True)
        attempt = row["attempts"] + 1
        told = Told(f"started {attempt}", "Fine-tuning job started" if attempt == 1 else "The job goes on")
        try:
            self._store.move(
                row["id"], "running", [told], ("queued",), attempts=attempt, started_at=row["started_at"] or now()
            )
        except ApiError:  # it was cancelled meanwhile
            return
        with private_file(folder / LOG, "ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", PROGRAM, str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=child_environment({}),
                start_new_session=True,
            )
        self._children[row["id"]] = _Child(process, time.monotonic(), attempt)

    def _look_after(self, job_id: str, child: _Child, row: Row | None) -> None:
        ended = child.process.poll() is not None
        if row is not None:
            self._read_log(row, child.log)
            if not ended and time.monotonic() - child.started > self._limits.seconds:
                self._fail(row, "time_limit", f"The job ran longer than {self._limits.seconds:,.0f} seconds.", None)
                row = None
        if ended:
            del self._children[job_id]
            _trace(job_id, child)
            if row is not None:
                self._settle(row, child)
        elif row is None:  # cancelled or paused
            self._tell_to_stop(child)

    def _tell_to_stop(self, child: _Child) -> None:
        if child.told_at is None:
            child.told_at = time.monotonic()
            child.process.send_signal(signal.SIGTERM)
        elif time.monotonic() - child.told_at > PATIENCE_SECONDS:
            child.process.kill()

    def _settle(self, row: Row, child: _Child) -> None:
        """What the end of its process means for a job that was to go on."""
        code, folder = child.process.returncode, self.folder_of(row)
        self._read_log(row, child.log)
        if code == DONE:
            self._succeed(row, child)
        elif code == STOPPED:
            self._store.move(
                row["id"], "queued", [Told(f"stopped {row['attempts']}", "The job was stopped and saved.")]
            )
        elif code == REFUSED:
            error = _read(folder / ENDED) or {}
            kind = "invalid_training_file" if error.get("kind") in ("DataError", "TemplateError") else "training_failed"
            self._fail(row, kind, _without(error.get("message", "the training failed"), row, folder), None)
        else:
            self._bury(row, code)

    def _bury(self, row: Row, code: int) -> None:
        """A process that was killed, by the kernel for its memory perhaps: once more, unless that leads nowhere."""
        deaths = _count_death(self.folder_of(row))
        if deaths >= MOST_DEATHS:
            message = f"The training process died {deaths} times ({code}) without a further checkpoint."
            self._fail(row, "process_died", message, None)
            return
        told = Told(f"died {row['attempts']}", f"The training process died ({code}); the job goes on.", "warn")
        self._store.move(row["id"], "queued", [told])

    def _succeed(self, row: Row, child: _Child) -> None:
        folder = self.folder_of(row)
        training = _read(folder / RUN / "training.json") or {}
        name = model_name(row)
        with self._blobs.writer(self._files.quota.file_bytes) as writer:
            writer.write(as_csv(child.log.steps).encode())
            size, digest = writer.bytes, writer.finish()
        # an id that is the same when all of this is done once more
        file_id = FILE + row["id"].removeprefix(JOB)
        self._files.keep(row["project_id"], f"step_metrics_{row['id']}.csv", RESULTS, digest, size, file_id=file_id)
        self._store.add_model(row, name, str(folder / RUN))
        told = [
            Told("model", f"New fine-tuned model created: {name}"),
            Told("succeeded", "The job has successfully completed"),
        ]
        self._store.move(
            row["id"],
            "succeeded",
            told,
            ("running",),
            fine_tuned_model=name,
            trained_tokens=training.get("trained_tokens"),
            result_files=[file_id],
        )

    def _fail(self, row: Row, code: str, message: str, param: str | None) -> None:
        error = {"code": code, "message": message, "param": param}
        with suppress(ApiError):  # it was cancelled meanwhile
            told = Told("failed", f"The job failed: {message}", "error")
            self._store.move(row["id"], "failed", [told], error=error)

    def _read_log(self, row: Row, log: _Log) -> None:
        """Turn new whole lines of the run's log into events, and kept steps into checkpoints."""
        run = self.folder_of(row) / RUN
        path = run / "metrics.jsonl"
        if not path.is_file():
            return
        with path.open("rb") as file:
            inode = os.fstat(file.fileno()).st_ino
            if inode != log.inode:
                log.inode, log.offset, log.steps, log.kept = inode, 0, [], None
            file.seek(log.offset)
            lines = [line for line in file.readlines() if line.endswith(b"\n")]
        if not lines:
            return
        log.offset += sum(map(len, lines))
        total = (_read(run / "manifest.json") or {}).get("planned_steps")
        steps = [json.loads(line) for line in lines]
        log.steps += steps
        told = [
            Told(f"step {one['step']}", step_message(one, total), "info", "metrics", metrics_data(one, total))
            for one in steps
        ]
        self._store.note(row["id"], told, estimated_finish=_estimate(log.steps, total))
        self._read_kept(row, run, log)

    def _read_kept(self, row: Row, run: Path, log: _Log) -> None:
        kept = kept_steps(run)
        if tuple(kept) == log.kept:
            return
        for one in log.steps:
            if one["step"] in kept:
                name = f"{model_name(row)}:ckpt-step-{one['step']}"
                self._store.add_checkpoint(row, one["step"], name, checkpoint_metrics(one))
                self._store.add_model(row, name, str(kept[one["step"]]))
        self._store.drop_checkpoints(row["id"], list(kept))
        logged = {one["step"] for one in log.steps}
        log.kept = tuple(kept) if logged.issuperset(kept) else None  # a step is kept before its line is whole


def model_name(row: Row) -> str:
    """`ft:BASE:OWNER:SUFFIX:ID`, as OpenAI's clients expect it."""
    suffix = row["asked"].get("suffix") or ""
    return f"ft:{row['asked']['model']}:{OWNER}:{suffix}:{row['id'][-8:]}"


def _trace(job_id: str, child: _Child) -> None:
    code = child.process.returncode
    tell_attempt(job_id, child.attempt, child.began, code, fine=code in (DONE, STOPPED))


def _estimate(steps: list[dict[str, Any]], total: int | None) -> int | None:
    """When the last step will be done, at the pace of the latest ones."""
    if not total or not steps:
        return None
    latest = steps[-20:]
    pace = sum(one["seconds"] for one in latest) / len(latest)
    return now() + round(float(pace) * max(total - int(steps[-1]["step"]), 0))


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _newest(folder: Path) -> int:
    return max((int(place.name[5:]) for place in folder.glob("run/checkpoints/step-*")), default=0)


def _count_death(folder: Path) -> int:
    """How often the process died since the newest checkpoint, this time included; restarts of the server are none."""
    before, newest = _read(folder / DEATHS) or {}, _newest(folder)
    count = 1 + (int(before.get("count", 0)) if before.get("step") == newest else 0)
    (folder / DEATHS).write_text(json.dumps({"step": newest, "count": count}), encoding="utf-8")
    return count


def _shown(error: Exception, row: Row, folder: Path) -> str:
    """An error without paths of this machine."""
    return _without(error.message if isinstance(error, ApiError) else str(error), row, folder)


def _without(text: str, row: Row, folder: Path) -> str:
    places = {str(folder), str(folder.resolve())}
    if os.sep in row["base"]:  # a model of this machine, by the path that only the operator knows
        text = text.replace(row["base"], row["asked"]["model"])
    for place in places:
        text = text.replace(f"{place}/", "").replace(place, "the job's folder")
    return text
