"""What the job service must withstand: no key, another project's key, hostile names, huge and senseless requests."""

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import sqlalchemy as sa
from starlette.requests import Request
from tests.jobs_attack import (
    FORM,
    FREE,
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
from tests.jobs_service import MODEL, Running, rows, running

from luthier.jobs.database import metadata
from luthier.jobs.http.reading import chunks_of
from luthier.jobs.pages import Page
from luthier.serve.api_error import ApiError


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("service"), tiny_model_folder, at_once=0) as found:
        yield found


@pytest.fixture(scope="module")
def mine(service: Running) -> Belongings:
    return settle(service, "victim")


@pytest.fixture(scope="module")
def member(service: Running) -> Peer:
    return peer(service, "member")


def _folder(service: Running) -> Path:
    return service.service.supervisor.folder.parent


def _contents(service: Running) -> dict[str, list[Any]]:
    """All rows of all tables but the keys, once nothing changes by itself."""
    while service.service.jobs.in_status("validating_files"):
        time.sleep(0.05)
    with service.service.database.reading() as connection:
        return {
            table.name: [tuple(row) for row in connection.execute(sa.select(table).order_by(*table.primary_key))]
            for table in metadata.sorted_tables
            if table.name not in ("keys", "projects")
        }


# keys


def test_every_route_but_those_of_health_asks_for_a_key(service: Running, mine: Belongings) -> None:
    tenants = service.service.tenants
    ended, live = (tenants.add_key("victim", name, "admin") for name in ("ended", "live"))
    (row,) = [row for row in tenants.listed() if row["name"] == "ended"]
    assert tenants.revoke(row["id"])
    wrong = [None, "", "Bearer", "Bearer ", f"Bearer {ended}", f"Bearer {live}x", f"Bearer {live[:-1]}", live]
    wrong += [f"Basic {live}", f"Bearer {'x' * 600}", "Bearer \xff", "Bearer ' OR '1'='1", f"Bearer {live} {live}"]
    routes = routes_of(service)
    assert len(routes) > 25
    before = _contents(service)
    for method, pattern in routes:
        for key in wrong:
            headers = {**JSON, **({} if key is None else {"authorization": key})}
            answer = Peer(port_of(service)).send(method, mine.path(pattern), b"{}", headers)
            assert answer.status == (200 if pattern in FREE else 401), (method, pattern, key)
            if answer.status == 401 and method != "HEAD":
                assert answer.error["code"] == "invalid_api_key"
    assert _contents(service) == before
    assert Peer(port_of(service), live).get(f"/v1/files/{mine.file}").status == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost/healthz?", "127.0.0.1/healthz", "localhost@evil.example", ""])
def test_no_spelling_of_path_or_host_goes_round_the_key(service: Running, mine: Belongings, host: str) -> None:
    file = f"files/{mine.file}"
    for target in (
        f"//v1/{file}",
        f"/v1//{file}",
        f"/v1%2f{file}",
        f"/./v1/{file}",
        f"/healthz/../v1/{file}",
        f"/healthz;/v1/{file}",
        f"/healthz%3f/../v1/{file}",
        f"/V1/{file}",
        f"/v1/{file}/",
        f"/v1/{file}?x=/healthz",
        f"http://127.0.0.1/healthz/../v1/{file}",
        f"http://localhost/v1/{file}",
        "*",
    ):
        head = f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n"
        for more in ("", "X-Original-URL: /healthz\r\n", "X-Forwarded-Host: localhost\r\nForwarded: for=127.0.0.1\r\n"):
            answer = Peer(port_of(service)).raw((head + more + "\r\n").encode())
            assert int(answer.split(b" ", 2)[1]) in (400, 401, 403, 404), (target, answer)
            assert mine.file.encode() not in answer


def test_two_keys_or_two_hosts_are_none(service: Running, member: Peer) -> None:
    right = f"Authorization: Bearer {member.key}\r\n"
    for more in (right * 2, right + "Authorization: Bearer x\r\n", right + "Host: localhost\r\n"):
        text = f"GET /v1/files HTTP/1.1\r\nHost: localhost\r\n{more}Connection: close\r\n\r\n"
        assert member.raw(text.encode()).split(b" ")[1] in (b"400", b"401", b"403")


# whose is it


