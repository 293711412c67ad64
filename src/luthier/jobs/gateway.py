"""Chat and completions with bases and with what jobs made: an inference process for each base, started when asked.

The engine lives in a process of its own (`luthier serve`), so a request that ends it ends nothing else, and this one
needs no torch. Its key is made here and known to nobody else; adapters are registered by the ids of jobs, never by what
a client wrote. What it answers is passed on as it comes, under the name that the client asked for.
"""

import asyncio
import json
import re
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from starlette.responses import JSONResponse, Response, StreamingResponse

from luthier.jobs.database import Row
from luthier.jobs.environment import child_environment
from luthier.jobs.private import private_file, private_folder
from luthier.serve.api_error import ApiError

START_SECONDS = 300.0
"""Longest wait for a base to be loaded."""
ANSWER_SECONDS = 600.0
PROGRAM = "luthier.cli.engine_process"
BASE = "base"
KEY, ADMIN = "LUTHIER_SERVE_KEY", "LUTHIER_SERVE_ADMIN_KEY"
_ADDRESS = re.compile(rb" at (http://\S+) ")


@dataclass(frozen=True)
class Served:
    """What a client's name of a model means."""

    base: str
    """As `model.name`."""
    name: str = BASE
    """What engines call it; of a base: `base`."""
    folder: Path | None = None
    """Of the run, or of the checkpoint, within the folder of all jobs; None: the base itself."""

    @classmethod
    def of(cls, row: Row) -> "Served":
        """What a job made: its job's id, and the step of a checkpoint."""
        folder = Path(row["folder"])
        return cls(str(row["base"]), f"{row['job_id']}.{folder.name}", folder)


@dataclass
class Engine:
    """One inference process."""

    process: "subprocess.Popen[bytes]"
    log: Path
    key: str = field(repr=False)
    admin_key: str = field(repr=False)
    url: str = ""
    loaded: set[str] = field(default_factory=set)


