"""What the job service keeps to itself: secrets, places, room; and that nothing at all makes it fail."""

import base64
import io
import json
import logging
import os
import re
import shutil
import socket
import stat
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings, strategies as st
from sqlalchemy.exc import SQLAlchemyError
from tests.conforming import generated
from tests.jobs_attack import (
    BOUNDARY,
    EVAL,
    FORM,
    INJECTIONS,
    JSON,
    PARAMETERS,
    RUN,
    TRAVERSAL,
    Belongings,
    Peer,
    form,
    peer,
    port_of,
    routes_of,
    settle,
)
from tests.jobs_service import MODEL, Running, events_of, options_of, rows, running, start, wait_for
from tests.postgres import sqlite_only

from luthier.errors import StorageError
from luthier.jobs.database import projects, webhooks
from luthier.jobs.file_store import Quota
from luthier.jobs.service import Options, alone, open_service
from luthier.jobs.webhooks import Target, Webhooks
from luthier.serve.access_log import JsonLines
from luthier.serve.api_error import ApiError

SECRET = "canary-secret-5f1d77"
ROW = "canary-row-93ba01"
PROMPT = "canary-prompt-08c2ee"
SECRETS = ("AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY", "HF_TOKEN", "PIP_EXTRA_INDEX_URL", "HTTPS_PROXY", "LUTHIER_X")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("service"), tiny_model_folder, at_once=0) as found:
        yield found


@pytest.fixture(scope="module")
def mine(service: Running) -> Belongings:
    return settle(service, "victim")


# room


def test_several_uploads_at_once_do_not_take_the_same_room(tmp_path: Path, tiny_model_folder: Path) -> None:
    with running(tmp_path / "s", tiny_model_folder, at_once=0, quota=Quota(4000, 4000, 10_000)) as service:
        caller = peer(service, "crowd")
        with ThreadPoolExecutor(12) as pool:
            sent = pool.map(lambda n: caller.upload(b"%03d" % n * 1000, purpose="batch").status, range(24))
        statuses = list(sent)
        assert set(statuses) == {200, 413} and 1 <= statuses.count(200) <= 3
        kept = caller.get("/v1/files").values["data"]
        assert sum(file["bytes"] for file in kept) <= 10_000 and len(kept) == statuses.count(200)
        assert not list((tmp_path / "s/files/incoming").iterdir())
        # what was counted while it came is not counted for ever
        for file in kept:
            assert caller.send("DELETE", f"/v1/files/{file['id']}").status == 200
        assert caller.upload(b"x" * 3900, purpose="batch").status == 200


def test_a_slow_upload_does_not_take_the_room_of_one_that_overtook_it(tmp_path: Path, tiny_model_folder: Path) -> None:
    with running(tmp_path / "s", tiny_model_folder, at_once=0, quota=Quota(8000, 8000, 10_000)) as service:
        files, project = service.service.files, service.service.tenants.project("p")
        with files.receiver(project) as slow:
            slow.write(b"x" * 3000)
            with files.receiver(project) as fast:
                fast.write(b"y" * 6000)
                files.add(project, "fast", "batch", fast)
            slow.write(b"x" * 3000)
            with pytest.raises(ApiError, match="may keep"):
                files.add(project, "slow", "batch", slow)


