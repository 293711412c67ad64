"""Parts of the job service by themselves: blobs, rows, forms, pages, moves, the audit log, webhooks, keys."""

import asyncio
import http.server
import json
import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import openai
import pytest
import sqlalchemy as sa
from tests.postgres import database_url

from luthier.cli.main import main
from luthier.errors import ServeError, StorageError
from luthier.jobs.audit import Audit
from luthier.jobs.blobs import Blobs, TooLarge
from luthier.jobs.database import Database, audit, now, projects, sqlite_url, webhooks
from luthier.jobs.disk import Disk
from luthier.jobs.environment import answering_threads, child_environment, training_threads
from luthier.jobs.file_store import FileStore, Quota
from luthier.jobs.http.multipart import Form, read_form
from luthier.jobs.http.reading import read_as
from luthier.jobs.http.schema import CreateJob, JobsQuery
from luthier.jobs.job_folder import kept_place, kept_steps, remove_model, sweep
from luthier.jobs.job_store import MOVES, Asked, JobStore, Told
from luthier.jobs.pages import Page
from luthier.jobs.results import COLUMNS, as_csv, checkpoint_metrics, metrics_data, step_message
from luthier.jobs.rows import LONGEST_LINE, MOST_BAD, Rows
from luthier.jobs.tenants import Caller, Tenants
from luthier.jobs.translate import hyperparameters_of
from luthier.jobs.webhooks import Target, Webhooks
from luthier.serve.api_error import ApiError

SECRET = "whsec_" + "c2VjcmV0IG9mIG1vcmUgdGhhbiAxNiBieXRlcw=="


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    found = Database(database_url(tmp_path) or sqlite_url(tmp_path / "service.sqlite"))
    yield found
    found.close()


@pytest.fixture
def project(database: Database) -> str:
    return Tenants(database).project("default")


def asked(**changes: Any) -> Asked:
    values: dict[str, Any] = {"model": "m", "base": "b", "training_file": "f", "validation_file": None, "seed": 1}
    return Asked(**{**values, "body": {"model": "m"}, **changes})


# bytes and rows


def test_bytes_are_kept_once_and_only_when_they_are_whole(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path / "files")
    for _ in range(2):
        with blobs.writer(10) as writer:
            writer.write(b"12345")
            writer.write(b"67890")
            digest = writer.finish()
    assert digest == sha256(b"1234567890").hexdigest() and b"".join(blobs.read(digest)) == b"1234567890"
    with pytest.raises(TooLarge), blobs.writer(10) as writer:
        writer.write(b"12345678901")
    with blobs.writer(10) as writer:
        writer.write(b"half")
    assert [path.name for path in (tmp_path / "files").rglob("*") if path.is_file()] == [digest]
    for name in ("../../etc/passwd", "A" * 64, digest[:-1]):
        with pytest.raises(ValueError, match="no sha256"):
            blobs.path(name)


def test_what_a_killed_server_was_receiving_is_removed_by_the_next_one_alone(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    blobs.writer(10).write(b"lost")
    assert list((tmp_path / "incoming").iterdir()), "another process that opens the folder removes nothing"
    Blobs(tmp_path).forget_unfinished()
    assert not list((tmp_path / "incoming").iterdir())


ROW = json.dumps({"messages": [{"role": "user", "content": "a\u2028b"}, {"role": "assistant", "content": "c"}]})


@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
def test_rows_are_counted_however_their_bytes_are_cut(size: int) -> None:
    content = ("\ufeff" + f"{ROW}\n\n{ROW}\r\n{ROW}").encode()
    found = Rows()
    for at in range(0, len(content), size):
        found.feed(content[at : at + size])
    found.finish()
    assert (found.count, found.bad, found.formats) == (3, 0, {"messages": 3}) and found.refusal() is None


def test_bad_lines_are_named_and_a_file_of_another_kind_is_not_read_to_its_end() -> None:
    found = Rows()
    found.feed(f"{ROW}\nno\n[1]\n{{}}\n{ROW}\n".encode())
    assert (found.count, found.bad) == (2, 3)
    assert [problem.partition(":")[0] for problem in found.problems] == ["line 2", "line 3", "line 4"]
    other = Rows()
    other.feed(b"\x00\n" * (MOST_BAD + 10))
    other.feed(b"\x00\n" * 10**5)
    assert other.bad <= MOST_BAD + 10 and "more lines" in str(other.refusal())


def test_an_endless_line_fills_no_memory() -> None:
    found = Rows()
    for _ in range(12):
        found.feed(b"x" * 2**20)
    assert len(found._rest) <= LONGEST_LINE + 1
    found.finish()
    assert "longer than" in found.problems[0]


# forms


class Kept:
    """Takes bytes."""

    def __init__(self) -> None:
        self.content = b""

    def write(self, chunk: bytes) -> None:
        self.content += chunk


def form(parts: list[tuple[str, bytes]], size: int) -> tuple[Form, bytes]:
    head = b"--X\r\nContent-Disposition: form-data; "
    body = b"".join(head + name.encode() + b"\r\n\r\n" + data + b"\r\n" for name, data in parts)
    body += b"--X--\r\n"

    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(body), size):
            yield body[at : at + size]

    kept = Kept()
    return asyncio.run(read_form("multipart/form-data; boundary=X", chunks(), "file", kept)), kept.content


