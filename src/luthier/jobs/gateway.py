"""Chat and completions with what jobs made: one inference process for each base, started when it is asked.

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
KEY, ADMIN = "LUTHIER_SERVE_KEY", "LUTHIER_SERVE_ADMIN_KEY"
_ADDRESS = re.compile(rb" at (http://\S+) ")


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
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._engines: dict[str, Engine] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._client = httpx2.AsyncClient(timeout=httpx2.Timeout(ANSWER_SECONDS, connect=10.0), trust_env=False)

    async def close(self) -> None:
        """End all inference processes."""
        for engine in self._engines.values():
            engine.process.terminate()
        for engine in self._engines.values():
            try:
                await asyncio.to_thread(engine.process.wait, 10.0)
            except subprocess.TimeoutExpired:
                engine.process.kill()
        await self._client.aclose()

    async def pass_on(self, path: str, body: dict[str, Any], model: Row) -> Response:
        """Ask the engine of a model's base, and give back what it says.

        Args:
            path: `/chat/completions` or `/completions`.
            body: the request, with the client's name of the model.
            model: what this name means.

        Raises:
            ApiError: 503: the base cannot be loaded.
        """
        served, name = served_name(model), body["model"]
        answer = await self._send(path, body, model, served)
        if answer.headers.get("content-type", "").startswith("text/event-stream"):
            return StreamingResponse(_renamed(answer, served, name), media_type="text/event-stream")
        values = await _whole(answer)
        if values.get("model") == served:
            values["model"] = name
        headers = {key: value for key, value in answer.headers.items() if key in ("retry-after", "x-should-retry")}
        return JSONResponse(values, answer.status_code, headers=headers)

    async def ask(self, path: str, body: dict[str, Any], model: Row) -> dict[str, Any]:
        """The whole answer to a request of our own.

        Raises:
            ApiError: 503: the base cannot be loaded; or what the engine refuses the request with.
        """
        answer = await self._send(path, body, model, served_name(model))
        values = await _whole(answer)
        if answer.status_code != 200:
            raise ApiError(values["error"]["message"], status=answer.status_code, code=values["error"]["code"])
        return values

    async def _send(self, path: str, body: dict[str, Any], model: Row, served: str) -> httpx2.Response:
        engine = await self._engine_of(model, served)
        asked, headers = {**body, "model": served}, {"authorization": f"Bearer {engine.key}"}
        request = self._client.build_request("POST", engine.url + path, json=asked, headers=headers)
        try:
            return await self._client.send(request, stream=True)
        except httpx2.HTTPError as error:
            raise _down(type(error).__name__) from None

    async def _engine_of(self, model: Row, served: str) -> Engine:
        base = str(model["base"])
        async with self._locks.setdefault(base, asyncio.Lock()):
            engine = self._engines.get(base)
            if engine is None or engine.process.poll() is not None:
                engine = self._engines[base] = await self._start(model, served)
            if served not in engine.loaded:
                await self._load(engine, model, served)
        return engine

    async def _start(self, model: Row, served: str) -> Engine:
        """Load the base with the model that was asked for."""
        place = self._place(model)
        _link(place, served, Path(model["folder"]))
        key, admin_key = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
        log = place / "serve.log"
        command = [sys.executable, "-m", PROGRAM, "--adapter", f"{served}={place / served}"]
        command += ["--register", str(place), "--port", "0", "--api-key-env", KEY, "--admin-key-env", ADMIN]
        with private_file(log, "wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=child_environment({KEY: key, ADMIN: admin_key}),
            )
        engine = Engine(process, log, key, admin_key, loaded={served})
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

    async def _load(self, engine: Engine, model: Row, served: str) -> None:
        _link(self._place(model), served, Path(model["folder"]))
        headers = {"authorization": f"Bearer {engine.admin_key}"}
        try:
            answer = await self._client.post(engine.url + "/adapters", json={"name": served}, headers=headers)
        except httpx2.HTTPError as error:
            raise _down(type(error).__name__) from None
        if answer.status_code not in (200, 409):
            raise _down("the model could not be loaded")
        engine.loaded.add(served)

    def _place(self, model: Row) -> Path:
        """The folder of a base's engine."""
        name = re.sub(r"[^A-Za-z0-9._-]", "-", str(model["base"]))[-60:]
        return private_folder(private_folder(self._folder) / name)


def served_name(model: Row) -> str:
    """What an engine calls a model: its job's id, and the step of a checkpoint."""
    folder = Path(model["folder"])
    return f"{model['job_id']}.{folder.name}"


def _link(place: Path, name: str, folder: Path) -> None:
    """Let an engine find a run under a name of ours."""
    link = place / name
    if not link.is_symlink():
        link.symlink_to(folder.resolve(), target_is_directory=True)


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
