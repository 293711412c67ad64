"""Jobs that go on from a model that a job made: supervised, then preferences, then chat, by the real client."""

import json
import time
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.jobs_service import MODEL, Running, events_of, rows, wait_for

from luthier.jobs.job_folder import kept_place
from luthier.jobs.job_store import Asked
from luthier.jobs.pages import Page
from luthier.jobs.service import Options, open_service
from luthier.jobs.supervisor import _Log

pytestmark = pytest.mark.slow  # jobs train


def preferences(count: int = 24) -> bytes:
    """Pairs of replies, as OpenAI's files have them."""

    def said(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text}]

    made = [
        {
            "input": {"messages": [{"role": "user", "content": f"Say 0-{n}."}]},
            "preferred_output": said(f"It is {n}!"),
            "non_preferred_output": said(f"No {n}."),
        }
        for n in range(count)
    ]
    return "".join(json.dumps(row) + "\n" for row in made).encode()


@pytest.fixture(scope="module")
def supervised(client: openai.OpenAI) -> Any:
    """A supervised job that ended."""
    file = client.files.create(file=("rows.jsonl", rows(40)), purpose="fine-tune")
    asked: Any = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 8}}}
    job = client.fine_tuning.jobs.create(model=MODEL, training_file=file.id, suffix="a:b", method=asked)
    return wait_for(client, job.id)


def prefer(client: openai.OpenAI, model: str, **more: Any) -> Any:
    file = client.files.create(file=("pairs.jsonl", preferences()), purpose="fine-tune")
    asked: Any = {"type": "dpo", "dpo": {"hyperparameters": {"n_epochs": 1, "batch_size": 8, "beta": 0.2}}}
    return client.fine_tuning.jobs.create(model=model, training_file=file.id, method=asked, **more)


def folder_of(service: Running, job: Any) -> Path:
    return service.service.supervisor.folder_of(service.service.jobs.get(job.organization_id, job.id))


def test_preferences_go_on_from_the_supervised_model_and_answer(
    service: Running, client: openai.OpenAI, supervised: Any
) -> None:
    job = wait_for(client, prefer(client, supervised.fine_tuned_model, suffix="liked").id)
    assert job.status == "succeeded", job.error
    assert job.model == supervised.fine_tuned_model
    assert job.fine_tuned_model == f"ft:{MODEL}:luthier:liked:{job.id[-8:]}"
    assert job.method.dpo.hyperparameters.beta == 0.2
    losses = [event.data["train_loss"] for event in events_of(client, job.id) if event.type == "metrics"]
    assert losses[0] == pytest.approx(0.6931, abs=1e-4), "the reference is where it starts"
    folders = {one.id: folder_of(service, one) for one in (supervised, job)}
    began, left = (
        json.loads((folders[one] / name).read_text())
        for one, name in ((job.id, "run/adapter/run.json"), (supervised.id, "run/adapter/run.json"))
    )
    assert began["started_from"]["files"] == left["files"] and began["started_from"]["training"] == left["training"]
    assert began["recipe"]["adapter"] == {**left["recipe"]["adapter"], "start_from": str(folders[job.id] / "start")}
    asked: Any = {"messages": [{"role": "user", "content": "Say 0-3."}], "max_tokens": 8, "temperature": 0}
    names = [supervised.fine_tuned_model, job.fine_tuned_model]
    answers = [client.chat.completions.create(model=name, **asked) for name in names]
    assert [answer.model for answer in answers] == names
    assert len({answer.system_fingerprint for answer in answers}) == 2


def test_preferences_train_a_model_that_judges_and_answers_nothing(client: openai.OpenAI) -> None:
    file = client.files.create(file=("pairs.jsonl", preferences()), purpose="fine-tune")
    asked: Any = {"type": "reward", "reward": {"hyperparameters": {"n_epochs": 2, "batch_size": 8}}}
    job = wait_for(client, client.fine_tuning.jobs.create(model=MODEL, training_file=file.id, method=asked).id)
    assert job.status == "succeeded", job.error
    told = [event.data for event in events_of(client, job.id) if event.type == "metrics"]
    assert all(0 <= step["accuracy"] <= 1 and "train_mean_reward" not in step for step in told)
    chat: Any = {"messages": [{"role": "user", "content": "Say 0-3."}]}
    with pytest.raises(openai.BadRequestError, match="it judges answers, and writes none"):
        client.chat.completions.create(model=job.fine_tuned_model, **chat)


