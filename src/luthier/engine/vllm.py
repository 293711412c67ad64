"""Replies that a vLLM server writes: a process of its own, started and ended here, with the weights of the training.

vLLM lives in an environment of its own, whose interpreter is named; nothing of it is imported. It listens on a socket
in a folder that only this user can open: no port, no key. The weights are told by their sha256: where they are others
than those that the server has, the adapter is written in the layout of `peft` and loaded under a new name, since what
vLLM keeps of prompts is kept by the adapter's name.

Log-probabilities are those of `--logprobs-mode processed_logprobs`: after the logits are divided by the temperature.
vLLM's own default tells those before.
"""

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import torch

from luthier.adapters.base import Injected
from luthier.errors import ModelError, ServiceError
from luthier.models.generate import Generation
from luthier.models.load import LoadedModel
from luthier.models.vllm_lora import RANKS, rank_for, why_not
from luthier.recipe import VllmSettings

KEEPER = Path(__file__).with_name("_vllm_keeper.py")
AT_ONCE = 256
"""Replies that are written at once, as by our own generator."""
OVERHEAD_BYTES = 3 * 2**30
"""What a server holds beside weights and cache: libraries, activations, and captured graphs."""
START_SECONDS = 1800.0
"""Weights of a large model are read, and kernels compiled."""
MOST_DRIFT = 1.0
"""Nats a token over a rollout, at temperature 1: two computations of the same weights are not so far apart."""
SHOWN = 1500
"""Characters of the server's log that an error shows."""
LOG = "vllm.log"
VISIBLE = "CUDA_VISIBLE_DEVICES"
_NAME = "luthier-{}"


@dataclass(frozen=True)
class Server:
    """How a server is started."""

    settings: VllmSettings
    loaded: LoadedModel
    longest: int
    """Tokens of a prompt with its reply."""
    folder: Path
    """For its log."""

    @property
    def log(self) -> Path:
        """What it says."""
        return self.folder / LOG

    def command(self, socket: Path, rank: int) -> list[str]:
        """The whole command line; what the recipe adds comes last.

        Args:
            socket: where it listens.
            rank: `--max-lora-rank`.
        """
        values = {
            "--model": str(self.loaded.files.folder),
            "--uds": str(socket),
            "--served-model-name": "base",
            "--dtype": str(self.loaded.dtype).removeprefix("torch."),
            "--max-model-len": str(self.longest),
            "--max-num-seqs": str(AT_ONCE),
            "--max-lora-rank": str(rank),
            "--max-loras": "1",
            "--kv-cache-memory-bytes": str(self.settings.cache_bytes),
            # the cache's size is given, so this is only asked whether so much is free at the start
            "--gpu-memory-utilization": "0.01",
            "--logprobs-mode": "processed_logprobs",
            # what the model's generation_config.json says of sampling, and of further ends, is not what is trained
            "--generation-config": "vllm",
            "--uvicorn-log-level": "warning",
        }
        flags = ["--enable-lora", "--enable-prefix-caching"]
        if self.loaded.device.type == "cpu":  # compiling takes minutes there, and gains little
            flags.append("--enforce-eager")
        given = [word for pair in values.items() for word in pair]
        run = [str(self.settings.interpreter), "-m", "vllm.entrypoints.openai.api_server"]
        return [*run, *given, *flags, *self.settings.arguments]

    def environment(self) -> dict[str, str]:
        """Ours, without what names places of our own packages, and with the devices that it may use."""
        own = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
        device = self.loaded.device
        if self.settings.devices is not None:
            own[VISIBLE] = self.settings.devices
        elif device.type == "cuda":  # it would take the first one that it sees
            seen = own.get(VISIBLE, "").split(",")
            own[VISIBLE] = seen[device.index or 0] if seen != [""] else str(device.index or 0)
        return {**own, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}

    def require(self) -> None:
        """Check what can be checked without starting it.

        Raises:
            ModelError: the interpreter is not there or has no vLLM.
        """
        python = self.settings.interpreter
        how = "name the python of an environment that has vLLM in rollout.vllm.python"
        if not os.access(python, os.X_OK) or not python.is_file():
            raise ModelError(f"rollout.vllm: {python} is no program; {how}")
        code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
        if subprocess.run([str(python), "-c", code], env=self.environment(), check=False).returncode:
            raise ModelError(f"rollout.vllm: {python} has no vLLM; install it there, or {how}")