def test_nothing_of_another_project_can_be_reached_or_changed(service: Running, mine: Belongings) -> None:
    others = [peer(service, "attacker", "admin"), peer(service, "attacker")]
    bodies: dict[str, tuple[bytes, dict[str, str]]] = {
        "/parts": (form([], "data", "a", b"abc"), FORM),
        "/complete": (json.dumps({"part_ids": [mine.part]}).encode(), JSON),
        "/runs": (json.dumps(RUN).encode(), JSON),
        "{eval_id}": (b"{}", JSON),
        "/permissions": (json.dumps({"project_ids": ["proj_x"]}).encode(), JSON),
    }
    chat = {"model": mine.model, "messages": [{"role": "user", "content": "x"}], "prompt": "x"}
    before, seen = _contents(service), 0
    for method, pattern in routes_of(service):
        if "{" not in pattern and "completions" not in pattern:
            continue
        body, headers = next((found for end, found in bodies.items() if pattern.endswith(end)), (b"", {}))
        if "completions" in pattern:
            body, headers = json.dumps(chat).encode(), JSON
        for name in (mine.model, f"{mine.model}:ckpt-step-3"):
            path = mine.path(pattern).replace(mine.model, name)
            for other in others:
                answer = other.send(method, path, body if method != "GET" else None, headers)
                is_admins = "/permissions" in pattern and other is others[1]
                assert answer.status == (403 if is_admins else 404), (method, path, answer.body)
                seen += 1
    assert seen > 100
    for key in (others[1], peer(service, "victim")):
        assert key.get("/metrics").status == 403
        assert key.get(mine.path("/v1/fine_tuning/checkpoints/{name:path}/permissions")).status == 403
    assert _contents(service) == before


def test_nothing_of_another_project_stands_in_lists_or_requests(service: Running, mine: Belongings) -> None:
    others, before = [peer(service, "attacker", "admin")], _contents(service)
    for query in (f"after={mine.file}", f"after={mine.job}", f"after={mine.eval}"):
        for path in ("/v1/files", "/v1/fine_tuning/jobs", "/v1/evals"):
            assert others[0].get(f"{path}?{query}").status == 404
    own = settle(service, "attacker")
    for path in (f"/v1/fine_tuning/jobs/{own.job}/events", f"/v1/fine_tuning/jobs/{own.job}/checkpoints"):
        event = service.service.jobs.events(_project(service, "victim"), mine.job, Page())[0][0]["id"]
        assert others[0].get(f"{path}?after={event}").status == 404
    for path in (f"/v1/evals/{own.eval}/runs/{mine.run}", f"/v1/evals/{mine.eval}/runs/{own.run}"):
        assert others[0].get(path).status == others[0].send("DELETE", path).status == 404
    runs = f"/v1/evals/{own.eval}/runs"
    assert others[0].get(f"{runs}?after={mine.run}").status == 404
    assert others[0].get(f"{runs}/{own.run}/output_items/{mine.item}").status == 404
    grants = f"/v1/fine_tuning/checkpoints/{own.model}/permissions"
    assert others[0].get(f"{grants}?after={mine.permission}").status == 404
    assert others[0].send("DELETE", f"{grants}/{mine.permission}").status == 404
    _require_unusable(others[0], own, mine)
    assert _of(before, mine) == _of(_contents(service), mine)


def _require_unusable(other: Peer, own: Belongings, mine: Belongings) -> None:
    """What another project has can be no part of a request."""
    refused = other.post("/v1/fine_tuning/jobs", {"model": MODEL, "training_file": mine.file})
    assert refused.status == 400 and refused.error["code"] == "invalid_training_file"
    asked = {"model": MODEL, "training_file": own.file, "validation_file": mine.file}
    assert other.post("/v1/fine_tuning/jobs", asked).status == 400
    completed = other.post(f"/v1/uploads/{own.upload}/complete", {"part_ids": [mine.part]})
    assert completed.status == 400
    for path in ("/v1/files", "/v1/fine_tuning/jobs", "/v1/models", "/v1/evals"):
        found = other.get(path).body
        assert (
            mine.file.encode() not in found and mine.job[-8:].encode() not in found and mine.eval.encode() not in found
        )
    over_it = {"data_source": {"type": "jsonl", "source": {"type": "file_id", "id": mine.file}}}
    assert other.post(f"/v1/evals/{own.eval}/runs", over_it).status in (400, 404)