def test_a_checkpoint_is_gone_on_from_in_a_project_that_was_granted_it(
    service: Running, client: openai.OpenAI, supervised: Any
) -> None:
    checkpoint = list(client.fine_tuning.jobs.checkpoints.list(supervised.id))[-1].fine_tuned_model_checkpoint
    other, admin = service.client("granted"), service.client("default", "admin")
    with pytest.raises(openai.BadRequestError, match="cannot be fine-tuned further: no such model"):
        prefer(other, checkpoint)
    project = service.service.tenants.project("granted")
    admin.fine_tuning.checkpoints.permissions.create(checkpoint, project_ids=[project])
    job = wait_for(other, prefer(other, checkpoint).id, ("queued", "running"))
    assert job.model == checkpoint
    kept = kept_place(folder_of(service, supervised) / "run", int(checkpoint.rpartition("-")[2]))
    took, gave = ((place / "adapter/run.json").read_bytes() for place in (folder_of(service, job) / "start", kept))
    assert took == gave
    other.fine_tuning.jobs.cancel(job.id)


def test_the_last_step_is_a_checkpoint_although_its_weights_come_after_its_line(tmp_path: Path) -> None:
    """Whoever looks between the line of the last step and what is kept of it finds no further line afterwards."""
    with open_service(Options(tmp_path, bases=("some-base",))) as service:
        project = service.tenants.project("default")
        row = service.jobs.create(
            project, Asked("some-base", "some-base", "file-none", None, 0, {"model": "some-base"})
        )
        run, log = service.supervisor.folder_of(row) / "run", _Log()

        def keep(step: int) -> None:
            (kept_place(run, step) / "adapter").mkdir(parents=True)

        def seen() -> list[int]:
            service.supervisor._read_log(row, log)
            return sorted(one["step_number"] for one in service.jobs.checkpoints(project, row["id"], Page(9))[0])

        keep(1)
        (run / "metrics.jsonl").write_text(
            "".join(json.dumps({"step": n, "loss": 1.0, "validation_loss": 1.0, "seconds": 0.1}) + "\n" for n in (1, 2))
        )
        assert seen() == [1]
        keep(2)
        (kept_place(run, 1) / "adapter").rmdir()
        assert seen() == [2]


def test_a_model_that_is_deleted_before_the_job_begins_fails_it(tmp_path: Path) -> None:
    """The supervisor is driven by hand, so that the deletion comes between."""
    with open_service(Options(tmp_path, bases=("some-base",))) as service:
        project = service.tenants.project("default")

        def ask(model: str) -> Any:
            asked = Asked(model, "some-base", "file-none", None, 0, {"model": model})
            return service.jobs.create(project, asked)

        names = "ft:some-base:luthier::12345678", "ft:some-base:luthier::12345678:ckpt-step-1"
        first = ask("some-base")
        for name in names:
            service.jobs.add_model(first, name, str(tmp_path / "run"))
        (tmp_path / "run/adapter").mkdir(parents=True)
        kept, deleted = (ask(name) for name in names)
        service.jobs.delete_model(project, names[1])
        for _ in range(100):
            service.supervisor.tick()
            if not service.jobs.in_status("validating_files"):
                break
            time.sleep(0.05)
        errors = {row["id"]: service.jobs.get(project, row["id"])["error"] for row in (kept, deleted)}
    assert errors[kept["id"]]["code"] == "invalid_training_file", "the start was there, the file is not"
    assert (errors[deleted["id"]]["code"], errors[deleted["id"]]["param"]) == ("model_not_available", "model")
    assert "was deleted before the job began" in errors[deleted["id"]]["message"]
