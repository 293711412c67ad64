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
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from luthier.errors import LuthierError
from luthier.jobs import tracking
from luthier.jobs.blobs import Blobs
from luthier.jobs.database import Row, now
from luthier.jobs.disk import Disk
from luthier.jobs.environment import WANDB, child_environment, start_child, training_threads
from luthier.jobs.file_store import RESULTS, FileStore
from luthier.jobs.ids import FILE, JOB
from luthier.jobs.job_folder import (
    ADAPTER,
    DONE,
    ENDED,
    LOG,
    NO_ROOM,
    REFUSED,
    RUN,
    START,
    STOPPED,
    TRAIN,
    VALIDATION,
    kept_steps,
    sweep,
)
from luthier.jobs.job_store import JobStore, Told
from luthier.jobs.model_names import checkpoint_name, is_tuned, model_name
from luthier.jobs.private import private_folder
from luthier.jobs.results import as_csv, checkpoint_metrics, metrics_data, step_message
from luthier.jobs.room import Beside, Claim, gib, too_large
from luthier.jobs.traces import tell_attempt
from luthier.jobs.translate import write_recipe
from luthier.serve.api_error import ApiError
from luthier.serve.failures import place_of

_logger = logging.getLogger("luthier.jobs")
TICK_SECONDS = 0.5
PROGRAM = "luthier.cli.job_process"
PATIENCE_SECONDS = 120.0
"""How long a process that was told to stop may finish its step and save."""
AGAIN_SECONDS = 30.0
"""Wait of a job whose process found no room, though its claim said that there is some."""
DEATHS, MOST_DEATHS = "deaths.json", 5
"""A process that dies so often without a further checkpoint is not started again."""
SWEEP_SECONDS = 60.0
FILE_CODE = "invalid_training_file"
CODES = {"DataError": FILE_CODE, "TemplateError": FILE_CODE, "TooLarge": "insufficient_memory"}
"""Of a failed job, by the error that ended it."""


@dataclass(frozen=True)
class Limits:
    """What jobs may take."""

    at_once: int = 1
    """Jobs that train at the same time, if memory lets them."""
    seconds: float = 7 * 86_400.0
    """Longest time of one job: that of its process, and of all steps that earlier ones did."""
    memory_bytes: int = sys.maxsize
    """Of the machine's memory, for all jobs together."""


@dataclass
class _Log:
    """How far a run's log was read."""

    inode: int = 0
    """A process that goes on writes the log anew, without the steps that it will do again."""
    offset: int = 0
    """Bytes."""
    steps: list[dict[str, Any]] = field(default_factory=list)
    tracked: bool = False
    """Whether the trackers' runs have been told of."""
    kept: tuple[int, ...] | None = None
    """The steps that the database has as checkpoints; None: it was not looked."""


