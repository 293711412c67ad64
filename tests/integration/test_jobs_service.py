"""The unmodified `openai` client and our job service: upload, train, follow, chat."""

import csv
import io
import json
import re
from typing import Any

import httpx2
import openai
import pytest
from tests.jobs_service import MODEL, Running, events_of, rows, wait_for

NEAR = {
    "type": "text_similarity",
    "name": "near it",
    "input": "{{sample.output_text}}",
    "reference": "{{item.wanted}}",
    "evaluation_metric": "fuzzy_match",
}


@pytest.fixture(scope="module")
def done(client: openai.OpenAI) -> Any:
    """A job that ended."""
    file = client.files.create(file=("rows.jsonl", rows()), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model=MODEL,
        training_file=file.id,
        suffix="short",
        seed=7,
        metadata={"team": "a"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 8}}},
    )
    assert job.status == "validating_files" and job.hyperparameters.learning_rate_multiplier == "auto"
    return wait_for(client, job.id)


def test_a_job_is_trained_and_tells_what_was_picked(client: openai.OpenAI, done: Any) -> None:
    assert done.status == "succeeded" and done.error is None
    assert done.fine_tuned_model == f"ft:{MODEL}:luthier:short:{done.id[-8:]}"
    assert (done.hyperparameters.n_epochs, done.hyperparameters.batch_size) == (2, 8)
    assert done.hyperparameters.learning_rate_multiplier == 1.0 and done.seed == 7
    assert done.trained_tokens > 100 and done.finished_at >= done.created_at
    assert done.method.supervised.hyperparameters.n_epochs == 2


def test_every_step_is_one_event_in_order(client: openai.OpenAI, done: Any) -> None:
    events = events_of(client, done.id)
    steps = [event.data["step"] for event in events if event.type == "metrics"]
    total = events[-3].data["total_steps"]
    assert steps == list(range(1, total + 1)) and total >= 10
    assert [event.message for event in events[-2:]] == [
        f"New fine-tuned model created: {done.fine_tuned_model}",
        "The job has successfully completed",
    ]
    assert len({event.id for event in events}) == len(events)
    validated = [event for event in events if event.type == "metrics" and "valid_loss" in event.data]
    assert len(validated) >= 3 and f"/{total}: training loss=" in validated[0].message


def test_the_result_file_has_a_line_for_each_step(client: openai.OpenAI, done: Any) -> None:
    (file_id,) = done.result_files
    table = list(csv.DictReader(io.StringIO(client.files.content(file_id).text)))
    assert [int(line["step"]) for line in table] == list(range(1, len(table) + 1))
    assert client.files.retrieve(file_id).purpose == "fine-tune-results"
    told = [event.data for event in events_of(client, done.id) if event.type == "metrics"]
    for column, name in (("train_loss", "train_loss"), ("train_accuracy", "train_mean_token_accuracy")):
        assert [float(line[column]) for line in table] == [data[name] for data in told]
    assert all(0 <= data["train_mean_token_accuracy"] <= 1 for data in told)
    validated = {data["step"]: data["full_valid_mean_token_accuracy"] for data in told if "valid_loss" in data}
    assert {int(line["step"]) for line in table if line["valid_mean_token_accuracy"]} == validated.keys()
    for kept in client.fine_tuning.jobs.checkpoints.list(done.id):
        assert kept.metrics.full_valid_mean_token_accuracy == validated[kept.step_number]


def test_the_model_and_its_checkpoints_answer_under_their_names(client: openai.OpenAI, done: Any) -> None:
    messages: Any = [{"role": "user", "content": "Say 0-3."}]
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(done.id))
    assert 1 <= len(checkpoints) <= 3 and checkpoints[0].step_number > checkpoints[-1].step_number
    said = {}
    for name in (done.fine_tuned_model, *(one.fine_tuned_model_checkpoint for one in checkpoints)):
        answer = client.chat.completions.create(model=name, messages=messages, max_tokens=8, temperature=0)
        assert answer.model == name
        said[name] = answer.choices[0].message.content
        assert name in [model.id for model in client.models.list()]
    best = f"{done.fine_tuned_model}:ckpt-step-{checkpoints[0].step_number}"
    assert best in said
    chunks = list(
        client.chat.completions.create(
            model=done.fine_tuned_model, messages=messages, max_tokens=8, temperature=0, stream=True
        )
    )
    assert {chunk.model for chunk in chunks} == {done.fine_tuned_model}
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == said[done.fine_tuned_model]
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        client.chat.completions.create(model=done.fine_tuned_model, messages=messages, max_tokens=-1)
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-5", messages=messages)


def test_the_base_answers_too_and_what_a_job_made_joins_it(client: openai.OpenAI, done: Any) -> None:
    asked: Any = {"messages": [{"role": "user", "content": "Say 0-3."}], "max_tokens": 8, "temperature": 0}
    base, tuned = (client.chat.completions.create(model=name, **asked) for name in (MODEL, done.fine_tuned_model))
    assert base.model == MODEL and tuned.model == done.fine_tuned_model
    assert base.system_fingerprint != tuned.system_fingerprint