@pytest.mark.parametrize("size", [1, 13, 100_000])
@pytest.mark.parametrize("first", [True, False])
def test_a_form_is_read_whatever_comes_first(size: int, first: bool) -> None:
    file, purpose = ('name="file"; filename="../a/b.jsonl"', b"1\r\n--2"), ('name="purpose"', b"fine-tune")
    found, content = form([file, purpose] if first else [purpose, file], size)
    assert content == b"1\r\n--2" and found.fields == {"purpose": "fine-tune"}
    assert found.filename is not None and "/" not in found.filename


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "no multipart|required"),
        ([('name="purpose"', b"x")], "'file' is required"),
        ([('name="file"; filename="a"', b"1"), ('name="file"; filename="b"', b"2")], "given twice"),
        ([('name="p"', b"1"), ('name="p"', b"2")], "given twice"),
        ([('name="p"', b"x" * 5000)], "at most 4096"),
        ([(f'name="p{n}"', b"x") for n in range(40)], "too many fields"),
    ],
)
def test_a_form_that_cannot_be_meant_is_refused(parts: list[tuple[str, bytes]], message: str) -> None:
    with pytest.raises(ApiError, match=message):
        form(parts, 1000)


# jobs and events


def test_a_job_moves_only_as_the_table_says(database: Database, project: str) -> None:
    store = JobStore(database)
    for start, allowed in MOVES.items():
        for to in MOVES:
            row = store.create(project, asked())
            with database.writing() as connection:
                connection.execute(sa.text("UPDATE jobs SET status = :s WHERE id = :i"), {"s": start, "i": row["id"]})
            if to in allowed:
                assert store.move(row["id"], to, [Told("x", "x")])["status"] == to
            else:
                with pytest.raises(ApiError, match=f"is {start}"):
                    store.move(row["id"], to, [Told("x", "x")])
                messages = [event["message"] for event in store.events(project, row["id"], Page())[0]]
                assert "x" not in messages, "the event and the move are one"


def test_an_event_that_is_told_twice_is_one(database: Database, project: str) -> None:
    store = JobStore(database)
    row = store.create(project, asked())
    told = [Told(f"step {n}", f"Step {n}", "info", "metrics", {"step": n}) for n in range(1, 6)]
    store.note(row["id"], told[:3])
    store.note(row["id"], told)
    rows, more = store.events(project, row["id"], Page(4))
    assert [r["message"] for r in rows] == ["Step 5", "Step 4", "Step 3", "Step 2"] and more
    rest, more = store.events(project, row["id"], Page(4, after=rows[-1]["id"]))
    assert rest[0]["message"] == "Step 1" and len(rest) == 3 and not more
    with pytest.raises(ApiError, match="names nothing"):
        store.events(project, row["id"], Page(4, after="ftevent-none"))


def test_queued_jobs_go_by_priority_and_then_in_order(database: Database, project: str) -> None:
    store = JobStore(database)
    made = [store.create(project, asked())["id"] for _ in range(4)]
    for number in (1, 3):
        store.prioritize(made[number], 5)
    assert [row["id"] for row in store.in_status("validating_files")] == [made[n] for n in (1, 3, 0, 2)]


