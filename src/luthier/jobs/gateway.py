"""Answers of bases, of what jobs made, of encoders and GGUF files: an inference process for each, started when asked.

The engine lives in a process of its own (`luthier serve`), so a request that ends it ends nothing else, and this one
needs no torch. Its key is made here and known to nobody else; adapters are registered by the ids of jobs, never by what
a client wrote. What it answers is passed on as it comes, under the name that the client asked for.
Chats of a base that the operator gave a vLLM server for go there instead.
"""

import asyncio
import json
import logging
import re
import secrets
import subprocess
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, TypeAlias

import httpx2
from starlette.responses import JSONResponse, Response, StreamingResponse

from luthier.jobs.database import Row
from luthier.jobs.environment import answering_threads, child_environment, start_child
from luthier.jobs.private import private_folder
from luthier.jobs.vllm import PATHS as VLLM_PATHS, Address, Vllm
from luthier.serve.api_error import ApiError, unsupported
from luthier.serve.failures import place_of

log = logging.getLogger("luthier.jobs")
START_SECONDS = 300.0
"""Longest wait for a base to be loaded."""
ANSWER_SECONDS = 600.0
END_SECONDS = 10.0
"""Longest wait at the end for an engine, and for what vLLM is told."""
PROGRAM = "luthier.cli.engine_process"
LONGEST_NAME = 60
BASE = "base"
KEY, ADMIN = "LUTHIER_SERVE_KEY", "LUTHIER_SERVE_ADMIN_KEY"
_ADDRESS = re.compile(rb" at (http://\S+) ")


Kind: TypeAlias = Literal["model", "embedder", "gguf"]
PATHS: dict[Kind, tuple[str, ...]] = {
    "model": ("/chat/completions", "/completions", "/decisions"),
    "embedder": ("/embeddings",),
    "gguf": ("/chat/completions", "/completions"),
}
"""What each kind answers."""


