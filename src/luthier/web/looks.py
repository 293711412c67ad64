"""A look at a file before it is trained on: a process of its own, as rendering rows and loading a model needs torch.

What it found so far lies in a folder that is named by all that the look depends on, so coming back to a page finds it
again. One process works at a time, beside jobs and below them. Folders are removed after a day, with what they quote.

asked.json    what is looked at: base, model, seed; and train.jsonl, start/ as in a job's folder
found.json    what was found, stage by stage: see `luthier.cli.look_process`
"""

import asyncio
import json
import os
import shutil
import time
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool

from luthier.data.write import atomic_text
from luthier.jobs.database import Row
from luthier.jobs.environment import child_environment, start_child, training_threads
from luthier.jobs.job_folder import ADAPTER, START, TRAIN
from luthier.jobs.private import private_file, private_folder
from luthier.serve.api_error import ApiError

ASKED, FOUND, LOG = "asked.json", "found.json", "log.txt"
PROGRAM = "luthier.cli.look_process"
KEPT_SECONDS = 24 * 3600
MOST_SECONDS, MOST_WAITING = 900.0, 20
POLL_SECONDS = 0.2


class Looks:
    """The looks of a service.

    Args:
        folder: for one folder each.
        jobs: in which every job has its folder.
        at_once: jobs that train at a time.
    """

    def __init__(self, folder: Path, jobs: Path, at_once: int) -> None:
        self._folder, self._jobs, self._at_once = folder, jobs, at_once
        self._beginning, self._turn = asyncio.Lock(), asyncio.Lock()
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def found(self, project: str, rows: Path, base: str, start: Row | None) -> dict[str, Any]:
        """What is known by now of training on these rows; the first time, a process begins to find out.

        Args:
            project: whose look it is.
            rows: the file's bytes.
            base: as `model.name`.
            start: the model to go on from, if it is not the base itself.

        Raises:
            ApiError: 404: the file or the model was deleted meanwhile; 429: too many looks wait.
        """
        asked = {"base": base, "start": None if start is None else start["id"]}
        name = sha256(json.dumps([project, rows.name, asked]).encode()).hexdigest()[:32]
        place = self._folder / name
        if name not in self._tasks:
            async with self._beginning:
                await self._begin(name, place, rows, asked, start)
        return await run_in_threadpool(self._read, place)

    async def _begin(self, name: str, place: Path, rows: Path, asked: dict[str, Any], start: Row | None) -> None:
        """Start a process, unless there is one or was."""
        if name in self._tasks or "done" in await run_in_threadpool(self._read, place):
            return
        if len(self._tasks) >= MOST_WAITING:
            raise ApiError("Many files are being looked at; try again shortly.", status=429)
        await run_in_threadpool(self._lay_out, place, rows, asked, start)
        self._tasks[name] = asyncio.create_task(self._run(name, place))

    def _read(self, place: Path) -> dict[str, Any]:
        path = place / FOUND
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        assert isinstance(found, dict)
        return found

    def _lay_out(self, place: Path, rows: Path, asked: dict[str, Any], start: Row | None) -> None:
        private_folder(self._folder)
        self._sweep()
        shutil.rmtree(place, ignore_errors=True)
        private_folder(place)
        try:
            os.link(rows, place / TRAIN)
            if start is not None:
                shutil.copytree(self._jobs / start["folder"] / ADAPTER, place / START / ADAPTER, copy_function=os.link)
        except (shutil.Error, FileNotFoundError):
            raise ApiError("The file or the model was just deleted.", status=404) from None
        with private_file(place / ASKED, "xb") as file:
            file.write(json.dumps(asked).encode())

    async def _run(self, name: str, place: Path) -> None:
        try:
            async with self._turn:
                await self._look(place)
            await run_in_threadpool(self._end, place)
        finally:
            del self._tasks[name]

    def _end(self, place: Path) -> None:
        """Say so where the process could not."""
        found = self._read(place)
        if "done" not in found:  # it was killed, for its memory perhaps
            found |= {"done": True, "trouble": "The process that looked at the file ended before its time."}
            with atomic_text(place / FOUND) as file:  # pages read it meanwhile
                json.dump(found, file)

    async def _look(self, place: Path) -> None:
        """One process, from its start to its end; it is killed when its time is over, or the server's."""
        environment = child_environment(training_threads(self._at_once))  # as a job, whose time it is to tell
        process = start_child(PROGRAM, [str(place)], place / LOG, environment)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(MOST_SECONDS):
                    while process.poll() is None:
                        await asyncio.sleep(POLL_SECONDS)
        finally:
            process.kill()
            process.wait()

    def _sweep(self) -> None:
        """Remove what is old; a look that is under way is not."""
        for place in self._folder.iterdir():
            if place.name not in self._tasks and time.time() - place.stat().st_mtime > KEPT_SECONDS:
                shutil.rmtree(place, ignore_errors=True)