def test_an_upload_takes_the_room_that_it_announced_or_has(tmp_path: Path, tiny_model_folder: Path) -> None:
    with running(tmp_path / "s", tiny_model_folder, at_once=0, quota=Quota(4000, 9000, 10_000)) as service:
        caller = peer(service, "parts")
        asked = {"bytes": 6000, "filename": "a", "mime_type": "text/plain", "purpose": "batch"}
        upload = caller.post("/v1/uploads", asked).values["id"]
        assert caller.post("/v1/uploads", asked).error["code"] == "quota_exceeded"
        assert caller.upload(b"x" * 3000, purpose="batch").status == 200
        assert caller.upload(b"y" * 1001, purpose="batch").status == 413
        path = f"/v1/uploads/{upload}/parts"
        parts = [caller.send("POST", path, form([], "data", "a", b"z" * 3000), FORM) for _ in range(2)]
        assert [part.status for part in parts] == [200, 200]
        again = [caller.send("POST", path, form([], "data", "a", b"z" * 900), FORM) for _ in range(2)]
        assert [part.status for part in again] == [200, 413]
        assert caller.upload(b"y" * 101, purpose="batch").status == 413
        with ThreadPoolExecutor(4) as pool:
            ids = {"part_ids": [part.values["id"] for part in parts]}
            done = list(pool.map(lambda _: caller.post(f"/v1/uploads/{upload}/complete", ids).status, range(4)))
        assert done.count(200) == 1 and set(done) <= {200, 400, 413}
        assert len(caller.get("/v1/files").values["data"]) == 2
        assert caller.upload(b"y" * 1000, purpose="batch").status == 200


def test_slow_graders_keep_nobody_else_waiting(tmp_path: Path, tiny_model_folder: Path) -> None:
    source = "import time\n\ndef grade(sample, item):\n    time.sleep(4)\n    return 1.0\n"
    asked = {"grader": {"type": "python", "name": "slow", "source": source}, "model_sample": "x"}
    with running(tmp_path / "s", tiny_model_folder, at_once=0) as service:
        caller, other = peer(service, "busy"), peer(service, "other")
        crowd = [
            threading.Thread(target=caller.post, args=("/v1/fine_tuning/alpha/graders/run", asked), daemon=True)
            for _ in range(60)
        ]
        for thread in crowd:
            thread.start()
        time.sleep(2)
        started = time.monotonic()
        assert other.get("/v1/files").status == 200
        assert time.monotonic() - started < 1.5


# places


def _modes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): stat.S_IMODE(path.lstat().st_mode) for path in folder.rglob("*")}


@sqlite_only
def test_nobody_else_may_open_what_the_service_keeps(tmp_path: Path, tiny_model_folder: Path) -> None:
    before = os.umask(0)
    try:
        with alone(tmp_path / "s"), running(tmp_path / "s", tiny_model_folder, at_once=0) as service:
            settle(service, "owner")
            modes = {**_modes(tmp_path / "s"), ".": stat.S_IMODE((tmp_path / "s").stat().st_mode)}
    finally:
        os.umask(before)
    assert not {name: oct(mode) for name, mode in modes.items() if mode & 0o077 and not name.startswith("jobs/")}
    assert modes["jobs"] == modes["."] == 0o700 and modes["service.sqlite"] == 0o600
    assert {"service.sqlite-wal", ".lock"} <= modes.keys()


