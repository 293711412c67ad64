"""Limits of the service at work: memory decides who trains beside whom, time ends a job, a full disk is told."""

import sys
import time
from pathlib import Path
from typing import Any

import openai
import pytest
import sqlalchemy as sa
from tests.jobs_service import MODEL, events_of, rows, running, wait_for

from luthier.jobs.room import CPU, Claim

METHOD: Any = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 4, "batch_size": 4}}}


def begun(client: openai.OpenAI, **more: Any) -> Any:
    file = client.files.create(file=("rows.jsonl", rows(20)), purpose="fine-tune")
    return client.fine_tuning.jobs.create(model=MODEL, training_file=file.id, method=METHOD, **more)


@pytest.mark.chaos
def test_memory_and_not_the_number_decides_who_trains_beside_whom(tmp_path: Path, tiny_model_folder: Path) -> None:
    with running(tmp_path / "s", tiny_model_folder, at_once=2, memory_bytes=int(1.3 * 2**30)) as service:
        client = service.client()
        first, second = begun(client), begun(client)
        until = time.monotonic() + 120
        while time.monotonic() < until:
            running_now = [row["id"] for row in service.service.jobs.in_status("running")]
            ended = client.fine_tuning.jobs.retrieve(first.id).status == "succeeded"
            if len(running_now) == 2:  # only until the second one knows what it needs
                claim = Claim.read(tmp_path / "s/jobs" / second.id)
                steps = [e for e in events_of(client, second.id) if e.type == "metrics"]
                assert not steps and (claim is None or claim.is_least or ended or claim.needed > 0.3 * 2**30)
            if ended:
                break
            time.sleep(0.2)
        assert wait_for(client, first.id).status == "succeeded"
        assert wait_for(client, second.id).status == "succeeded"
        told = [event.message for event in events_of(client, second.id)]
        assert any("memory" in message and "waits" in message for message in told), told
        finished = {job.id: job.finished_at for job in client.fine_tuning.jobs.list()}
        steps = [event for event in events_of(client, second.id) if event.type == "metrics"]
        assert steps[0].created_at >= finished[first.id], "it took its first step when the other had ended"
        require_no_trace_of_deleted_models(client, tmp_path / "s/jobs" / first.id)
        assert (tmp_path / "s/jobs" / second.id / "run/adapter").is_dir()


def require_no_trace_of_deleted_models(client: openai.OpenAI, folder: Path) -> None:
    names = sorted(model.id for model in client.models.list() if f":{folder.name[-8:]}" in model.id)
    assert len(names) > 2 and (folder / "run/adapter").is_dir()
    kept = len(list(folder.glob("run/kept/*")))
    client.models.delete(names[0])
    assert not (folder / "run/adapter").exists() and len(list(folder.glob("run/kept/*"))) == kept
    client.models.delete(names[1])
    assert len(list(folder.glob("run/kept/*"))) == kept - 1
    assert len(list(client.fine_tuning.jobs.checkpoints.list(folder.name))) == kept - 1
    for name in names[2:]:
        client.models.delete(name)
    assert not list(folder.parent.glob(f"{folder.name}*"))
    with pytest.raises(openai.NotFoundError):
        client.models.delete(names[0])


@pytest.mark.chaos
def test_a_job_that_never_fits_fails_with_both_numbers(tmp_path: Path, tiny_model_folder: Path) -> None:
    with running(tmp_path / "small", tiny_model_folder, memory_bytes=2**28) as service:
        failed = wait_for(service.client(), begun(service.client()).id)
        assert failed.status == "failed" and failed.error.code == "insufficient_memory"
        assert "and jobs can have 0.2 GiB: take" in failed.error.message


def test_a_job_that_waits_where_it_no_longer_fits_fails_without_a_process(
    tmp_path: Path, tiny_model_folder: Path
) -> None:
    with running(tmp_path / "s", tiny_model_folder, at_once=0) as service:
        job = wait_for(service.client(), begun(service.client()).id, ("queued",))
    Claim(CPU, 2**30, 2**31).write(tmp_path / "s/jobs" / job.id)
    with running(tmp_path / "s", tiny_model_folder, memory_bytes=2**29) as service:
        failed = wait_for(service.client(), job.id)
        assert failed.error.code == "insufficient_memory"
        assert "needs 1.0 GiB of memory (cpu), and jobs can have 0.5 GiB" in failed.error.message
    assert not (tmp_path / "s/jobs" / job.id / "log.txt").exists()


def test_a_job_that_takes_too_long_fails_with_the_limit(tmp_path: Path, tiny_model_folder: Path) -> None:
    with running(tmp_path / "short", tiny_model_folder, hours=1e-5) as service:
        failed = wait_for(service.client(), begun(service.client()).id)
        assert failed.status == "failed" and failed.error.code == "time_limit"
        assert failed.error.message == "The job ran longer than 1e-05 hours."


def test_a_job_that_is_stopped_while_its_model_loads_did_not_die(tmp_path: Path, tiny_model_folder: Path) -> None:
    with running(tmp_path / "s", tiny_model_folder) as service:
        client = service.client()
        job = begun(client)
        wait_for(client, job.id, ("running",))
        opened = tmp_path / "s/jobs" / job.id / "run/recipe.json"
        until = time.monotonic() + 60
        while not opened.exists() and time.monotonic() < until:
            time.sleep(0.02)
    with running(tmp_path / "s", tiny_model_folder, at_once=0) as service:
        client = service.client()
        assert client.fine_tuning.jobs.retrieve(job.id).status == "queued"
        assert [e.message for e in events_of(client, job.id)][-1] == "The job was stopped and saved."
    assert not (tmp_path / "s/jobs" / job.id / "deaths.json").exists()


FULL = {
    "sqlite": "PRAGMA max_page_count = 10",
    "postgresql": "DO $$ BEGIN RAISE EXCEPTION 'no space' USING ERRCODE = 'disk_full'; END $$",
}
"""How a database comes to say that its disk is full."""


def test_a_full_disk_is_told_as_such_and_no_mistake_of_the_server(tmp_path: Path, tiny_model_folder: Path) -> None:
    with running(tmp_path / "s", tiny_model_folder, at_once=0) as service:
        client = service.client()
        job = begun(client)
        database = service.service.database

        @sa.event.listens_for(database.engine, "begin")
        def begin(connection: sa.Connection) -> None:
            if connection.get_execution_options().get("writes"):
                connection.exec_driver_sql(FULL[connection.dialect.name])

        with pytest.raises(openai.InternalServerError, match="nearly full") as refused:
            begun(client, metadata={str(n): "b" * 512 for n in range(16)})
        assert refused.value.status_code == 507 and refused.value.code == "insufficient_storage"
        assert client.fine_tuning.jobs.retrieve(job.id).id == job.id, "what is there can be read"
        sa.event.remove(database.engine, "begin", begin)
    with running(tmp_path / "s", tiny_model_folder, free_bytes=sys.maxsize) as service:
        client = service.client()
        with pytest.raises(openai.InternalServerError, match="nearly full") as refused:
            client.files.create(file=("rows.jsonl", rows(20)), purpose="fine-tune")
        assert refused.value.status_code == 507
        time.sleep(1.2)
        assert [e.message for e in events_of(client, job.id)][-1] == "The disk is nearly full; the job waits."