def test_hyperparameters_are_those_that_say_something() -> None:
    old = {"hyperparameters": {"n_epochs": 2, "batch_size": "auto"}}
    assert hyperparameters_of(old) == {"n_epochs": 2}
    new = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 4}}}
    assert hyperparameters_of({**old, "method": new}) == {"n_epochs": 4}
    assert hyperparameters_of({**old, "method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.3}}}}) == {
        "beta": 0.3
    }


def test_tables_have_both_dialects_of_headers() -> None:
    steps = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25, "validation_loss": 0.4}]
    assert (
        as_csv(steps) == "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy\n1,0.5,,,\n2,0.25,,0.4,\n"
    )
    assert as_csv(steps, "azure").splitlines()[2] == "2,0.25,,0.4,,0.4,"
    full = {**steps[1], "token_accuracy": 0.75, "validation_token_accuracy": 0.5}
    assert as_csv([full]).splitlines()[1] == "2,0.25,0.75,0.4,0.5"
    assert as_csv([full], "azure").splitlines()[1] == "2,0.25,0.75,0.4,0.5,0.4,0.5"
    losses = {"train_loss": 0.25, "valid_loss": 0.4, "full_valid_loss": 0.4}
    measured = losses | {f"{of}_mean_token_accuracy": 0.5 for of in ("valid", "full_valid")}
    assert checkpoint_metrics(full) == {"step": 2.0, **measured, "train_mean_token_accuracy": 0.75}
    assert as_csv(steps, "azure").splitlines()[0].split(",") == list(COLUMNS["azure"])
    assert step_message(steps[1], 2) == "Step 2/2: training loss=0.25, validation loss=0.40"
    assert metrics_data(steps[0], None) == {"step": 1, "train_loss": 0.5, "total_steps": None}


def test_a_file_of_two_projects_is_one_and_stays_while_one_has_it(database: Database, tmp_path: Path) -> None:
    tenants, blobs = Tenants(database), Blobs(tmp_path / "files")
    store = FileStore(database, blobs, Quota(project_bytes=10), Disk(tmp_path, 0))
    one, other = tenants.project("one"), tenants.project("other")

    def add(project: str) -> str:
        with store.receiver(project) as received:
            received.write(b"12345")
            return str(store.add(project, "a", "user_data", received)["id"])

    first, second = add(one), add(other)
    store.delete(one, first)
    assert b"".join(store.content(other, second)) == b"12345"
    store.delete(other, second)
    assert not [path for path in (tmp_path / "files").rglob("*") if path.is_file()]
    add(one)
    add(one)
    with pytest.raises(ApiError, match="may keep 10"):
        add(one)


def test_a_file_that_is_deleted_while_it_is_asked_for_is_no_such_file(database: Database, tmp_path: Path) -> None:
    project = Tenants(database).project("default")

    class Late(Blobs):
        def read(self, digest: str) -> Iterator[bytes]:
            """After somebody else had their turn."""
            store.delete(project, file)
            return super().read(digest)

    store = FileStore(database, Late(tmp_path / "files"), Quota(), Disk(tmp_path, 0))
    with store.receiver(project) as received:
        received.write(b"12345")
        file = str(store.add(project, "a", "user_data", received)["id"])
    with pytest.raises(ApiError, match="file") as caught:
        store.content(project, file)
    assert caught.value.status == 404


# the audit log, keys, the database


CALLER = Caller("key_1", "proj_1", "member")


def test_a_changed_a_missing_and_an_added_entry_break_the_chain_at_their_place(database: Database) -> None:
    added = audit.insert().values(at=1, key_id="k", project_id="p", action="a", object_id="o", chain="0" * 64)
    for change, entry, place in (
        (audit.update().values(object_id="other"), 2, 2),
        (audit.delete(), 3, 3),
        (added, None, 6),
    ):
        log = Audit(database)
        with database.writing() as connection:
            connection.execute(audit.delete())
        for number in range(5):
            log.note(CALLER, "POST /v1/files", f"file-{number}")
        whole = log.verify()
        assert (whole.entries, whole.broken_at) == (5, None)
        at = None if entry is None else log.listed()[entry - 1]["seq"]
        with database.writing() as connection:
            connection.execute(change if isinstance(change, sa.Insert) else change.where(audit.c.seq == at))
        assert log.verify().broken_at == place


def test_keys_are_shown_once_listed_without_what_opens_and_revoked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["service", "--data", str(tmp_path / "s")]
    for action in (["keys"], ["revoke", "key_1"], ["audit"]):
        assert main([*base, *action]) == 2 and "no service" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()
    assert main([*base, "new-key", "laptop", "--admin"]) == 0
    secret = capsys.readouterr().out.strip()
    assert secret.startswith("sk-luthier-") and len(secret) > 40
    assert main([*base, "keys"]) == 0
    listed = capsys.readouterr().out
    assert "admin" in listed and "laptop" in listed and secret not in listed
    assert secret.encode() not in (tmp_path / "s/service.sqlite").read_bytes()
    assert main([*base, "revoke", listed.split()[0]]) == 0
    assert main([*base, "revoke", listed.split()[0]]) == 2
    assert main([*base, "audit"]) == 0
    assert "0 entries, whole" in capsys.readouterr().out