class _Running:
    """A server's process, and a client of it."""

    def __init__(self, server: Server, rank: int) -> None:
        server.folder.mkdir(parents=True, exist_ok=True)
        self.log = server.log
        self.folder = Path(tempfile.mkdtemp(prefix="luthier-vllm-"))  # short: a socket's path has 107 characters
        socket = self.folder / "socket"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-I", str(KEEPER), str(self.folder), *server.command(socket, rank)],
                stdin=subprocess.PIPE,  # held by nobody but us: it ends when we do, however that is
                stdout=log,
                stderr=log,
                env=server.environment(),
                start_new_session=True,  # ctrl-C is for the training, which ends its step first
            )
        self.client = httpx2.Client(
            transport=httpx2.HTTPTransport(uds=str(socket), limits=httpx2.Limits(max_connections=AT_ONCE)),
            base_url="http://localhost",
            timeout=server.settings.timeout_seconds,
        )
        self.end = weakref.finalize(self, _end, self.process, self.client)

    def await_health(self) -> None:
        """Wait until it answers.

        Raises:
            ServiceError: it ended, or took too long.
        """
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise ServiceError(f"the vLLM server ended while it started; {self.said()}")
            try:
                if self.client.get("/health", timeout=10.0).status_code == 200:
                    return
            except httpx2.TransportError:
                pass  # its socket is not there yet
            time.sleep(0.1)
        raise ServiceError(f"the vLLM server did not answer within {START_SECONDS:g} s; {self.said()}")

    def post(self, path: str, values: Mapping[str, Any]) -> httpx2.Response:
        """An answer of status 200.

        Raises:
            ServiceError: there is none.
        """
        again = "what was sampled is kept, and the same command goes on"
        try:
            response = self.client.post(path, json=values)
        except httpx2.TimeoutException:
            raise ServiceError(
                f"vLLM gave no answer within rollout.vllm.timeout_seconds = {self.client.timeout.read:g}; {again}; "
                f"{self.said()}"
            ) from None
        except httpx2.TransportError as error:
            raise ServiceError(f"vLLM does not answer ({type(error).__name__}); {again}; {self.said()}") from None
        if response.status_code != 200:
            told = response.text.strip()[:SHOWN]
            raise ServiceError(
                f"vLLM answered {path} with status {response.status_code}: {told}; {again}; {self.said()}"
            )
        return response

    def said(self) -> str:
        """The end of its log."""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - SHOWN))
            text = file.read().decode("utf-8", "replace")
        return f"the end of {self.log}:\n{text.strip()}"


def _rank(injected: Injected, base: str) -> int:
    """`--max-lora-rank` for an adapter, which is written to see what it is in a file.

    Raises:
        ModelError: vLLM would compute something else.
    """
    with tempfile.TemporaryDirectory(prefix="luthier-vllm-") as folder:
        injected.save(Path(folder), base)
        path = Path(folder) / "adapter_config.json"
        settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    why, rank = why_not(settings), rank_for(settings) if settings else None
    if why is not None or rank is None:
        raise ModelError(
            f"vLLM cannot compute what is trained: {why or f'its rank is above {RANKS[-1]}'}; change the adapter, or "
            "remove [rollout.vllm]"
        )
    return rank


def _end(process: "subprocess.Popen[bytes]", client: httpx2.Client) -> None:
    """Let the keeper end the server, and wait for it."""
    client.close()
    if process.stdin is not None:
        process.stdin.close()
    process.wait()