def _project(service: Running, name: str) -> str:
    return service.service.tenants.project(name)


def _of(contents: dict[str, list[Any]], mine: Belongings) -> dict[str, list[Any]]:
    """Rows that name anything of a project's."""
    ids = (mine.file, mine.upload, mine.part, mine.job, mine.model, mine.permission, mine.eval, mine.run, mine.item)
    return {
        name: [row for row in found if any(str(value).startswith(ids) for value in row)]
        for name, found in contents.items()
    }


def test_an_error_does_not_tell_whether_another_project_has_it(service: Running, mine: Belongings) -> None:
    other = peer(service, "attacker", "admin")
    for kind, real in (("files", mine.file), ("fine_tuning/jobs", mine.job), ("models", mine.model)):
        fake = real[:-8] + "x" * 8
        assert other.get(f"/v1/{kind}/{real}").body.replace(real.encode(), b"") == other.get(
            f"/v1/{kind}/{fake}"
        ).body.replace(fake.encode(), b"")


def test_an_idempotency_key_is_the_project_s_own(service: Running) -> None:
    made = []
    for project in ("one", "two"):
        caller = peer(service, project)
        body = {"model": MODEL, "training_file": caller.upload(rows(12)).values["id"]}
        headers = {**JSON, "Idempotency-Key": "the same"}
        for _ in range(2):
            made.append(caller.send("POST", "/v1/fine_tuning/jobs", json.dumps(body).encode(), headers).values["id"])
    assert made[0] == made[1] != made[2] == made[3]
    for key in ("", "x" * 256):
        headers = {**JSON, "Idempotency-Key": key}
        assert caller.send("POST", "/v1/fine_tuning/jobs", json.dumps(body).encode(), headers).status == 400


def test_a_grant_names_projects_that_exist(service: Running, mine: Belongings) -> None:
    admin = peer(service, "victim", "admin")
    grants = f"/v1/fine_tuning/checkpoints/{mine.model}/permissions"
    for ids in (["proj_none"], [*TRAVERSAL[:3]], INJECTIONS):
        answer = admin.post(grants, {"project_ids": ids})
        assert answer.status == 400 and answer.error["param"].startswith("project_ids")


# names


@pytest.mark.parametrize("name", [*TRAVERSAL, *INJECTIONS])
def test_a_hostile_name_is_only_a_name(service: Running, mine: Belongings, member: Peer, name: str) -> None:
    folder, before = _folder(service), _contents(service)
    outside = {path for path in folder.parent.rglob("*") if not path.is_relative_to(folder)}
    for method, pattern in routes_of(service):
        for hostile in (quote(name, safe="%"), quote(quote(name, safe=""), safe=""), quote(name, safe="/%.~")):
            path = pattern
            for part in PARAMETERS:
                path = path.replace(part, hostile)
            if path != pattern:
                answer = member.send(method, path, b"{}" if method == "POST" else None, JSON)
                assert answer.status in (400, 401, 403, 404, 405, 415), (method, path[:100], answer.body)
    assert _contents(service) == before
    text = name.replace("\x00", "")
    for body in (
        {"model": text, "training_file": mine.file},
        {"model": MODEL, "training_file": text},
        {"model": MODEL, "training_file": text, "validation_file": text},
    ):
        assert member.post("/v1/fine_tuning/jobs", body).status == 400
    for path in ("/v1/chat/completions", "/v1/completions"):
        assert member.post(path, {"model": name, "messages": [], "prompt": "x"}).status in (400, 404)
    query = quote(name, safe="")
    for path in (f"files?after={query}", f"fine_tuning/jobs?after={query}", f"files?purpose={query}"):
        assert member.get(f"/v1/{path}").status in (200, 400, 404)
    assert member.get(f"/v1/fine_tuning/jobs?metadata[{query}]={query}").status in (200, 400)
    kept = member.upload(b"hello", name.replace('"', "")[:2000], purpose="batch")
    assert kept.status == 200 and not set(kept.values["filename"]) & set("/\\\x00") and len(kept.body) < 1000
    assert kept.values["filename"].strip(".") and member.get(f"/v1/files/{kept.values['id']}/content").body == b"hello"
    assert {path for path in folder.parent.rglob("*") if not path.is_relative_to(folder)} == outside