def test_a_database_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "a.sqlite")
    database = Database(url)
    with database.writing() as connection:
        connection.execute(sa.text("INSERT INTO migrations VALUES ('from the future', 1)"))
    database.close()
    with pytest.raises(StorageError, match="newer version"):
        Database(url)
    with pytest.raises(StorageError, match="cannot be opened"):
        Database("sqlite:////no/such/folder/a.sqlite")


def test_what_was_begun_in_a_transaction_that_failed_is_not_there(database: Database) -> None:
    with pytest.raises(ValueError, match="stop"), database.writing() as connection:
        connection.execute(projects.insert().values(id="p", created_at=1, name="p"))
        raise ValueError("stop")
    with database.reading() as connection:
        assert not connection.scalar(sa.select(sa.func.count()).select_from(projects))


# webhooks


@contextmanager
def receiver(statuses: list[int]) -> Iterator[tuple[str, list[tuple[dict[str, str], bytes]]]]:
    """A server that takes requests, and answers with these statuses in turn."""
    got: list[tuple[dict[str, str], bytes]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        """Keeps what comes."""

        def do_POST(self) -> None:
            """Keep it."""
            got.append((dict(self.headers), self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(statuses[min(len(got), len(statuses)) - 1])
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}/hook", got
        listening.shutdown()


def test_an_end_is_told_until_it_is_taken_and_openais_client_believes_it(database: Database, project: str) -> None:
    store = JobStore(database)
    row = store.create(project, asked())
    store.move(row["id"], "queued", [])
    store.move(row["id"], "running", [])
    store.move(row["id"], "succeeded", [])
    with receiver([500, 200]) as (url, got):
        sender = Webhooks(database, Target(url, SECRET))
        for _ in range(3):
            sender.send_due()
            with database.writing() as connection:
                connection.execute(webhooks.update().values(next_at=0))
    assert len(got) == 2 and got[0][0]["webhook-id"] == got[1][0]["webhook-id"]
    client = openai.OpenAI(api_key="x", webhook_secret=SECRET)
    headers, body = got[1]
    event = client.webhooks.unwrap(body.decode(), headers)
    assert event.type == "fine_tuning.job.succeeded" and event.data.id == row["id"]
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.unwrap(body.decode().replace("succeeded", "failed"), headers)


def test_an_address_that_is_given_later_is_not_told_of_ends_of_long_ago(database: Database, project: str) -> None:
    store = JobStore(database)
    for days in (4, 1):
        row = store.create(project, asked())
        store.move(row["id"], "cancelled", [])
        with database.writing() as connection:
            made = webhooks.update().where(webhooks.c.object_id == row["id"])
            connection.execute(made.values(created_at=now() - days * 86_400))
    with receiver([200]) as (url, got):
        Webhooks(database, Target(url, SECRET)).send_due()
    assert [json.loads(body)["data"]["id"] for _, body in got] == [row["id"]]


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_c2hvcnQ=", SECRET[6:], "whsec_!"])
def test_a_secret_that_protects_nothing_is_refused(database: Database, secret: str) -> None:
    with pytest.raises(ServeError, match="whsec_"):
        Webhooks(database, Target("http://127.0.0.1:1", secret))


def test_only_steps_whose_adapter_is_whole_are_kept_ones(tmp_path: Path) -> None:
    for step in (20, 3, 100):
        (kept_place(tmp_path, step) / "adapter").mkdir(parents=True)
    (kept_place(tmp_path, 200) / ".adapter.tmp").mkdir(parents=True)  # the process was killed while it wrote
    assert list(kept_steps(tmp_path).items()) == [(step, kept_place(tmp_path, step)) for step in (3, 20, 100)]


# what is wrong with a request


@pytest.mark.parametrize(
    ("given", "param", "said"),
    [
        ({"hyperparameters": {"batch_size": 5000}}, "hyperparameters.batch_size", "'auto' or .* equal to 4096"),
        ({"hyperparameters": {"n_epochs": 3.0}}, "hyperparameters.n_epochs", "'auto' or .* valid integer"),
        ({"metadata": {"": "x"}}, "metadata", "at least 1 character"),
        ({"sed": 1}, "sed", "did you mean 'seed'"),
    ],
)
def test_of_a_field_that_may_be_several_things_all_are_told(given: dict[str, Any], param: str, said: str) -> None:
    with pytest.raises(ApiError, match=said) as found:
        read_as({"model": "m", "training_file": "f", **given}, CreateJob)
    assert str(found.value.param).startswith(param)


@pytest.mark.parametrize(
    "text", ["metadata[]=x", "metadata[a][b]=x", "metadata[a]=x&metadata=null", "metadata=x", "limit=+1", "limit=1&x=2"]
)
def test_a_query_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(ApiError):
        read_as(JobsQuery.values(parse_qsl(text)), JobsQuery)


def test_a_query_of_metadata_is_by_key_or_for_none() -> None:
    assert read_as(JobsQuery.values([("metadata[a]", "x"), ("limit", "3")]), JobsQuery).metadata == {"a": "x"}
    assert read_as(JobsQuery.values([("metadata", "null")]), JobsQuery).metadata is None
    assert read_as(JobsQuery.values([]), JobsQuery).metadata == {}


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ("x", "'limit': expected a whole number."),
        ("-1", "'limit': expected a whole number."),
        ("101", "'limit': Input should be less than or equal to 100."),
    ],
)
def test_a_limit_that_is_none_is_out_of_range(limit: str, said: str) -> None:
    with pytest.raises(ApiError) as found:
        read_as(JobsQuery.values([("limit", limit)]), JobsQuery)
    assert (found.value.message, found.value.code) == (said, "out_of_range")


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"seed": -1}, "out_of_range"),
        ({"seed": 2**31}, "out_of_range"),
        ({"seed": "1"}, "invalid_value"),
        ({"sed": 1}, "unknown_parameter"),
    ],
)
def test_the_code_of_a_wrong_value(values: dict[str, Any], code: str) -> None:
    with pytest.raises(ApiError) as found:
        read_as({"model": "m", "training_file": "f", **values}, CreateJob)
    assert found.value.code == code