def test_jobs_are_found_by_their_metadata(client: openai.OpenAI, done: Any) -> None:
    assert done.id in [job.id for job in client.fine_tuning.jobs.list(metadata={"team": "a"})]
    assert done.id not in [job.id for job in client.fine_tuning.jobs.list(metadata={"team": "b"})]


def test_what_belongs_to_a_project_does_not_exist_for_another(
    service: Running, client: openai.OpenAI, done: Any
) -> None:
    other = service.client("another")
    for call in (
        lambda: other.fine_tuning.jobs.retrieve(done.id),
        lambda: other.fine_tuning.jobs.cancel(done.id),
        lambda: other.fine_tuning.jobs.list_events(done.id),
        lambda: other.fine_tuning.jobs.checkpoints.list(done.id),
        lambda: other.files.retrieve(done.training_file),
        lambda: other.files.content(done.training_file),
        lambda: other.files.delete(done.training_file),
        lambda: other.models.delete(done.fine_tuned_model),
        lambda: other.models.retrieve(done.fine_tuned_model),
        lambda: other.chat.completions.create(
            model=done.fine_tuned_model, messages=[{"role": "user", "content": "Hi"}], max_tokens=2
        ),
    ):
        with pytest.raises(openai.NotFoundError):
            call()
    assert not list(other.files.list()) and not list(other.fine_tuning.jobs.list())
    with pytest.raises(openai.BadRequestError, match="No such file"):
        other.fine_tuning.jobs.create(model=MODEL, training_file=done.training_file)


def test_a_grant_lets_another_project_ask_a_model(service: Running, done: Any) -> None:
    admin, other = service.client("default", "admin"), service.client("granted")
    project = service.service.tenants.project("granted")
    with pytest.raises(openai.PermissionDeniedError):
        service.client().fine_tuning.checkpoints.permissions.create(done.fine_tuned_model, project_ids=[project])
    (grant,) = admin.fine_tuning.checkpoints.permissions.create(done.fine_tuned_model, project_ids=[project])
    asked: Any = {"model": done.fine_tuned_model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    assert other.chat.completions.create(**asked).choices
    with pytest.raises(openai.NotFoundError):
        other.models.delete(done.fine_tuned_model)
    admin.fine_tuning.checkpoints.permissions.delete(grant.id, fine_tuned_model_checkpoint=done.fine_tuned_model)
    with pytest.raises(openai.NotFoundError):
        other.chat.completions.create(**asked)


def test_a_paused_job_goes_on_and_a_cancelled_one_does_not(client: openai.OpenAI) -> None:
    file = client.files.create(file=("rows.jsonl", rows(200, seed=3)), purpose="fine-tune")
    asked: Any = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 8, "batch_size": 1}}}
    job = client.fine_tuning.jobs.create(model=MODEL, training_file=file.id, method=asked)
    wait_for(client, job.id, ("running",))
    paused = client.fine_tuning.jobs.pause(job.id)
    assert paused.status == "queued" and paused.model_extra and paused.model_extra["paused"]
    resumed = client.fine_tuning.jobs.resume(job.id)
    assert resumed.model_extra and not resumed.model_extra["paused"]
    wait_for(client, job.id, ("running",))
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError, match="is cancelled"):
        client.fine_tuning.jobs.resume(job.id)
    messages = [event.message for event in events_of(client, job.id)]
    assert [m for m in messages if m.startswith("The job was")] == [
        "The job was paused",
        "The job was resumed",
        "The job was cancelled",
    ]


def test_a_model_learns_from_a_grader(client: openai.OpenAI) -> None:
    asked = [{"messages": [{"role": "user", "content": f"Say {i}."}], "wanted": f"Say {i}."} for i in range(20)]
    content = "\n".join(json.dumps(row) for row in asked).encode()
    file = client.files.create(file=("asked.jsonl", content), purpose="fine-tune")
    settings: Any = {"batch_size": 4, "compute_multiplier": 0.5, "eval_interval": 2, "eval_samples": 3, "n_epochs": 1}
    method: Any = {"type": "reinforcement", "reinforcement": {"grader": NEAR, "hyperparameters": settings}}
    job = client.fine_tuning.jobs.create(model=MODEL, training_file=file.id, method=method, seed=1)
    ended = wait_for(client, job.id)
    assert ended.status == "succeeded", ended.error
    assert ended.fine_tuned_model
    figures = [event.data for event in events_of(client, job.id) if event.type == "metrics"]
    assert figures and all(0 <= one["train_mean_reward"] <= 1 for one in figures)
    assert figures[0]["scores"]["train_reward_mean"] == figures[0]["train_mean_reward"]
    assert any("full_valid_mean_reward" in one for one in figures)