class VllmSampler:
    """Writes replies with the weights as they are when it is called; the server is started when it is first needed."""

    def __init__(self, server: Server, injected: Injected, stop_ids: frozenset[int]) -> None:
        """
        Args:
            server: how it is started.
            injected: the adapter that is trained.
            stop_ids: tokens that end a reply.
        """
        self._server, self._injected, self._stop_ids = server, injected, sorted(stop_ids)
        self._running: _Running | None = None
        self._weights, self._name, self._loads = "", "", 0

    def open(self) -> None:
        """Start the server, if it does not run.

        Raises:
            ModelError: there is no vLLM, or it would compute something else than what is trained.
            ServiceError: it cannot be started.
        """
        if self._running is not None:
            return
        self._server.require()
        rank = _rank(self._injected, self._server.loaded.files.name)
        if self._server.loaded.device.type == "cuda":
            torch.cuda.empty_cache()  # what is free of what this process holds is free for the server, too
        running = _Running(self._server, rank)
        try:
            running.await_health()
        except BaseException:
            running.end()
            raise
        self._running, self._weights, self._name = running, "", ""

    def close(self) -> None:
        """End the server, if it runs; the next call starts another."""
        if self._running is not None:
            self._running.end()
            self._running = None

    def __call__(
        self, prompts: Sequence[Sequence[int]], limits: Sequence[int], seeds: Sequence[int], temperature: float
    ) -> list[Generation]:
        """One reply to each prompt; all of the vocabulary can be drawn, as training scores it.

        Raises:
            ModelError: as `open`.
            ServiceError: as `open`; or the server does not take the adapter, or does not answer as it should.
        """
        self.open()
        assert self._running is not None
        name = self._up_to_date(self._running)
        asked = list(zip(prompts, limits, seeds, strict=True))
        with ThreadPoolExecutor(AT_ONCE, "vllm") as pool:
            futures = [pool.submit(self._reply, self._running, name, *one, temperature) for one in asked]
            try:
                return [future.result() for future in futures]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                self.close()  # else those that are being written would be waited for
                raise

    def _up_to_date(self, running: _Running) -> str:
        """The name under which the server has the weights as they are now."""
        weights = _digest(self._injected.trainable)
        if weights == self._weights:
            return self._name
        self._loads += 1
        name, before, folder = _NAME.format(self._loads), self._name, running.folder / _NAME.format(self._loads)
        self._injected.save(folder, self._server.loaded.files.name)
        running.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
        if before:
            running.post("/v1/unload_lora_adapter", {"lora_name": before})
            shutil.rmtree(running.folder / before)
        self._weights, self._name = weights, name
        return name

    def _reply(
        self, running: _Running, name: str, prompt: Sequence[int], limit: int, seed: int, temperature: float
    ) -> Generation:
        body = {
            "model": name,
            "prompt": list(prompt),
            "max_tokens": limit,
            "temperature": temperature,
            "seed": seed % 2**63,  # it has 64 bits with a sign, and -1 is no seed
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "ignore_eos": True,  # its own end need not be the template's
            "stop_token_ids": self._stop_ids,
            "logprobs": 0,  # of the token that was drawn alone
            "return_token_ids": True,
        }
        text = running.post("/v1/completions", body).text
        try:
            return self._read(json.loads(text)["choices"][0], prompt, limit, temperature)
        except (ValueError, LookupError, TypeError) as error:
            raise ServiceError(
                f"vLLM's reply is not what was asked for ({type(error).__name__}: {error}): {text[:SHOWN]}"
            ) from None

    def _read(self, choice: Mapping[str, Any], prompt: Sequence[int], limit: int, temperature: float) -> Generation:
        """Raises ValueError, LookupError or TypeError for a reply that is none."""
        ids, logprobs = choice["token_ids"], choice["logprobs"]["token_logprobs"]
        if choice["prompt_token_ids"] != list(prompt):
            raise ValueError("it answers another prompt")
        if not 1 <= len(ids) == len(logprobs) <= limit:
            raise ValueError(f"{len(ids)} tokens with {len(logprobs)} log-probabilities, of at most {limit}")
        if not all(math.isfinite(value) for value in logprobs):
            raise ValueError("a log-probability is no finite number")
        finished = ids[-1] in self._stop_ids
        if choice["finish_reason"] != ("stop" if finished else "length") or (not finished and len(ids) < limit):
            raise ValueError(f"it ended with {ids[-1]} after {len(ids)} tokens for {choice['finish_reason']!r}")
        return Generation(
            ids=tuple(ids[:-1] if finished else ids),
            # under the model itself only where nothing was divided by
            logprob_sum=sum(logprobs) if temperature in (0.0, 1.0) else math.nan,
            finished=finished,
            prompt_tokens=len(prompt),
            logprobs=tuple(logprobs),
            stop_id=ids[-1] if finished else None,
        )


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    found = hashlib.sha256()
    for name, tensor in tensors.items():
        found.update(name.encode())
        found.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return found.hexdigest()


def held_bytes(settings: VllmSettings, loaded: LoadedModel) -> int:
    """What a server takes of the memory of the training's device, about; 0 where it has devices of its own."""
    if settings.devices is not None and loaded.device.type == "cuda":
        return 0
    weights = sum(p.numel() * p.element_size() for p in loaded.model.parameters())
    return weights + settings.cache_bytes + OVERHEAD_BYTES