def test_jobs_and_answers_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = len(os.sched_getaffinity(0))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    training, answering = (int(given(1)["OMP_NUM_THREADS"]) for given in (training_threads, answering_threads))
    assert training >= answering >= 1 and training + answering == max(cores, 2)
    assert training_threads(cores + 1) == training_threads(10**6) == {"OMP_NUM_THREADS": "1"}
    assert answering_threads(0) == {"OMP_NUM_THREADS": str(cores)}, "nothing trains here"
    assert child_environment(training_threads(1))["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert child_environment(training_threads(1))["OMP_NUM_THREADS"] == "7", "the operator's"


def test_what_a_killed_deletion_left_is_removed_at_the_next_start(tmp_path: Path) -> None:
    for job in ("whole", "steps", "gone", "elsewhere"):
        for place in (tmp_path / job / "run", *(kept_place(tmp_path / job / "run", step) for step in (1, 2))):
            (place / "adapter").mkdir(parents=True)
    half = tmp_path / "whole" / "run" / "adapter.0a.gone"
    half.mkdir()
    sweep(
        tmp_path,
        {
            "whole": {"whole/run", "whole/run/kept/step-000001", "whole/run/kept/step-000002"},
            "steps": {"steps/run/kept/step-000002"},
            "gone": set(),
            "elsewhere": {"/another/place/elsewhere/run"},
        },
    )
    left = {str(path.parent.relative_to(tmp_path)) for path in tmp_path.rglob("adapter")}
    assert left == {
        *("whole/run", "whole/run/kept/step-000001", "whole/run/kept/step-000002", "steps/run/kept/step-000002"),
        *("elsewhere/run", "elsewhere/run/kept/step-000001", "elsewhere/run/kept/step-000002"),
    }
    assert not half.exists() and not (tmp_path / "gone").exists()
    remove_model(tmp_path, "whole", "whole/run", is_last=False)
    assert not (tmp_path / "whole/run/adapter").exists() and len(kept_steps(tmp_path / "whole/run")) == 2


def test_a_job_has_the_places_of_its_models_until_they_are_deleted(database: Database) -> None:
    store, project = JobStore(database), Tenants(database).project("one")
    made = store.create(project, asked())
    assert store.places() == {}, "it has not succeeded"
    store.move(made["id"], "queued", [])
    store.move(made["id"], "running", [])
    store.add_model(made, "ft:a", f"{made['id']}/run")
    store.move(made["id"], "succeeded", [])
    assert store.places() == {made["id"]: {f"{made['id']}/run"}}
    assert store.delete_model(project, "ft:a")[1] and store.places() == {made["id"]: set()}
