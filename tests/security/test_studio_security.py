"""What the studio must withstand: no session, a foreign one, a page that was not asked, and rows that are markup."""

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

import pytest
from fastapi.routing import APIRoute
from tests.jobs_attack import BOUNDARY, FORM, INJECTIONS, TRAVERSAL, Answer, Peer, form
from tests.studio import Studio, add_jobs, chats, studio

from luthier.jobs.pages import Page
from luthier.web.pages import POLICY
from luthier.web.rankings import Rankings
from luthier.web.sessions import Sessions
from luthier.web.studio import build_studio

HOSTILE = "</textarea></pre><script>alert(1)</script><img src=x onerror=alert(1)> [x](javascript:alert(1)) \u202e"
URLENCODED = {"content-type": "application/x-www-form-urlencoded"}


@dataclass
class Visitor:
    """Somebody with a cookie, and the token of the pages that it opens."""

    peer: Peer
    cookie: str = ""
    token: str = ""
    headers: dict[str, str] = field(default_factory=lambda: {"accept": "text/html"})

    @property
    def sent(self) -> dict[str, str]:
        """With the cookie, if there is one."""
        return {**self.headers, **({"cookie": f"luthier_studio_{self.peer.port}={self.cookie}"} if self.cookie else {})}

    def get(self, path: str) -> Answer:
        """A page."""
        return self.peer.send("GET", path, None, self.sent)

    def post(self, path: str, token: str | None = None, **fields: str) -> Answer:
        """A form, with the right token unless another is given."""
        body = urlencode({"token": self.token if token is None else token, **fields}).encode()
        return self.peer.send("POST", path, body, {**self.sent, **URLENCODED})

    def upload(self, content: bytes, name: str = "rows.jsonl", token: str | None = None) -> Answer:
        """A file to train on."""
        fields = [("token", self.token if token is None else token), ("purpose", "fine-tune")]
        return self.peer.send("POST", "/studio/files", form(fields, "file", name, content), {**self.sent, **FORM})


def sign_in(served: Studio, key: str) -> Visitor:
    """A visitor with a session."""
    visitor = Visitor(Peer(int(served.url.rpartition(":")[2])))
    answer = visitor.peer.send("POST", "/studio/sign-in", urlencode({"key": key}).encode(), URLENCODED)
    assert answer.status == 303, answer
    cookie = answer.headers["set-cookie"]
    assert {"HttpOnly", "Path=/studio", "SameSite=strict"} <= set(cookie.split("; "))
    assert cookie.startswith(f"luthier_studio_{visitor.peer.port}="), "two services on one host share no session"
    visitor.cookie = cookie.partition(";")[0].partition("=")[2]
    visitor.token = re.findall(r'name="token" value="(\w{64})"', visitor.get("/studio/jobs").body.decode())[0]
    return visitor


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    with studio(tmp_path_factory.mktemp("service"), Path("no-model"), at_once=0) as found:
        yield found


@pytest.fixture(scope="module")
def anna(served: Studio) -> Visitor:
    return sign_in(served, served.key("default", "anna"))


def pages_of(served: Studio) -> list[tuple[str, str]]:
    """Every method and path of the application that needs a session."""
    routes = [route for route in build_studio(served.service).routes if isinstance(route, APIRoute)]
    found = [
        (method, re.sub(r"\{[^}]*\}", "x1", route.path)) for route in routes for method in sorted(route.methods or ())
    ]
    assert len(found) > 30
    return found


def test_without_a_session_there_is_no_page(served: Studio) -> None:
    key = served.key("default", "other")
    for cookie in ("", "x" * 43, "' OR '1'='1", key, "x" * 600):
        visitor = Visitor(Peer(int(served.url.rpartition(":")[2])), cookie)
        for method, path in pages_of(served):
            answer = visitor.peer.send(method, path, b"", {**visitor.sent, **URLENCODED})
            assert (answer.status, answer.headers["location"]) == (303, "/studio/sign-in"), (method, path)
    # a key is no cookie, and a cookie is no key
    bearer = visitor.peer.send("GET", "/studio/jobs", None, {"authorization": f"Bearer {key}"})
    assert bearer.status == 303


def test_a_cookie_opens_nothing_of_the_api(served: Studio, anna: Visitor) -> None:
    assert anna.get("/v1/files").status == 401
    assert anna.get("/v1/models").status == 401
    assert anna.get("/metrics").status == 401


def test_who_signs_in_under_https_has_a_cookie_for_https_alone(served: Studio) -> None:
    peer, body = Peer(int(served.url.rpartition(":")[2])), urlencode({"key": served.key("tls", "tls")}).encode()
    for origin, secure in ({"origin": "https://localhost"}, True), ({"origin": "http://localhost"}, False), ({}, False):
        answer = peer.send("POST", "/studio/sign-in", body, {**URLENCODED, **origin})
        assert answer.status == 303 and ("Secure" in answer.headers["set-cookie"].split("; ")) is secure, origin