def test_metadata_is_found_by_any_key(member: Peer) -> None:
    file = member.upload(rows(12)).values["id"]
    names = ['a"b', "a.b", "a\\b", "[0]", "{x,y}", "$", "ü", " ", *INJECTIONS[:2]]
    for name in names:
        body = {"model": MODEL, "training_file": file, "metadata": {name: "v", "n": name}}
        job = member.post("/v1/fine_tuning/jobs", body).values
        assert job["metadata"] == body["metadata"]
        found = member.get(f"/v1/fine_tuning/jobs?metadata[{quote(name)}]=v").values["data"]
        assert [one["id"] for one in found] == [job["id"]], name
    assert member.get("/v1/fine_tuning/jobs?metadata[training_file]=" + file).values["data"] == []
    many = "&".join(f"metadata[{n}]=" for n in range(1500))
    for query in (many, "metadata[x", "metadata[]=1", "metadata[" + "k" * 65 + "]=1", "metadata[k]=" + "v" * 513):
        assert member.get(f"/v1/fine_tuning/jobs?{query}").status == 400, query[:50]


def test_a_nul_names_nothing(member: Peer) -> None:
    for path in (
        "files/a%00b",
        "fine_tuning/jobs/%00",
        "models/%00",
        "files?after=%00",
        "fine_tuning/jobs?metadata[%00]=x",
    ):
        assert member.get(f"/v1/{path}").status == 400


def test_what_looks_like_a_variable_stays_as_it_is(member: Peer) -> None:
    file = member.upload(rows(12), "$HOME ${X}").values
    assert file["filename"] == "$HOME ${X}"
    for text in ("$AWS_SECRET", "${X}", "%(x)s", "{0}", "{{ x }}"):
        body = {"model": MODEL, "training_file": file["id"], "suffix": text, "metadata": {"m": text}}
        job = member.post("/v1/fine_tuning/jobs", body).values
        assert (job["user_provided_suffix"], job["metadata"]) == (text, {"m": text})


def test_no_control_character_becomes_part_of_a_name(member: Peer) -> None:
    hostile = "a\x1b[31m\x9b31m\u202egnp\u2028b\x7f"
    asked = {"bytes": 3, "filename": hostile + "\r\n\x00", "mime_type": "text/plain", "purpose": "batch"}
    for answer in (member.upload(b"x", hostile, purpose="batch"), member.post("/v1/uploads", asked)):
        assert not set(answer.values["filename"]) & set("\x1b\x9b\u202e\u2028\x7f\r\n\x00")
    file = member.upload(rows(12)).values["id"]
    for text in ("\x1b[2J", "a\nb", "\x9bx", "\u202ex", "a\x00b"):
        answer = member.post("/v1/fine_tuning/jobs", {"model": MODEL, "training_file": file, "suffix": text})
        assert answer.status == 400 and answer.error["param"] == "suffix"


# work for nothing

ODD: list[Any] = [True, "1", [], {}, -1, -(10**30), 10**30, 1e308, 0, 1.5]
FIELDS: dict[str, list[Any]] = {
    "model": [True, 1, [], {}, "", "x" * 300],
    "training_file": [True, 1, [], {}, "", "x" * 300],
    "validation_file": [True, 1, [], {}, "", "x" * 300],
    "seed": [True, "1", [], {}, -1, 2**31, 10**30, 1.5, 1e308],
    "suffix": [True, 1, [], {}, "", "x" * 65],
    "metadata": [
        True,
        "1",
        [],
        1,
        {"a": 1},
        {"a" * 65: "x"},
        {"a": "x" * 513},
        {"a": "\x00"},
        {str(n): "x" for n in range(17)},
    ],
    "integrations": [True, "1", {}, [1], [{"type": "x"}], [{"type": "wandb", "wandb": {"project": "p"}}] * 6],
    "method": [True, "1", [], {}, {"type": "x"}, {"type": 1}, {"type": "supervised", "x": 1}],
    "hyperparameters": [True, "1", [], 1, {"x": 1}],
    "hyperparameters.n_epochs": [*ODD, 51],
    "hyperparameters.batch_size": [*ODD, 4097],
    "hyperparameters.learning_rate_multiplier": [True, "1", [], {}, -1, 0, 1e308, 1001, 10**30],
    "method.supervised.hyperparameters.n_epochs": [*ODD, 51],
    "method.dpo.hyperparameters.beta": [True, "1", [], {}, -1, 0, 2.1, 1e308, 10**30],
}


