"""`kill -9` of the job service and its training processes at random moments: each job ends as if nothing had been."""

import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
from tests.jobs_service import MODEL, events_of, new_key, rows, running, start, wait_for

from luthier.files import sha256_of

pytestmark = pytest.mark.chaos

JOBS, KILLS = 10, 30


def ask_for_jobs(client: openai.OpenAI) -> list[str]:
    """So many jobs, each with rows and a seed of its own."""
    made = []
    for number in range(JOBS):
        file = client.files.create(file=("rows.jsonl", rows(40, seed=number)), purpose="fine-tune")
        method: Any = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 30, "batch_size": 2}}}
        job = client.fine_tuning.jobs.create(model=MODEL, training_file=file.id, seed=number, method=method)
        made.append(job.id)
    return made


def weights(folder: Path, job_id: str) -> str:
    return sha256_of(folder / "jobs" / job_id / "run/adapter/adapter_model.safetensors")


def test_thirty_kills_during_ten_jobs_lose_nothing(tmp_path: Path, tiny_model_folder: Path) -> None:
    with running(tmp_path / "calm", tiny_model_folder, at_once=2) as calm:
        client = calm.client()
        undisturbed = ask_for_jobs(client)
        for job_id in undisturbed:
            assert wait_for(client, job_id, seconds=600).status == "succeeded"
        expected = [weights(tmp_path / "calm", job_id) for job_id in undisturbed]
        steps = [events_of(client, job_id)[-3].data["total_steps"] for job_id in undisturbed]

    folder, log, chance = tmp_path / "killed", tmp_path / "log.txt", random.Random(0)
    key = new_key(folder, tiny_model_folder)
    process, url = start(folder, tiny_model_folder, log, ("--set", "limits.jobs_at_once=2"))
    client = openai.OpenAI(base_url=url, api_key=key, max_retries=0)
    jobs, killed = ask_for_jobs(client), {"server": 0, "worker": 0}
    while sum(killed.values()) < KILLS and not all(is_done(client, job_id) for job_id in jobs):
        time.sleep(chance.uniform(1, 10))
        children = [p for p in psutil.Process(process.pid).children() if is_training(p)]
        if children and chance.random() < 0.6:
            chance.choice(children).send_signal(signal.SIGKILL)
            killed["worker"] += 1
            continue
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        killed["server"] += 1
        process, url = start(folder, tiny_model_folder, log, ("--set", "limits.jobs_at_once=2"))
        client = openai.OpenAI(base_url=url, api_key=key, max_retries=0)
    try:
        print(f"killed: {killed}")
        assert sum(killed.values()) >= KILLS // 2, "the jobs were done too soon to show anything"
        for job_id, total, digest in zip(jobs, steps, expected, strict=True):
            assert wait_for(client, job_id, seconds=600).status == "succeeded"
            events = events_of(client, job_id)
            assert [e.data["step"] for e in events if e.type == "metrics"] == list(range(1, total + 1))
            assert len({event.id for event in events}) == len(events)
            assert weights(folder, job_id) == digest
        assert not list((folder / "files/incoming").iterdir())
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def is_training(process: psutil.Process) -> bool:
    with suppress(psutil.Error):  # it ended a moment ago
        return "luthier.cli.job_process" in process.cmdline()
    return False


def is_done(client: openai.OpenAI, job_id: str) -> bool:
    return client.fine_tuning.jobs.retrieve(job_id).status in ("succeeded", "failed", "cancelled")


def test_a_server_that_is_told_to_stop_saves_and_goes_on(tmp_path: Path, tiny_model_folder: Path) -> None:
    folder, log = tmp_path / "service", tmp_path / "log.txt"
    key = new_key(folder, tiny_model_folder)
    process, url = start(folder, tiny_model_folder, log)
    client = openai.OpenAI(base_url=url, api_key=key, max_retries=0)
    file = client.files.create(file=("rows.jsonl", rows(200)), purpose="fine-tune")
    method: Any = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 6, "batch_size": 1}}}
    job = client.fine_tuning.jobs.create(model=MODEL, training_file=file.id, method=method)
    wait_for(client, job.id, ("running",))
    until = time.monotonic() + 60
    while not any(event.type == "metrics" for event in events_of(client, job.id)) and time.monotonic() < until:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0 and "are saved" in log.read_text()
    assert list((folder / "jobs" / job.id / "run/checkpoints").glob("step-*"))
    process, url = start(folder, tiny_model_folder, log)
    try:
        client = openai.OpenAI(base_url=url, api_key=key, max_retries=0)
        assert wait_for(client, job.id).status == "succeeded"
        events = events_of(client, job.id)
        steps = [event.data["step"] for event in events if event.type == "metrics"]
        assert steps == list(range(1, len(steps) + 1))
        assert "The job was stopped and saved." in [event.message for event in events]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