def test_a_session_ends_with_its_key_its_time_and_its_sign_out(served: Studio) -> None:
    key = served.key("ends", "ends")
    visitor = sign_in(served, key)
    assert visitor.get("/studio/jobs").status == 200
    (row,) = [row for row in served.service.tenants.listed() if row["name"] == "ends"]
    assert served.service.tenants.revoke(row["id"])
    assert visitor.get("/studio/jobs").status == 303
    other = sign_in(served, served.key("ends", "more"))
    assert other.post("/studio/sign-out").status == 303
    assert other.get("/studio/jobs").status == 303
    sessions = Sessions(served.service.database, served.service.tenants)
    assert sessions.open(key) is None


@pytest.mark.parametrize("key", ["", "nonsense", "x" * 600, "' OR '1'='1", "\u00e4"])
def test_what_is_no_key_opens_no_session(served: Studio, key: str) -> None:
    peer = Peer(int(served.url.rpartition(":")[2]))
    answer = peer.send("POST", "/studio/sign-in", urlencode({"key": key}).encode(), URLENCODED)
    assert answer.status == 401 and "set-cookie" not in answer.headers


def test_nothing_changes_without_the_token_of_the_session(served: Studio, anna: Visitor) -> None:
    project = served.service.tenants.project("default")
    (job,) = add_jobs(served.service, project, 1, "queued")
    other = sign_in(served, served.key("default", "ben"))
    for token in ("", other.token, anna.token[:-1], "x" * 64, anna.cookie):
        assert anna.post(f"/studio/jobs/{job}/cancel", token).status == 403
        assert anna.upload(chats(8), token=token).status == 403
    for kind in ("text/plain", "application/json", f"multipart/form-data; boundary={BOUNDARY}", ""):
        body = urlencode({"token": anna.token}).encode()
        answer = anna.peer.send("POST", f"/studio/jobs/{job}/cancel", body, {**anna.sent, "content-type": kind})
        assert answer.status == 415, kind
    body = form([("token", anna.token)], "file", "x", b"")
    assert anna.peer.send("POST", f"/studio/jobs/{job}/cancel", body, {**anna.sent, **FORM}).status == 415
    assert anna.peer.send("GET", f"/studio/jobs/{job}/cancel", None, anna.sent).status == 405
    assert served.service.jobs.get(project, job)["status"] == "queued"
    assert not served.service.files.listed(project, Page(), None)[0]
    assert anna.post(f"/studio/jobs/{job}/cancel").status == 303
    assert served.service.jobs.get(project, job)["status"] == "cancelled"


def test_other_sites_and_other_hosts_are_refused(anna: Visitor) -> None:
    body = urlencode({"token": anna.token, "key": "x"}).encode()
    for headers in ({"origin": "https://evil.example"}, {"origin": "null"}, {"host": "evil.example"}):
        for method, path in (("GET", "/studio/jobs"), ("POST", "/studio/sign-out"), ("POST", "/studio/sign-in")):
            assert anna.peer.send(method, path, body, {**anna.sent, **URLENCODED, **headers}).status == 403
    cross = {**URLENCODED, "sec-fetch-site": "cross-site"}
    assert anna.peer.send("POST", "/studio/sign-in", body, cross).status == 403


def test_rows_names_and_searches_are_only_ever_text(served: Studio, anna: Visitor) -> None:
    row = {"messages": [{"role": "user", "content": HOSTILE}, {"role": "assistant", "content": HOSTILE}]}
    made = anna.upload((json.dumps(row) + "\n").encode() * 3 + chats(12), f"{HOSTILE[:60]}.jsonl".replace('"', ""))
    assert made.status == 303, made.body
    file = made.headers["location"].split("/")[3]
    add_jobs(served.service, served.service.tenants.project("default"), 1, asked={"model": HOSTILE, "suffix": HOSTILE})
    query = urlencode({"search": HOSTILE, "status": HOSTILE, "page": HOSTILE})
    until = time.monotonic() + 60
    while b"Findings" not in (page := anna.get(made.headers["location"])).body and time.monotonic() < until:
        time.sleep(0.2)
    assert b"Findings" in page.body
    assert anna.post(f"/studio/files/{file}/rows/1", row="<script>alert(1)</script>").status == 400
    pages = [made.headers["location"], f"/studio/files/{file}", f"/studio/files/{file}/rows/1", "/studio/files"]
    pages += ["/studio/jobs", f"/studio/jobs?{query}", f"/studio/compare?{query}", "/studio/rankings"]
    pages += [f"/studio/files/{file}?{query}", f"/studio/playground?model={query}", "/studio/nowhere"]
    for path in pages:
        answer = anna.get(path)
        text = answer.body.decode()
        assert answer.headers["content-security-policy"] == POLICY, path
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert "<script>alert" not in text and "<img src=x" not in text and "\u202e" not in text, path
        assert not re.search(r'href="(?!/studio/|\?|#main)', text), path
    content = anna.get(f"/studio/files/{file}/content")
    assert content.headers["content-disposition"] == "attachment"
    assert content.headers["content-type"] == "application/octet-stream"