@pytest.mark.parametrize("name", FIELDS)
def test_every_bad_value_of_a_job_is_a_400_that_names_the_field(member: Peer, mine: Belongings, name: str) -> None:
    file = member.upload(rows(12)).values["id"]
    for value in FIELDS[name]:
        body: dict[str, Any] = {"model": MODEL, "training_file": file}
        *path, last = name.split(".")
        inner = body
        for part in path:
            inner = inner.setdefault(part, {"type": path[1]} if part == "method" else {})
        inner[last] = value
        answer = member.post("/v1/fine_tuning/jobs", body)
        assert answer.status == 400, (name, value, answer.body)
        assert str(answer.error["param"]).startswith(name.split(".")[0]), (name, value, answer.body)
        assert set(answer.error) == {"message", "type", "param", "code"}


def test_bad_values_of_uploads_grants_and_graders_are_400(service: Running, mine: Belongings) -> None:
    admin = peer(service, "victim", "admin")
    right = {"bytes": 3, "filename": "a", "mime_type": "text/plain", "purpose": "batch"}
    bad: dict[str, list[Any]] = {
        "bytes": [True, "1", [], -1, 2**41, 10**30, 1.5, 1e308],
        "filename": [True, 1, "", "x" * 513],
        "mime_type": [True, 1, "x" * 256],
        "purpose": [True, 1, "", "fine-tune-results", "x" * 65],
        "expires_after": [1, {}, {"anchor": "x", "seconds": 3600}, {"anchor": "created_at", "seconds": True}],
    }
    for name, values in bad.items():
        for value in values:
            answer = admin.post("/v1/uploads", {**right, name: value})
            assert answer.status == 400 and str(answer.error["param"]).startswith(name), (name, value, answer.body)
    for ids in (1, "x", [], [1], [""], ["x"] * 10_001, ["x" * 300], None):
        assert admin.post(f"/v1/uploads/{mine.upload}/complete", {"part_ids": ids}).status == 400
        assert admin.post(f"/v1/fine_tuning/checkpoints/{mine.model}/permissions", {"project_ids": ids}).status == 400
    graders: list[Any] = [1, "x", [], {}, {"type": "x"}, {"type": "string_check"}, {"type": "python", "source": 1}]
    for grader in (*graders, None):
        for path in ("validate", "run"):
            body = {"grader": grader, "model_sample": "x"}
            assert admin.post(f"/v1/fine_tuning/alpha/graders/{path}", body).status == 400


@pytest.mark.parametrize(
    "value", ["", "-1", "1.5", "1e3", "true", "NaN", "\u00b2", "\u0663", "9" * 5000, "101", "+1", " 1"]
)
def test_a_bad_limit_is_a_400(member: Peer, mine: Belongings, service: Running, value: str) -> None:
    owner = peer(service, "victim", "admin")
    lists = ["fine_tuning/jobs", f"fine_tuning/jobs/{mine.job}/events", f"fine_tuning/jobs/{mine.job}/checkpoints"]
    lists.append(f"fine_tuning/checkpoints/{mine.model}/permissions")
    for path in lists:
        assert owner.get(f"/v1/{path}?limit={quote(value)}").status == 400, path
    if value != "101":
        assert owner.get(f"/v1/files?limit={quote(value)}").status == 400
    for seconds in (value, "3599", "2592001"):
        fields = {"expires_after[anchor]": "created_at", "expires_after[seconds]": seconds[:4000]}
        assert member.upload(b"x", purpose="batch", **fields).status == 400


def test_bodies_are_capped_with_and_without_a_length(member: Peer) -> None:
    big = json.dumps({"model": "x" * 5_000_000}).encode()
    assert member.send("POST", "/v1/fine_tuning/jobs", big, JSON).status == 413
    head = f"POST /v1/fine_tuning/jobs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {member.key}\r\n".encode()
    head += b"Content-Type: application/json\r\nConnection: close\r\n"
    chunk = b"%x\r\n%s\r\n0\r\n\r\n" % (len(big), big)
    assert b" 413 " in member.raw(head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk).split(b"\r\n")[0]
    for length in (b"99999999999999999999", b"-1", b"1e3"):
        try:
            answer = member.raw(head + b"Content-Length: " + length + b"\r\n\r\n" + big)
        except ConnectionError:
            continue
        assert answer.split(b" ")[1] in (b"400", b"413")
    for body in (b"", b"x", b"[]", b'{"a":NaN}', b'{"a":1e999}', b'{"a":"\\ud800"}', b"[" * 50_000, b'{"a":' * 15_000):
        for path in ("fine_tuning/jobs", "uploads", "chat/completions", "fine_tuning/alpha/graders/run"):
            assert member.send("POST", f"/v1/{path}", body, JSON).status == 400, (path, body[:20])
    many = "".join(f"X-{n}: y\r\n" for n in range(20_000)).encode()
    answer = member.raw(b"GET /v1/files HTTP/1.1\r\nHost: localhost\r\n" + many + b"\r\n")
    assert not answer or answer.split(b" ")[1] in (b"400", b"431")


