"""Jobs that ask for Weights & Biases, as OpenAI's client does; kept in files, so that they can be read back."""

from pathlib import Path
from typing import Any

import openai
import pytest
from tests.jobs_service import MODEL, Running, events_of, rows, wait_for
from tests.trackers_read import wandb_history, wandb_records

from luthier.errors import StorageError
from luthier.jobs.environment import WANDB as NAMES, child_environment
from luthier.jobs.tracking import begun, lost
from luthier.run_folder import TRACKING, RunFolder

CANARY = "canary0123456789canary0123456789canary01"
WANDB = {"project": "addresses", "entity": "team", "name": "first", "tags": ["a"]}


def create(client: openai.OpenAI, *wandb: dict[str, Any]) -> Any:
    file = client.files.create(file=("rows.jsonl", rows()), purpose="fine-tune")
    integrations: Any = [{"type": "wandb", "wandb": one} for one in wandb]
    hyperparameters: Any = {"n_epochs": 1, "batch_size": 8}
    return client.fine_tuning.jobs.create(
        model=MODEL, training_file=file.id, integrations=integrations, hyperparameters=hyperparameters
    )


def test_a_job_is_followed_and_tells_nobody_the_key_or_a_place(
    service: Running, monkeypatch: pytest.MonkeyPatch, tiny_model_folder: Path
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", CANARY)
    client = service.client()
    job = create(client, WANDB)
    assert job.integrations[0].to_dict() == {"type": "wandb", "wandb": WANDB}
    done = wait_for(client, job.id)
    assert done.status == "succeeded" and done.integrations == job.integrations
    home = service.service.supervisor.folder_of(service.service.jobs.in_status("succeeded")[0])
    events = events_of(client, job.id)
    steps = [event.data["step"] for event in events if event.type == "metrics"]
    assert [step["_step"] for step in wandb_history(home / "run")] == steps and len(steps) >= 5
    (run,) = wandb_records(home / "run", "run")
    assert (run.project, run.entity, run.display_name, list(run.tags)) == ("addresses", "team", "first", ["a"])
    (told,) = [event.message for event in events if event.message.startswith("Tracking")]
    assert told == f"Tracking began: wandb has the job as run {run.run_id}"
    sent = b"".join(path.read_bytes() for path in (home / "run/wandb").rglob("*.wandb"))
    assert job.id.encode() in sent
    for place in (str(home), str(tiny_model_folder)):
        assert place.encode() not in sent
    kept = [path for path in home.parent.parent.rglob("*") if path.is_file()]
    assert not [path for path in kept if CANARY.encode() in path.read_bytes()]


def test_what_cannot_be_tracked_is_refused_at_once(service: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    client = service.client()
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(openai.BadRequestError, match="WANDB_API_KEY") as refused:
        create(client, WANDB)
    assert refused.value.param == "integrations"
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(openai.BadRequestError, match=r"integrations\.wandb_2\.project"):
        create(client, WANDB, {"project": "../a"})
    assert not list(client.fine_tuning.jobs.list())[1:]


def test_a_job_without_integrations_never_sees_the_key(service: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, CANARY)
    assert CANARY not in child_environment({}).values()
    assert list(child_environment({}, NAMES).values()).count(CANARY) == len(NAMES)


def test_steps_that_were_lost_are_told(tmp_path: Path) -> None:
    assert begun(tmp_path) == lost(tmp_path) == []
    entry = {"id": "a1", "place": "https://wandb.test/a1", "described": True, "told": 4}
    RunFolder(tmp_path).write(TRACKING, {"wandb": {**entry, "untold": 3}, "wandb_2": {"id": "a2", "place": "/here"}})
    assert [told.message for told in begun(tmp_path)] == [
        "Tracking began: wandb has the job as run a1: https://wandb.test/a1"
    ]
    (told,) = lost(tmp_path)
    assert (told.level, told.message) == ("warn", "Tracking: wandb was not told of 3 steps")
    (tmp_path / TRACKING).write_text("{")
    with pytest.raises(StorageError, match=f"{TRACKING} is damaged"):
        lost(tmp_path)