def test_tools_calls_and_the_calls_that_results_answer_are_shown_as_text(anna: Visitor) -> None:
    call = {"id": "call-7", "type": "function", "function": {"name": "f", "arguments": json.dumps({"x": HOSTILE})}}
    tool = {"type": "function", "function": {"name": "f", "description": HOSTILE}}
    messages = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call-7", "content": "3"},
        {"role": "assistant", "content": "so"},
    ]
    row = {"tools": [tool], "messages": messages}
    file = anna.upload((json.dumps(row) + "\n").encode()).headers["location"].split("/")[3]
    for path in (f"/studio/files/{file}", f"/studio/files/{file}/rows/1"):
        text = anna.get(path).body.decode()
        assert "<small>tools</small>" in text and "answers call-7" in text and "&#34;call-7&#34;" in text, path
        assert "<script>alert" not in text and "<img src=x" not in text and "\u202e" not in text, path
    texts = {"at:messages/1/content": "", "at:messages/3/content": "So."}
    assert anna.post(f"/studio/files/{file}/rows/1", **texts).status == 303
    mended = anna.get(f"/studio/files/{file}/rows/1").body.decode()
    assert "So." in mended and "answers call-7" in mended and "&#34;call-7&#34;" in mended


def test_what_is_another_project_s_does_not_exist(served: Studio, anna: Visitor) -> None:
    made = anna.upload(chats(12))
    file = made.headers["location"].split("/")[3]
    (job,) = add_jobs(served.service, served.service.tenants.project("default"), 1, "queued")
    ranked = anna.post(
        "/studio/rankings", first="gpt-4o-mini", second="gpt-4o-mini", file=file, pairs="2", temperature="1"
    )
    ranking = ranked.headers["location"]
    stranger = sign_in(served, served.key("elsewhere", "eve"))
    for path in (f"/studio/files/{file}", f"/studio/files/{file}/job", f"/studio/files/{file}/content"):
        assert stranger.get(path).status == 404
    for path in (f"/studio/jobs/{job}", f"/studio/jobs/{job}/live", f"/studio/jobs/{job}/report"):
        assert stranger.get(path).status == 404
    for path in (ranking, f"{ranking}/results", f"{ranking}/preferences.jsonl", f"/studio/compare?job={job}"):
        assert stranger.get(path).status == 404
    for path in ("delete", "undo", "make", "rows/1", "rows/1/exclude"):
        assert stranger.post(f"/studio/files/{file}/{path}", row="{}").status == 404
    for path in (f"/studio/jobs/{job}/cancel", f"{ranking}/undo", f"{ranking}/train", f"{ranking}/again"):
        assert stranger.post(path).status == 404
    assert stranger.post("/studio/jobs", model="gpt-4o-mini", training_file=file).status == 400
    assert job.encode() not in stranger.get("/studio/jobs").body
    assert file.encode() not in stranger.get("/studio/files").body
    assert served.service.jobs.get(served.service.tenants.project("default"), job)["status"] == "queued"


def test_preferences_of_a_job_that_is_refused_leave_no_file(served: Studio, anna: Visitor) -> None:
    file = anna.upload(chats(12)).headers["location"].split("/")[3]
    asked = {"first": "gpt-4o-mini", "second": "gpt-4o-mini", "temperature": "1", "pairs": "1"}
    ranking = anna.post("/studio/rankings", file=file, **asked).headers["location"]
    rankings = Rankings(served.service.database)
    (pair,) = rankings.unanswered(ranking.rpartition("/")[2])
    rankings.keep_answers(pair["id"], "one", "two")
    assert anna.post(ranking, pair=pair["id"], choice="a").status == 303
    before = anna.get("/studio/files").body
    assert anna.post(f"{ranking}/train", model="ft:nothing", method="dpo").status == 400
    assert anna.get("/studio/files").body == before


def test_names_that_are_paths_or_sql_name_nothing(anna: Visitor) -> None:
    for name in (*TRAVERSAL, *INJECTIONS):
        quoted = urlencode({"": name})[1:]
        for path in (f"/studio/jobs/{quoted}", f"/studio/files/{quoted}", f"/studio/static/{quoted}"):
            assert anna.get(path).status in (400, 404), (path, name)
        assert anna.get(f"/studio/jobs?search={quoted}&status={quoted}&page={quoted}").status in (200, 400)


def test_changes_are_in_the_audit_log_and_questions_are_not(served: Studio, anna: Visitor) -> None:
    before = len(served.service.audit.listed())
    made = anna.upload(chats(12))
    file = made.headers["location"].split("/")[3]
    assert anna.post(f"/studio/files/{file}/rows/2/exclude").status == 303
    anna.post("/studio/playground/answer", model="gpt-4o-mini", question="")
    told = [(row["action"], row["object_id"]) for row in served.service.audit.listed()[before:]]
    assert told[0] == ("POST /studio/files", file)
    assert [action for action, _ in told[1:]] == ["POST /studio/files/{file_id}/rows/{line}/exclude"]
    assert served.service.audit.verify().broken_at is None