@pytest.mark.parametrize("pause", [0.05, 60.0])
def test_a_trickle_of_a_body_does_not_buy_time(pause: float) -> None:
    async def receive() -> dict[str, Any]:
        await asyncio.sleep(pause)
        return {"type": "http.request", "body": b" ", "more_body": True}

    async def read() -> int:
        request = Request({"type": "http", "method": "POST", "path": "/", "headers": []}, receive)
        return len([chunk async for chunk in chunks_of(request, patience=0.5)])

    started = time.monotonic()
    with pytest.raises(ApiError) as refused:
        asyncio.run(read())
    assert refused.value.status == 408 and time.monotonic() - started < 5


# browsers


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "10.0.0.1"},
        {"Origin": "null"},
        {"Origin": "https://evil.example"},
        {"Origin": "http://localhost.evil.example"},
        {"Origin": "file://"},
    ],
)
def test_foreign_pages_are_403_for_every_route(service: Running, mine: Belongings, headers: dict[str, str]) -> None:
    owner, before = peer(service, "victim", "admin"), _contents(service)
    for method, pattern in [*routes_of(service), ("OPTIONS", "/v1/files"), ("PATCH", "/v1/files"), ("PUT", "/x")]:
        answer = owner.send(method, mine.path(pattern), None, headers)
        assert answer.status == 403, (method, pattern)
        assert not [name for name in answer.headers if name.startswith("access-control-")]
    assert _contents(service) == before


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "json"])
def test_what_a_form_can_post_is_refused(service: Running, mine: Belongings, member: Peer, kind: str) -> None:
    for method, pattern in routes_of(service):
        if method == "POST" and not pattern.endswith(("/cancel", "/pause", "/resume")):
            answer = peer(service, "victim", "admin").send("POST", mine.path(pattern), b"{}", {"content-type": kind})
            assert answer.status == 415, (pattern, answer.body)


# uploads


def test_ids_are_long_and_a_file_never_becomes_another(service: Running, member: Peer) -> None:
    files = [member.upload(content, "same.jsonl").values for content in (rows(12), rows(13), rows(12))]
    assert len({file["id"] for file in files}) == 3
    for id_ in (files[0]["id"], *settle(service, "ids").__dict__.values()):
        assert len(id_.replace("_", "-").rsplit("-", 1)[-1]) >= 8 if id_.startswith("ft:") else len(id_) >= 24 + 3
    kept = [member.get(f"/v1/files/{file['id']}/content").body for file in files]
    assert kept == [rows(12), rows(13), rows(12)]
    for field in ("id", "file_id", "sha256", "path", "project_id", "bytes", "status"):
        answer = member.upload(b"x", purpose="batch", **{field: files[0]["id"]})
        assert answer.status == 400 and answer.error["param"] == field


def test_the_same_bytes_of_two_projects_are_one_until_the_last_goes(service: Running) -> None:
    content = rows(14, seed=77)
    first, second = peer(service, "one"), peer(service, "two")
    before = len(list((_folder(service) / "files").rglob("*")))
    ids = [caller.upload(content).values["id"] for caller in (first, second)]
    assert len([path for path in (_folder(service) / "files").rglob("*") if path.is_file()]) > 0
    assert len(list((_folder(service) / "files").rglob("*"))) - before in (1, 2)  # and its folder
    assert second.send("DELETE", f"/v1/files/{ids[0]}").status == 404
    assert first.send("DELETE", f"/v1/files/{ids[0]}").status == 200
    assert first.get(f"/v1/files/{ids[0]}").status == 404
    assert second.get(f"/v1/files/{ids[1]}/content").body == content