class Gateway:
    """Passes requests on.

    Args:
        folder: for logs and for what may be served, a folder for each base.
        jobs: in which every job has its folder.
    """

    def __init__(self, folder: Path, jobs: Path) -> None:
        self._folder, self._jobs = folder, jobs
        self._engines: dict[str, list[Engine]] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._client = httpx2.AsyncClient(timeout=httpx2.Timeout(ANSWER_SECONDS, connect=10.0), trust_env=False)

    async def close(self) -> None:
        """End all inference processes."""
        engines = [engine for of_base in self._engines.values() for engine in of_base]
        for engine in engines:
            engine.process.terminate()
        for engine in engines:
            try:
                await asyncio.to_thread(engine.process.wait, 10.0)
            except subprocess.TimeoutExpired:
                engine.process.kill()
        await self._client.aclose()

    async def pass_on(self, path: str, body: dict[str, Any], model: Served) -> Response:
        """Ask the engine of a model's base, and give back what it says.

        Args:
            path: `/chat/completions` or `/completions`.
            body: the request, with the client's name of the model.
            model: what this name means.

        Raises:
            ApiError: 503: the base cannot be loaded.
        """
        served, name = model.name, body["model"]
        answer = await self._send(path, body, model)
        if answer.headers.get("content-type", "").startswith("text/event-stream"):
            return StreamingResponse(_renamed(answer, served, name), media_type="text/event-stream")
        values = await _whole(answer)
        if values.get("model") == served:
            values["model"] = name
        headers = {key: value for key, value in answer.headers.items() if key in ("retry-after", "x-should-retry")}
        return JSONResponse(values, answer.status_code, headers=headers)

    async def ask(self, path: str, body: dict[str, Any], model: Served) -> dict[str, Any]:
        """The whole answer to a request of our own.

        Raises:
            ApiError: 503: the base cannot be loaded; or what the engine refuses the request with.
        """
        answer = await self._send(path, body, model)
        values = await _whole(answer)
        if answer.status_code != 200:
            raise ApiError(values["error"]["message"], status=answer.status_code, code=values["error"]["code"])
        return values

    async def _send(self, path: str, body: dict[str, Any], model: Served) -> httpx2.Response:
        engine = await self._engine_of(model)
        asked, headers = {**body, "model": model.name}, {"authorization": f"Bearer {engine.key}"}
        request = self._client.build_request("POST", engine.url + path, json=asked, headers=headers)
        try:
            return await self._client.send(request, stream=True)
        except httpx2.HTTPError as error:
            raise _down(type(error).__name__) from None

    async def _engine_of(self, model: Served) -> Engine:
        """An engine of the base that has the model, or takes it; a new one where none does: adapters that were trained
        over the base in another number format cannot share it."""
        async with self._locks.setdefault(model.base, asyncio.Lock()):
            alive = [one for one in self._engines.get(model.base, []) if one.process.poll() is None]
            for engine in alive:
                if model.name in engine.loaded or await self._load(engine, model):
                    return engine
            engine = await self._start(model)
            self._engines[model.base] = [*alive, engine]
        return engine

    async def _start(self, model: Served) -> Engine:
        """Load the base, with the model that was asked for."""
        place = self._place(model)
        key, admin_key = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
        log = place / f"serve-{secrets.token_hex(4)}.log"
        first = ["--base", model.base]
        if model.folder is not None:
            first = ["--adapter", f"{model.name}={_link(place, model.name, self._jobs / model.folder)}"]
        command = [sys.executable, "-m", PROGRAM, *first, "--register", str(place), "--port", "0"]
        command += ["--api-key-env", KEY, "--admin-key-env", ADMIN]
        with private_file(log, "wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=child_environment({KEY: key, ADMIN: admin_key}),
            )
        engine = Engine(process, log, key, admin_key, loaded={model.name, BASE})
        try:
            engine.url = await self._address_of(engine)
        except BaseException:  # a request that was given up leaves no process behind
            process.kill()
            raise
        return engine

    async def _address_of(self, engine: Engine) -> str:
        """Where an engine answers, once it does."""
        for _ in range(round(START_SECONDS / 0.2)):
            await asyncio.sleep(0.2)
            found = _ADDRESS.search(engine.log.read_bytes())
            if engine.process.poll() is not None:
                raise _down("the engine could not start")
            if found is not None and await self._is_up(found[1].decode()):
                return found[1].decode()
        raise _down("the engine took too long to start")

    async def _is_up(self, url: str) -> bool:
        try:
            answer = await self._client.get(url.removesuffix("/v1") + "/healthz", timeout=2.0)
        except httpx2.HTTPError:
            return False
        return answer.status_code == 200

    async def _load(self, engine: Engine, model: Served) -> bool:
        """Add a model to an engine; False if it cannot be beside what is there."""
        if model.folder is None:
            return False
        _link(self._place(model), model.name, self._jobs / model.folder)
        headers = {"authorization": f"Bearer {engine.admin_key}"}
        try:
            answer = await self._client.post(engine.url + "/adapters", json={"name": model.name}, headers=headers)
        except httpx2.HTTPError as error:
            raise _down(type(error).__name__) from None
        if answer.status_code == 200 or (answer.json().get("error") or {}).get("code") == "model_exists":
            engine.loaded.add(model.name)
        return model.name in engine.loaded

    def _place(self, model: Served) -> Path:
        """The folder of a base's engine."""
        name = re.sub(r"[^A-Za-z0-9._-]", "-", model.base)[-60:]
        return private_folder(private_folder(self._folder) / name)


def _link(place: Path, name: str, folder: Path) -> Path:
    """Let an engine find a run under a name of ours; an old link may lead to where all of it lay before."""
    link, target = place / name, folder.resolve()
    if link.is_symlink() and link.readlink() != target:
        link.unlink()
    if not link.is_symlink():
        link.symlink_to(target, target_is_directory=True)
    return link


async def _whole(answer: httpx2.Response) -> dict[str, Any]:
    try:
        values = json.loads(await answer.aread())
    except (httpx2.HTTPError, ValueError) as error:
        raise _down(type(error).__name__) from None
    finally:
        await answer.aclose()
    return values if isinstance(values, dict) else {}


async def _renamed(answer: httpx2.Response, served: str, name: str) -> AsyncIterator[bytes]:
    """The events of a stream, with the client's name of the model."""
    theirs, ours = (json.dumps({"model": one})[1:-1].encode() for one in (served, name))
    compact = json.dumps({"model": served}, separators=(",", ":"))[1:-1].encode()
    try:
        async for line in answer.aiter_lines():
            yield line.encode().replace(theirs, ours).replace(compact, ours) + b"\n"
    finally:
        await answer.aclose()


def _down(why: str) -> ApiError:
    return ApiError(f"The model cannot be used right now: {why}.", status=503, code="model_unavailable")