def test_a_folder_of_others_or_of_something_else_is_no_service_s(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir(mode=0o755)
    (tmp_path / "home/diary.txt").write_text("dear")
    (tmp_path / "link").symlink_to(tmp_path / "home")
    for folder in (tmp_path / "home", tmp_path / "link", tmp_path / "home/diary.txt"):
        with pytest.raises(StorageError), open_service(Options(folder)):
            pass
    assert stat.S_IMODE((tmp_path / "home").stat().st_mode) == 0o755
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["diary.txt"]
    (tmp_path / "empty").mkdir(mode=0o777)
    with open_service(Options(tmp_path / "empty")):
        assert stat.S_IMODE((tmp_path / "empty").stat().st_mode) == 0o700


@pytest.mark.parametrize("name", ["files", "files/incoming", "jobs", "service.sqlite", ".lock"])
def test_a_planted_link_is_not_followed_at_the_start(tmp_path: Path, name: str) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file").write_text("keep me")
    link = tmp_path / "s" / name
    link.parent.mkdir(parents=True, mode=0o700)
    (tmp_path / "s").chmod(0o700)
    link.symlink_to(tmp_path / ("outside/file" if "." in name else "outside"))
    with pytest.raises((StorageError, OSError)), alone(tmp_path / "s"), open_service(Options(tmp_path / "s")):
        pass
    assert (tmp_path / "outside/file").read_text() == "keep me"
    assert [path.name for path in (tmp_path / "outside").iterdir()] == ["file"]


def test_a_planted_link_is_not_followed_by_an_upload(tmp_path: Path, tiny_model_folder: Path) -> None:
    (tmp_path / "outside").mkdir()
    with running(tmp_path / "s", tiny_model_folder, at_once=0) as service:
        for number in range(256):
            (tmp_path / f"s/files/{number:02x}").symlink_to(tmp_path / "outside")
        assert peer(service).upload(b"x", purpose="batch").status == 500
        assert not list((tmp_path / "outside").iterdir())
        assert peer(service).get("/v1/files").values["data"] == []
        assert service.wrong.pop().startswith("POST /v1/files 500")  # no route's answer: the folder was tampered with


# secrets


def _environment_of(process: psutil.Process) -> str:
    return Path(f"/proc/{process.pid}/environ").read_text(errors="replace")


def _listening(process: psutil.Process) -> set[tuple[str, int]]:
    return {(c.laddr.ip, c.laddr.port) for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN}


def test_a_whole_life_tells_no_secret_and_opens_no_port(tmp_path: Path, tiny_model_folder: Path) -> None:
    """A service in a process of its own with secrets in its environment: it trains, serves, and ends."""
    folder, log = tmp_path / "s", tmp_path / "log"
    process, url = start(folder, tiny_model_folder, log, more=dict.fromkeys(SECRETS, SECRET))
    children: dict[int, psutil.Process] = {}
    environments, listening = {}, {}
    try:
        with open_service(options_of(folder, tiny_model_folder)) as service:
            keys = [service.tenants.add_key("p", "k", "admin") for _ in range(2)]
        caller = Peer(int(url.rsplit(":", 1)[1].split("/")[0]), keys[0])

        def look() -> None:
            for child in psutil.Process(process.pid).children(recursive=True):
                try:
                    environments[child.pid] = _environment_of(child)
                    listening[child.pid] = (child.cmdline(), _listening(child))
                except (psutil.Error, OSError):
                    continue
                children[child.pid] = child

        content = b"".join(line.replace(b"It is", ROW.encode()) + b"\n" for line in rows(60).splitlines())
        file = caller.upload(content).values["id"]
        assert ROW not in str(
            caller.upload(content + b'{"messages": [{"role": "user", "content": "' + ROW.encode()).body
        )
        body = {"model": MODEL, "training_file": file, "suffix": "$AWS_SECRET_ACCESS_KEY"}
        job = caller.post("/v1/fine_tuning/jobs", {**body, "hyperparameters": {"n_epochs": 1, "batch_size": 8}}).values
        deadline = time.monotonic() + 120
        while job["status"] not in ("succeeded", "failed") and time.monotonic() < deadline:
            look()
            time.sleep(0.1)
            job = caller.get(f"/v1/fine_tuning/jobs/{job['id']}").values
        assert job["status"] == "succeeded", log.read_text()
        chat = {"model": job["fine_tuned_model"], "max_tokens": 2, "messages": [{"role": "user", "content": PROMPT}]}
        assert caller.post("/v1/chat/completions", chat).status == 200
        errors = [caller.post("/v1/chat/completions", {**chat, "max_tokens": -1}).body]
        errors.append(caller.send("POST", "/v1/fine_tuning/jobs", PROMPT.encode(), JSON).body)
        look()
        own = _listening(psutil.Process(process.pid))
        database = b"".join(path.read_bytes() for path in folder.glob("service.sqlite*"))
    finally:
        process.kill()  # it can tell nobody to end
        process.wait(60)
    served = [found for command, found in listening.values() if "engine_process" in str(command)]
    assert served and any("job_process" in str(command) for command, _ in listening.values())
    assert own == {("127.0.0.1", caller.port)}
    assert all(found == set() for command, found in listening.values() if "engine_process" not in str(command))
    assert {host for found in served for host, _ in found} == {"127.0.0.1"}
    assert not [pid for pid, text in environments.items() if SECRET in text or any(f"{n}=" in text for n in SECRETS)]
    logs = {path.name: path.read_text() for path in (*folder.rglob("log.txt"), *folder.rglob("serve-*.log"), log)}
    assert len(logs) == 3
    for name, text in logs.items():
        for canary in (ROW, PROMPT, SECRET, *keys, file):
            assert canary not in text, (name, canary)
    assert not any(PROMPT.encode() in error or b"/" + tmp_path.name.encode() in error for error in errors)
    for canary in (ROW, PROMPT, SECRET, *keys):
        assert canary.encode() not in database, canary
    found = [path for path in folder.rglob("*") if path.is_file() and ROW.encode() in path.read_bytes()]
    assert {path.relative_to(folder).parts[0] for path in found} == {"files", "jobs"}
    _, alive = psutil.wait_procs(list(children.values()), timeout=10)
    assert not alive


def test_why_a_job_failed_names_no_place_of_this_machine(tmp_path: Path, tiny_model_folder: Path) -> None:
    for name, change in (("gone", shutil.rmtree), ("broken", _empty_config)):
        base = tmp_path / f"canary-{name}"
        shutil.copytree(tiny_model_folder, base)
        with running(tmp_path / f"s-{name}", base) as service:
            change(base)
            client = service.client()
            file = client.files.create(file=("a", rows(30)), purpose="fine-tune")
            job = wait_for(client, client.fine_tuning.jobs.create(model=MODEL, training_file=file.id).id)
            told = f"{job.error.message} {[event.message for event in events_of(client, job.id)]}"
        assert job.status == "failed"
        assert "canary" not in told and str(tmp_path) not in told, told


def _empty_config(base: Path) -> None:
    (base / "config.json").write_text("{}")


def test_what_a_client_writes_never_reaches_the_log(
    service: Running, mine: Belongings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("luthier.serve").propagate = True
    caller = peer(service, "logged", "admin")
    hostile = f"{PROMPT}\x1b[31m\r\nid=forged"
    for path in (
        f"files/{quote(hostile)}",
        f"models/{quote(hostile)}",
        f"x{quote(hostile)}",
        f"files?{quote(hostile)}",
    ):
        assert caller.get(f"/v1/{path}{quote(hostile)}").status in (400, 404)
    caller.upload(rows(12), f"{PROMPT}\x1b[31m")
    caller.upload(PROMPT.encode())
    caller.send("POST", "/v1/files", PROMPT.encode() + b"\r\n--x", FORM)
    caller.post("/v1/fine_tuning/jobs", {"model": hostile, "training_file": hostile, "metadata": {hostile: hostile}})
    caller.post("/v1/fine_tuning/jobs", {hostile: hostile})
    caller.post("/v1/chat/completions", {"model": hostile, "messages": [{"role": "user", "content": PROMPT}]})
    Peer(port_of(service), hostile[:20]).get("/v1/files")
    time.sleep(0.3)
    text = "\n".join(record.getMessage() for record in caplog.records)
    assert "route=/v1/files" in text
    assert not [record for record in caplog.records if "multipart" in record.name], "a line for every bad body"
    for canary in (PROMPT, "\x1b", "forged", str(caller.key)):
        assert canary not in text


def test_a_line_of_json_tells_who_asked_what_and_nothing_else(service: Running, mine: Belongings) -> None:
    lines, caller = io.StringIO(), peer(service, "victim")
    handler = logging.StreamHandler(lines)
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("luthier.serve")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        caller.get(f"/v1/files/{mine.file}?{PROMPT}={PROMPT}")
        Peer(port_of(service), PROMPT).post("/v1/files", {PROMPT: PROMPT})
        time.sleep(0.2)
    finally:
        logger.removeHandler(handler)
    known, unknown = (json.loads(line) for line in lines.getvalue().splitlines())
    shared = {"time", "level", "logger", "id", "method", "route", "status", "ms", "prompt_tokens", "completion_tokens"}
    assert known.keys() == shared | {"key_id", "project_id"} and unknown.keys() == shared
    assert (known["route"], known["status"], known["method"]) == ("/v1/files/{file_id}", 200, "GET")
    keys = {row["id"]: row["project"] for row in service.service.tenants.listed()}
    assert keys[known["key_id"]] == "victim" and unknown["status"] == 401
    assert PROMPT not in lines.getvalue() and str(caller.key) not in lines.getvalue()


def test_the_openapi_document_is_for_those_who_have_a_key(service: Running) -> None:
    assert Peer(port_of(service)).get("/openapi.json").status == 401
    assert peer(service).get("/openapi.json").values == generated()


def test_trouble_with_the_database_ends_no_thread_and_quotes_nothing(
    tmp_path: Path, tiny_model_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target = Target("http://127.0.0.1:1/", f"whsec_{base64.b64encode(SECRET.encode()).decode()}")
    with running(tmp_path / "s", tiny_model_folder, at_once=0, webhook=target) as service:
        database = service.service.database
        for old, new in (("jobs", "away"), ("webhooks", "gone")):
            with database.writing() as connection:
                connection.execute(sa.text(f"ALTER TABLE {old} RENAME TO {new}"))
        time.sleep(1.5)
        for old, new in (("jobs", "away"), ("webhooks", "gone")):
            with database.writing() as connection:
                connection.execute(sa.text(f"ALTER TABLE {new} RENAME TO {old}"))
        for thread in ("supervisor", "webhooks"):
            assert re.search(f"{thread}: (Operational|Programming)Error", caplog.text)
        assert "SELECT" not in caplog.text
        settle(service, "afterwards")  # a job's files are validated
        assert "webhooks" in {thread.name for thread in threading.enumerate()}
        with pytest.raises(SQLAlchemyError) as told, database.writing() as connection:
            connection.execute(projects.insert().values(id=ROW, created_at=0, name=None))
        assert ROW not in str(told.value)


def test_an_address_that_is_none_is_a_failed_attempt(service: Running) -> None:
    key = f"whsec_{base64.b64encode(SECRET.encode()).decode()}"
    database, store = service.service.database, service.service.jobs
    ended = settle(service, "told")
    store.move(ended.job, "cancelled", [])
    Webhooks(database, Target("http://127.0.0.1:none/", key)).send_due()
    with database.reading() as connection:
        of_job = sa.select(webhooks.c.attempts).where(webhooks.c.object_id == ended.job)
        assert connection.scalar(of_job) == 1


def test_no_address_of_a_client_s_is_fetched(service: Running, mine: Belongings) -> None:
    caller = peer(service, "victim", "admin")
    asked = threading.Event()
    with _listener(asked) as url:
        targets = [
            url,
            url.replace("127.0.0.1", "localhost"),
            url.replace("127.0.0.1", "2130706433"),
            "file:///etc/passwd",
        ]
        for target in targets:
            for values in (
                {"model": target, "training_file": mine.file},
                {"model": MODEL, "training_file": target},
                {"model": MODEL, "training_file": mine.file, "integrations": [_wandb(target)]},
                {"model": MODEL, "training_file": mine.file, "metadata": {"callback_url": target}},
                {"model": MODEL, "training_file": mine.file, "webhook_url": target},
            ):
                caller.post("/v1/fine_tuning/jobs", values)
            content = [{"type": "image_url", "image_url": {"url": target}}]
            row = {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "x"}]}
            assert caller.upload(json.dumps(row).encode() + b"\n").status in (200, 400)
            grader = {"type": "score_model", "name": "x", "model": target, "input": [], "base_url": target}
            for path in ("validate", "run"):
                body = {"grader": grader, "model_sample": target}
                assert caller.post(f"/v1/fine_tuning/alpha/graders/{path}", body).status < 500
            caller.post("/v1/chat/completions", {"model": target, "messages": [{"role": "user", "content": content}]})
        assert not asked.wait(1.5)


def _wandb(target: str) -> Mapping[str, Any]:
    return {"type": "wandb", "wandb": {"project": target, "entity": target, "name": target}}


@contextmanager
def _listener(asked: threading.Event) -> Iterator[str]:
    """An address that tells when anybody connects."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        bound.listen()

        def wait() -> None:
            with suppress(OSError):
                bound.accept()
                asked.set()

        threading.Thread(target=wait, daemon=True).start()
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/x"


# anything at all

_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
_scalars |= st.sampled_from([*TRAVERSAL[:-1], *INJECTIONS, MODEL, "auto", "supervised", "dpo", "reinforcement"])
_json = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_NAMES = """model training_file validation_file hyperparameters method integrations metadata seed suffix bytes filename
mime_type purpose expires_after part_ids md5 project_ids grader model_sample item messages prompt type name data_source
data_source_config testing_criteria"""
_keys = st.sampled_from(_NAMES.split())
_form = st.lists(
    st.tuples(st.sampled_from(["purpose", "file", "data", "expires_after[seconds]", "x", ""]), st.text(max_size=12)),
    max_size=4,
)
_query = st.dictionaries(
    st.sampled_from(["limit", "after", "order", "purpose", "metadata", "metadata[a]", "metadata[", "project_id", "x"]),
    st.text(max_size=8) | st.integers().map(str),
    max_size=2,
)


def test_no_request_is_a_failure_of_the_server(service: Running, mine: Belongings) -> None:
    owner, routes = peer(service, "fuzz", "admin"), routes_of(service)
    own = settle(service, "fuzz")
    right: list[dict[str, Any]] = [
        {"model": MODEL, "training_file": own.file},
        {"model": MODEL, "training_file": own.file, "method": {"type": "dpo", "dpo": {"hyperparameters": {}}}},
        {"bytes": 3, "filename": "a", "mime_type": "text/plain", "purpose": "batch"},
        {"part_ids": [own.part]},
        {"project_ids": [service.service.tenants.project("fuzz")]},
        {"grader": {"type": "string_check", "name": "x", "input": "a", "reference": "b", "operation": "eq"}},
    ]
    right += [EVAL, RUN]
    right.append({**right[-3], "model_sample": "x", "item": {"a": 1}})
    found: Counter[int] = Counter()
    until = time.monotonic() + 40

    @settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(
        route=st.sampled_from(routes),
        body=st.tuples(st.sampled_from(right), _keys, _json).map(lambda f: json.dumps({**f[0], f[1]: f[2]}).encode())
        | st.dictionaries(_keys | st.text(max_size=6), _json, max_size=4).map(json.dumps).map(str.encode)
        | _form.map(lambda fields: form(fields, "file", "a", b"x"))
        | st.binary(max_size=60)
        | st.binary(max_size=40).map(lambda b: f"--{BOUNDARY}\r\n".encode() + b),
        kind=st.sampled_from([JSON, JSON, FORM, {"content-type": "multipart/form-data; boundary="}, {}]),
        query=_query,
        ids=st.booleans(),
        name=st.text(min_size=1, max_size=10),
    )
    def attack(
        route: tuple[str, str], body: bytes, kind: dict[str, str], query: dict[str, str], ids: bool, name: str
    ) -> None:
        if time.monotonic() > until and found.total() > 150:
            return
        method, pattern = route
        path = own.path(pattern) if ids else pattern
        for part in PARAMETERS:
            path = path.replace(part, quote(name, safe=""))
        asked = "&".join(f"{quote(key, safe='[]')}={quote(value, safe='')}" for key, value in query.items())
        answer = owner.send(method, f"{path}?{asked}", body, kind)
        assert answer.status < 500, (method, path, asked, body, answer.body)
        found[answer.status] += 1

    attack()
    assert found.total() > 150 and found[200] > 10 and found[400] > 10, found
    assert Peer(owner.port).get("/readyz").status == 200
    after = peer(service, "fuzz afterwards")
    file = after.upload(rows(12)).values["id"]
    assert after.post("/v1/fine_tuning/jobs", {"model": MODEL, "training_file": file}).status == 200
