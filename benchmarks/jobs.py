"""The job service under 200 clients while a job trains: errors, latencies, and how much slower the training is.

    python -m benchmarks.jobs [--clients 200] [--model MODEL] [--chat-every 200]

Two jobs of the same rows and seed train one after the other, the first undisturbed. During the second one, clients that
think a second between requests list jobs, read events and checkpoints, list models, and now and then chat with what the
first job made. They are OpenAI's as it comes: it asks twice more where the queue is full. Clients, server, engine and
training share this machine.
"""

import argparse
import asyncio
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import openai

THINK_SECONDS = 1.0
WAITING = ("validating_files", "queued", "running")


def rows(count: int) -> bytes:
    """A training file of short conversations."""
    made = [
        {"messages": [{"role": "user", "content": f"Say {n}."}, {"role": "assistant", "content": f"It is {n}."}]}
        for n in range(count)
    ]
    return "".join(json.dumps(row) + "\n" for row in made).encode()


class Load:
    """Clients that ask, and what they saw."""

    def __init__(self, url: str, key: str, clients: int, chat_every: int) -> None:
        self._client = openai.AsyncOpenAI(base_url=url, api_key=key, timeout=120)
        self._clients, self._chat_every = clients, chat_every
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.errors: dict[str, int] = defaultdict(int)

    async def run(self, job_id: str, model: str) -> None:
        """Ask until the job is done."""
        done = asyncio.Event()
        clients = [asyncio.create_task(self._one(number, job_id, model, done)) for number in range(self._clients)]
        while (await self._client.fine_tuning.jobs.retrieve(job_id)).status in (
            "validating_files",
            "queued",
            "running",
        ):
            await asyncio.sleep(0.5)
        done.set()
        await asyncio.gather(*clients)

    async def _one(self, number: int, job_id: str, model: str, done: asyncio.Event) -> None:
        jobs, turn = self._client.fine_tuning.jobs, number
        await asyncio.sleep(number / self._clients * THINK_SECONDS)
        while not done.is_set():
            turn += 1
            if turn % self._chat_every == 0:
                await self._timed("chat", self._chat(model))
            else:
                name = ("list jobs", "events", "checkpoints", "models")[turn % 4]
                asked: Any = {
                    "list jobs": lambda: jobs.list(limit=20),
                    "events": lambda: jobs.list_events(job_id, limit=50),
                    "checkpoints": lambda: jobs.checkpoints.list(job_id),
                    "models": lambda: self._client.models.list(),
                }[name]()
                await self._timed(name, asked)
            await asyncio.sleep(THINK_SECONDS)

    async def _chat(self, model: str) -> None:
        stream = await self._client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "Say 3."}], max_tokens=8, stream=True
        )
        async for _ in stream:
            pass

    async def _timed(self, name: str, asked: Any) -> None:
        started = time.perf_counter()
        try:
            await asked
        except openai.OpenAIError as error:
            self.errors[f"{name}: {type(error).__name__}"] += 1
        self.seconds[name].append(time.perf_counter() - started)


def main() -> None:
    """Run both jobs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--chat-every", type=int, default=200, help="of a client's requests, every n-th is a chat")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data, log = Path(folder) / "service", Path(folder) / "log.txt"
        luthier = [sys.executable, "-m", "luthier.cli.main"]
        key = subprocess.run(
            [*luthier, "service", "--data", str(data), "new-key", "load"], capture_output=True, text=True, check=True
        ).stdout.strip()
        command = [
            *luthier,
            "up",
            "--data",
            str(data),
            "--port",
            "0",
            "--model",
            args.model,
            "--alias",
            f"m={args.model}",
        ]
        with log.open("wb") as output:
            server = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, "LUTHIER_HOME": folder})
        try:
            _measure(_address(log), key, args)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(180)


def _address(log: Path) -> str:
    for _ in range(300):
        found = re.search(rb" at (http://\S+) ", log.read_bytes())
        if found:
            return found[1].decode()
        time.sleep(0.1)
    raise SystemExit(log.read_text())


def _measure(url: str, key: str, args: argparse.Namespace) -> None:
    client = openai.OpenAI(base_url=url, api_key=key)
    file = client.files.create(file=("rows.jsonl", rows(240)), purpose="fine-tune")
    method: Any = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1, "batch_size": 8}}}

    def train(load: Load | None, model: str) -> tuple[str, list[float]]:
        """What came of a job, and the seconds of its steps."""
        job = client.fine_tuning.jobs.create(model="m", training_file=file.id, seed=1, method=method)
        if load is not None:
            asyncio.run(load.run(job.id, model))
        while client.fine_tuning.jobs.retrieve(job.id).status in WAITING:
            time.sleep(0.5)
        done = client.fine_tuning.jobs.retrieve(job.id)
        if done.fine_tuned_model is None:
            raise SystemExit(f"{done.status}: {done.error}")
        data: list[Any] = [
            event.data for event in client.fine_tuning.jobs.list_events(job.id) if event.type == "metrics"
        ]
        return done.fine_tuned_model, [one["seconds"] for one in data if "valid_loss" not in one]

    model, before = train(None, "")
    warm = openai.OpenAI(base_url=url, api_key=key, timeout=300)
    warm.chat.completions.create(model=model, messages=[{"role": "user", "content": "Hi"}], max_tokens=2)
    load = Load(url, key, args.clients, args.chat_every)
    started = time.monotonic()
    _, loaded = train(load, model)
    seconds = time.monotonic() - started
    total, failed = sum(map(len, load.seconds.values())), sum(load.errors.values())
    print(f"{args.clients} clients, {seconds:.0f} s, {total:,} requests, {failed} failed {dict(load.errors) or ''}")
    print("| request | number | median ms | 95 % below | 99 % below |")
    print("|---|---|---|---|---|")
    for name, took in sorted(load.seconds.items()):
        cuts = statistics.quantiles(took, n=100) if len(took) > 1 else took * 99
        print(f"| {name} | {len(took):,} | {1000 * cuts[49]:.0f} | {1000 * cuts[94]:.0f} | {1000 * cuts[98]:.0f} |")
    alone, beside = statistics.median(before), statistics.median(loaded)
    print(f"a step of the job took {alone:.2f} s alone and {beside:.2f} s beside them ({beside / alone - 1:+.0%})")


if __name__ == "__main__":
    main()