@dataclass
class _Child:
    """One process at work."""

    process: "subprocess.Popen[bytes]"
    started: float
    """By the clock, less the seconds of steps that earlier processes did."""
    claim: Claim | None
    """The memory that it takes; None: it is not told yet."""
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
        disk: on which all of it lies.
        folder: in which every job has a folder of its own.
        limits: of jobs.
        made: told of each model that a job made, as `JobStore.model` has it.
    """

    def __init__(
        self,
        store: JobStore,
        files: FileStore,
        blobs: Blobs,
        disk: Disk,
        folder: Path,
        limits: Limits,
        made: Callable[[Row], None] = lambda _: None,
    ) -> None:
        self._made = made
        self._store, self._files, self._blobs, self._disk = store, files, blobs, disk
        self.folder, self.limits = folder, limits
        self._children: dict[str, _Child] = {}
        self._preparing: dict[str, Future[None]] = {}
        self._preparer = ThreadPoolExecutor(1, "prepare")
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._swept = 0.0
        self._not_before: dict[str, float] = {}
        """When a job may be begun that just found no room."""
        self._waits_for: dict[str, str] = {}
        """What a job was told that it waits for."""
        self.alive_at = time.monotonic()
        """When it last went round."""
        private_folder(folder)

    def start(self) -> None:
        """Take up what was left, and go round in a thread."""
        self._blobs.forget_unfinished()
        sweep(self.folder, self._store.places())
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
            if len(self._children) < self.limits.at_once:
                self._begin_next()

    def folder_of(self, row: Row) -> Path:
        """A job's folder; its name is an id that the service made."""
        return self.folder / str(row["id"])

    def _within(self, place: Path) -> str:
        """A place below the folder of all jobs, which may be moved."""
        return str(place.relative_to(self.folder))

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
        if self._children:
            _logger.warning("stopping: %d job(s) finish their step and save", len(self._children))
        for child in self._children.values():
            if child.told_at is None:  # a second signal means "at once"
                child.process.send_signal(signal.SIGTERM)
        self._preparer.shutdown(cancel_futures=True)
        with self._lock:
            until = time.monotonic() + PATIENCE_SECONDS
            running = {row["id"]: row for row in self._store.in_status("running")}
            for job_id, child in self._children.items():
                with suppress(subprocess.TimeoutExpired):
                    child.process.wait(max(until - time.monotonic(), 0.0))
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
        """Give the job copies of its files, of the model that it goes on from, and a recipe."""
        folder = self.folder_of(row)
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(mode=0o700)
            if is_tuned(row["asked"]["model"]) and not self._link_start(row, folder):
                return
            for name, file_id in ((TRAIN, row["training_file"]), (VALIDATION, row["validation_file"])):
                if file_id is not None:
                    digest = self._files.get(row["project_id"], file_id)["sha256"]
                    os.link(self._blobs.path(digest), folder / name)
            picked = write_recipe(folder, row["base"], row["asked"], row["seed"])
        except (LuthierError, ApiError, OSError) as error:
            code = FILE_CODE if isinstance(error, ApiError) else CODES.get(type(error).__name__, "training_failed")
            param = "training_file" if code == FILE_CODE else None
            self._fail(row, code, _shown(error, row, folder), param)
            return
        told = [Told("validated", "Files validated, moving job to queued state")]
        if row["validation_file"] is None:
            told.append(
                Told("held out", "A share of the training file is held out to choose the best checkpoint.", "info")
            )
        with suppress(ApiError):  # it was cancelled meanwhile
            self._store.move(row["id"], "queued", told, ("validating_files",), picked=picked.dump())

    def _link_start(self, row: Row, folder: Path) -> bool:
        """Give the job the artifact of the model that it goes on from; fails the job if that was deleted meanwhile."""
        name = row["asked"]["model"]
        model = self._store.model(row["project_id"], name)
        try:
            if model is not None:
                # links, so that whatever becomes of the other job's files, this one's stay
                shutil.copytree(
                    self.folder / model["folder"] / ADAPTER, folder / START / ADAPTER, copy_function=os.link
                )
                return True
        except (shutil.Error, FileNotFoundError):  # a checkpoint that was thinned out
            pass
        self._fail(row, "model_not_available", f"The model {name!r} was deleted before the job began.", "model")
        return False

    def _begin_next(self) -> None:
        queued = [row for row in self._store.in_status("queued") if row["id"] not in self._children]
        for row in queued:
            if len(self._children) >= self.limits.at_once or not self._has_room(row):
                return  # nobody overtakes, or a large job would wait for ever
            self._begin(row)

    def _has_room(self, row: Row) -> bool:
        """Whether a job may be begun now; a job that waits is told why, once an attempt."""
        if self._disk.is_full():
            self._wait(row, "disk", "The disk is nearly full; the job waits.")
            return False
        if time.monotonic() < self._not_before.get(row["id"], 0.0):
            return False
        claim = Claim.read(self.folder_of(row))
        for folder, child in ((self.folder / job_id, child) for job_id, child in self._children.items()):
            if child.claim is None or child.claim.is_least:
                child.claim = Claim.read(folder)
            if child.claim is None or child.claim.is_least:
                return False  # in some seconds it is known what this one takes
        beside = self._beside()
        if claim is not None and claim.needed > beside.total(claim):  # there was more when it was last tried
            self._fail(row, "insufficient_memory", too_large(claim, beside.total(claim)), None)
            return False
        if not beside.takes(claim):
            needed, free = "" if claim is None else f" {gib(claim.needed)} of", gib(max(beside.left(claim), 0))
            self._wait(row, "memory", f"The job needs{needed} memory, and {free} are free beside others; it waits.")
            return False
        return True

    def _beside(self) -> Beside:
        children = self._children.values()
        claims = [child.claim for child in children if child.claim is not None]
        return Beside.of((child.process.pid for child in children), claims, self.limits.memory_bytes)

    def _wait(self, row: Row, what: str, why: str) -> None:
        if self._waits_for.get(row["id"]) != what:
            self._store.note(row["id"], [Told(f"waits for {what} {row['attempts']}", why, "warn")])
            self._waits_for[row["id"]] = what

    def _begin(self, row: Row) -> None:
        folder = self.folder_of(row)
        self._not_before.pop(row["id"], None)
        self._waits_for.pop(row["id"], None)
        (folder / ENDED).unlink(missing_ok=True)
        self._beside().write(folder)
        attempt = row["attempts"] + 1
        told = Told(f"started {attempt}", "Fine-tuning job started" if attempt == 1 else "The job goes on")
        try:
            self._store.move(
                row["id"], "running", [told], ("queued",), attempts=attempt, started_at=row["started_at"] or now()
            )
        except ApiError:  # it was cancelled meanwhile
            return
        log = _Log()
        self._read_log(row, log)
        also = WANDB if row["asked"].get("integrations") else ()
        environment = child_environment(training_threads(self.limits.at_once), also)
        process = start_child(PROGRAM, [str(folder)], folder / LOG, environment, own_session=True)
        spent = sum(float(one["seconds"]) for one in log.steps)
        self._children[row["id"]] = _Child(process, time.monotonic() - spent, Claim.read(folder), attempt, log=log)

    def _look_after(self, job_id: str, child: _Child, row: Row | None) -> None:
        ended = child.process.poll() is not None
        if row is not None:
            self._read_log(row, child.log)
            if not ended and time.monotonic() - child.started > self.limits.seconds:
                hours = self.limits.seconds / 3600
                self._fail(row, "time_limit", f"The job ran longer than {hours:,.4g} hours.", None)
                row = None
        if ended:
            if row is not None:
                self._settle(row, child)  # if the database or the disk refuses, the next round does it
            _trace(job_id, child)
            del self._children[job_id]
            if child.process.returncode != NO_ROOM:
                self._not_before.clear()  # it left its room to others
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
        elif code in (STOPPED, -signal.SIGTERM):  # or before its process could take the signal
            self._store.move(
                row["id"], "queued", [Told(f"stopped {row['attempts']}", "The job was stopped and saved.")]
            )
        elif code == NO_ROOM:
            self._not_before[row["id"]] = time.monotonic() + AGAIN_SECONDS
            told = Told(f"no room {row['attempts']}", "There is too little memory beside other jobs; the job waits.")
            self._store.move(row["id"], "queued", [told])
        elif code == REFUSED:
            error = _read(folder / ENDED) or {}
            kind = CODES.get(error.get("kind", ""), "training_failed")
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
        self._store.add_model(row, name, self._within(folder / RUN))
        told = [
            *tracking.lost(folder / RUN),
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
        model = self._store.model(row["project_id"], name)
        if model is not None and model["method"] != "reward":
            self._made(model)

    def _fail(self, row: Row, code: str, message: str, param: str | None) -> None:
        error = {"code": code, "message": message, "param": param}
        with suppress(ApiError):  # it was cancelled meanwhile
            told = Told("failed", f"The job failed: {message}", "error")
            self._store.move(row["id"], "failed", [told], error=error)

    def _read_log(self, row: Row, log: _Log) -> None:
        """Turn new whole lines of the run's log into events, and kept steps into checkpoints."""
        run = self.folder_of(row) / RUN
        if row["asked"].get("integrations") and not log.tracked:
            told = tracking.begun(run)
            log.tracked = len(told) == len(row["asked"]["integrations"])
            self._store.note(row["id"], told)
        path = run / "metrics.jsonl"
        if not path.is_file():
            return
        with path.open("rb") as file:
            inode = os.fstat(file.fileno()).st_ino
            if inode != log.inode:
                log.inode, log.offset, log.steps, log.kept = inode, 0, [], None
            file.seek(log.offset)
            lines = [line for line in file.readlines() if line.endswith(b"\n")]
        if lines:
            log.offset += sum(map(len, lines))
            total = (_read(run / "manifest.json") or {}).get("planned_steps")
            steps = [json.loads(line) for line in lines]
            log.steps += steps
            told = [
                Told(f"step {one['step']}", step_message(one, total), "info", "metrics", metrics_data(one, total))
                for one in steps
            ]
            self._store.note(row["id"], told, estimated_finish=_estimate(log.steps, total))
        # a step's line comes before what is kept of it, and behind the last step's no other follows
        self._read_kept(row, run, log)

    def _read_kept(self, row: Row, run: Path, log: _Log) -> None:
        kept = kept_steps(run)
        if tuple(kept) == log.kept:
            return
        for one in log.steps:
            if one["step"] in kept:
                name = checkpoint_name(row, one["step"])
                self._store.add_checkpoint(row, one["step"], name, checkpoint_metrics(one))
                self._store.add_model(row, name, self._within(kept[one["step"]]))
        self._store.drop_checkpoints(row["id"], list(kept))
        logged = {one["step"] for one in log.steps}
        log.kept = tuple(kept) if logged.issuperset(kept) else None  # a line and its weights came since


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