@dataclass(frozen=True)
class Served:
    """What a client's name of a model means."""

    base: str
    """As `model.name`; an encoder as `retrieval.embedder`; the path of a GGUF file."""
    name: str = BASE
    """What engines call it; of a base: `base`."""
    folder: Path | None = None
    """Of the run, or of the checkpoint, within the folder of all jobs; None: the base itself."""
    kind: Kind = "model"

    @property
    def opened(self) -> tuple[Kind, str]:
        """What its engines have opened."""
        return self.kind, self.base

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
        remotes: vLLM servers by the base that they answer for.
        beside: jobs that train at a time on this machine.
    """

    def __init__(self, folder: Path, jobs: Path, remotes: Mapping[str, Address] | None = None, beside: int = 0) -> None:
        self._folder, self._jobs, self._beside = folder, jobs, beside
        self._engines: dict[tuple[Kind, str], list[Engine]] = {}
        self._locks: dict[tuple[Kind, str], asyncio.Lock] = {}
        self._client = httpx2.AsyncClient(timeout=httpx2.Timeout(ANSWER_SECONDS, connect=10.0), trust_env=False)
        self._remotes = {base: Vllm(base, address, self._client) for base, address in (remotes or {}).items()}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._preparing: set[Future[None]] = set()

    def open(self) -> None:
        """Begin, within the loop that requests are answered in."""
        self._loop = asyncio.get_running_loop()

    def prepare(self, model: Served) -> None:
        """Let what a job made be loaded where that is known beforehand; for any thread, which does not wait for it."""
        if self._loop is not None and model.base in self._remotes:
            future = asyncio.run_coroutine_threadsafe(self._prepare(model), self._loop)
            self._preparing.add(future)
            future.add_done_callback(self._prepared)

    def _prepared(self, future: Future[None]) -> None:
        self._preparing.discard(future)
        error = None if future.cancelled() else future.exception()
        if error is not None:  # its message may name a client's files
            log.error("a model is not prepared: %s in %s", type(error).__name__, place_of(error))

    async def _prepare(self, model: Served) -> None:
        if model.folder is not None:
            try:
                await self._remotes[model.base].load(model.name, self._jobs / model.folder)
            except ApiError as error:  # told again to the first who asks
                log.warning("%s is not loaded into vLLM: %s", model.name, error.message)

    async def forget(self, model: Served) -> None:
        """Let go of what a job made, wherever it is loaded."""
        if model.base in self._remotes:
            with suppress(ApiError):  # a vLLM that is down has nothing loaded
                await self._remotes[model.base].unload(model.name)
        async with self._locks.setdefault(model.opened, asyncio.Lock()):
            for engine in self._engines.get(model.opened, []):
                if model.name in engine.loaded:
                    engine.loaded.discard(model.name)
                    headers = {"authorization": f"Bearer {engine.admin_key}"}
                    with suppress(httpx2.HTTPError):  # then it ended, and nothing is loaded
                        await self._client.delete(f"{engine.url}/adapters/{model.name}", headers=headers)
            (self._place(model) / model.name).unlink(missing_ok=True)

    async def close(self) -> None:
        """End all inference processes, once vLLM knows what jobs made last."""
        with suppress(TimeoutError):  # then it is given up, and loaded when somebody asks
            async with asyncio.timeout(END_SECONDS):
                await asyncio.gather(*map(asyncio.wrap_future, self._preparing), return_exceptions=True)
        engines = [engine for of_base in self._engines.values() for engine in of_base]
        for engine in engines:
            engine.process.terminate()
        for engine in engines:
            try:
                await asyncio.to_thread(engine.process.wait, END_SECONDS)
            except subprocess.TimeoutExpired:
                engine.process.kill()
        await self._client.aclose()

    async def pass_on(self, path: str, body: dict[str, Any], model: Served) -> Response:
        """Ask the engine of a model's base, and give back what it says.

        Args:
            path: one of PATHS, behind `/v1`.
            body: the request, with the client's name of the model.
            model: what this name means.

        Raises:
            ApiError: 400: models of this kind do not answer this; 503: the base cannot be loaded.
        """
        if path not in PATHS[model.kind]:
            what = "makes vectors of texts" if model.kind == "embedder" else "answers in words"
            raise unsupported("model", f"it {what}, which is not what /v1{path} gives")
        name = body["model"]
        answer, served = await self._send(path, body, model)
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
        answer, _ = await self._send(path, body, model)
        values = await _whole(answer)
        if answer.status_code != 200:
            raise ApiError(values["error"]["message"], status=answer.status_code, code=values["error"]["code"])
        return values

    async def _send(self, path: str, body: dict[str, Any], model: Served) -> tuple[httpx2.Response, str]:
        """What comes back, and the model's name in it."""
        if model.kind == "model" and model.base in self._remotes and path in VLLM_PATHS:
            folder = None if model.folder is None else self._jobs / model.folder
            found = await self._remotes[model.base].send(path, body, model.name, folder)
            return found.response, found.name
        engine = await self._engine_of(model)
        asked, headers = {**body, "model": model.name}, {"authorization": f"Bearer {engine.key}"}
        request = self._client.build_request("POST", engine.url + path, json=asked, headers=headers)
        try:
            return await self._client.send(request, stream=True), model.name
        except httpx2.HTTPError as error:
            raise _down(type(error).__name__) from None

    async def _engine_of(self, model: Served) -> Engine:
        """An engine of the base that has the model, or takes it; a new one where none does: adapters that were trained
        over the base in another number format cannot share it."""
        async with self._locks.setdefault(model.opened, asyncio.Lock()):
            alive = [one for one in self._engines.get(model.opened, []) if one.process.poll() is None]
            for engine in alive:
                if model.name in engine.loaded or await self._load(engine, model):
                    return engine
            engine = await self._start(model)
            self._engines[model.opened] = [*alive, engine]
        return engine

    async def _start(self, model: Served) -> Engine:
        """Load the base, with the model that was asked for."""
        place = self._place(model)
        key, admin_key = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
        log = place / f"serve-{secrets.token_hex(4)}.log"
        arguments = [*self._opening(place, model), "--port", "0", "--api-key-env", KEY]
        environment = child_environment({KEY: key, ADMIN: admin_key, **answering_threads(self._beside)})
        process = start_child(PROGRAM, arguments, log, environment)
        engine = Engine(process, log, key, admin_key, loaded={model.name, BASE})
        try:
            engine.url = await self._address_of(engine)
        except BaseException:  # a request that was given up leaves no process behind
            process.kill()
            raise
        return engine

    def _opening(self, place: Path, model: Served) -> list[str]:
        """The options by which `luthier serve` opens a model."""
        if model.kind == "embedder":
            return ["--embedder", f"{model.name}={model.base}"]
        if model.kind == "gguf":
            return [model.base]
        more = ["--register", str(place), "--admin-key-env", ADMIN]
        if model.folder is None:
            return ["--base", model.base, *more]
        return ["--adapter", f"{model.name}={_link(place, model.name, self._jobs / model.folder)}", *more]

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
        """The folder of a base's engines."""
        name = re.sub(r"[^A-Za-z0-9._-]", "-", model.base)
        if len(name) > LONGEST_NAME:
            name = f"{sha256(model.base.encode()).hexdigest()[:8]}-{name[-LONGEST_NAME:]}"
        if model.kind != "model":  # a file may be a base that jobs train from, too
            name = f"{model.kind}-{name}"
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