def test_the_same_request_with_the_same_key_is_one_job(client: openai.OpenAI) -> None:
    file = client.files.create(file=("rows.jsonl", rows(20, seed=9)), purpose="fine-tune")
    headers = {"Idempotency-Key": "once"}
    made = [client.fine_tuning.jobs.create(model=MODEL, training_file=file.id, extra_headers=headers) for _ in range(3)]
    assert len({job.id for job in made}) == 1
    with pytest.raises(openai.ConflictError, match="another request"):
        client.fine_tuning.jobs.create(model=MODEL, training_file=file.id, suffix="x", extra_headers=headers)
    client.fine_tuning.jobs.cancel(made[0].id)


def test_rows_of_another_kind_than_the_method_fail_the_job_with_a_reason(client: openai.OpenAI) -> None:
    file = client.files.create(file=("rows.jsonl", rows(20)), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model=MODEL, training_file=file.id, method={"type": "dpo"})
    failed = wait_for(client, job.id)
    assert failed.status == "failed" and failed.error.code == "invalid_training_file"
    assert "preferred_output" in failed.error.message and "/" not in failed.error.message.split("trained on")[0]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"model": "gpt-9"}, "cannot be fine-tuned here"),
        ({"training_file": "file-none"}, "No such file"),
        ({"suffix": ""}, "suffix"),
        ({"hyperparameters": {"n_epochs": 0}}, "n_epochs"),
        ({"method": {"type": "reinforcement"}}, "names the grader"),
        ({"method": {"type": "reinforcement", "reinforcement": {"grader": {}}}}, "grader.type"),
        (
            {"method": {"type": "reinforcement", "reinforcement": {"grader": {"type": "json_schema", "name": "x"}}}},
            "does not have",
        ),
        (
            {"method": {"type": "reinforcement", "reinforcement": {"grader": NEAR, "response_format": {}}}},
            "response_format",
        ),
        ({"extra_body": {"learning_rate": 1}}, "Unknown field"),
        ({"metadata": {"a" * 65: "b"}}, "metadata"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(client: openai.OpenAI, done: Any, asked: Any, message: str) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        client.fine_tuning.jobs.create(**{"model": MODEL, "training_file": done.training_file, **asked})


def test_an_upload_in_parts_is_one_file(service: Running, client: openai.OpenAI) -> None:
    content = rows(30)
    upload = client.uploads.create(
        bytes=len(content), filename="big.jsonl", mime_type="application/jsonl", purpose="fine-tune"
    )
    parts = [client.uploads.parts.create(upload.id, data=part).id for part in (content[:100], content[100:])]
    with pytest.raises(openai.BadRequestError, match="given twice"):
        client.uploads.complete(upload.id, part_ids=[parts[0], parts[0]])
    done = client.uploads.complete(upload.id, part_ids=parts)
    assert done.status == "completed" and done.file
    assert client.files.content(done.file.id).read() == content
    with pytest.raises(openai.BadRequestError, match="is completed"):
        client.uploads.cancel(upload.id)
    noted = {row["object_id"] for row in service.service.audit.listed() if "uploads" in row["action"]}
    assert noted >= {upload.id, *parts}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no rows"),
        (b"no json\n", "line 1"),
        (rows(3) + b'{"messages": [{"role": "user"', "line 4"),
        (rows(2) + b'{"prompt": "a", "completion": "b"}\n', "several kinds"),
        (b'{"messages": [{"role": "robot", "content": "x"}]}\n', "line 1"),
        (b"\xff\xfe\n", "line 1"),
    ],
)
def test_a_bad_training_file_is_refused_with_its_line(client: openai.OpenAI, content: bytes, message: str) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        client.files.create(file=("bad.jsonl", content), purpose="fine-tune")


def test_every_change_is_in_the_audit_log_and_no_question_is(service: Running, done: Any) -> None:
    log = service.service.audit
    entries = [(row["action"], row["object_id"]) for row in log.listed()]
    assert ("POST /v1/fine_tuning/jobs", done.id) in entries and ("POST /v1/files", done.training_file) in entries
    assert not [action for action, _ in entries if "chat" in action or action.startswith("GET")]
    assert log.verify().broken_at is None and log.verify().entries == len(entries)


def test_health_is_free_and_figures_are_for_an_admin(service: Running, done: Any) -> None:
    url = service.url.removesuffix("/v1")
    assert httpx2.get(f"{url}/healthz").json() == {"status": "ok"}
    assert httpx2.get(f"{url}/readyz").json() == {"status": "ready"}
    assert httpx2.get(f"{url}/metrics").status_code == 401

    def figures(role: Any) -> httpx2.Response:
        key = service.client("default", role).api_key
        return httpx2.get(f"{url}/metrics", headers={"authorization": f"Bearer {key}"})

    assert figures("member").status_code == 403
    text = figures("admin").text
    assert re.search(r'luthier_jobs\{status="succeeded"\} [1-9]', text)
    assert 'luthier_requests_total{method="GET",route="/v1/fine_tuning/jobs/{job_id}",status="200"}' in text
    assert done.id not in text and 'route="-",status="401"' not in text
