"""What attackers of the job service send: any bytes, with any key, by any route."""

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.routing import Route
from tests.jobs_service import MODEL, Running, rows

from luthier.jobs.http.app import build_routes
from luthier.jobs.job_store import Told

TRAVERSAL = [
    "../../canary",
    "..%2f..%2fcanary",
    "%2e%2e/%2e%2e/canary",
    "%252e%252e%252fcanary",
    "..\\..\\canary",
    "/etc/passwd",
    "//etc/passwd",
    "C:\\Windows\\win.ini",
    "file:///etc/passwd",
    "a\x00b",
    "a%00b",
    "..%c0%afcanary",
    "..%ef%bc%8fcanary",
    "....//....//canary",
    ".",
    "..",
    "~root",
    "x" * 5000,
]
INJECTIONS = [
    "' OR '1'='1",
    "'; DROP TABLE jobs; --",
    '" OR ""="',
    "1) UNION SELECT sha256 FROM keys --",
    'x" OR 1=1 --',
    'a"]."b',
    "%",
    "_",
    "${AWS_SECRET_ACCESS_KEY}",
    "$(touch canary)",
    "`touch canary`",
    "{{ 7 * 7 }}",
]
PARAMETERS = [
    "{file_id}",
    "{upload_id}",
    "{job_id}",
    "{name:path}",
    "{permission_id}",
    "{eval_id}",
    "{run_id}",
    "{item_id}",
]
"""What stands in the patterns of routes."""
EVAL = {
    "data_source_config": {
        "type": "custom",
        "item_schema": {"type": "object", "properties": {"a": {"type": "string"}}},
    },
    "testing_criteria": [
        {"type": "string_check", "name": "same", "input": "{{item.a}}", "reference": "x", "operation": "eq"}
    ],
}
RUN = {"data_source": {"type": "jsonl", "source": {"type": "file_content", "content": [{"item": {"a": "x"}}]}}}
FREE = ("/healthz", "/readyz")
JSON = {"content-type": "application/json"}
BOUNDARY = "b0undary"
FORM = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def values(self) -> dict[str, Any]:
        """The JSON object of the body."""
        found = json.loads(self.body)
        assert isinstance(found, dict)
        return found

    @property
    def error(self) -> dict[str, Any]:
        """OpenAI's error object."""
        found = self.values["error"]
        assert isinstance(found, dict)
        return found


@dataclass(frozen=True)
class Peer:
    """Somebody who talks to a service on loopback."""

    port: int
    key: str | None = None

    def send(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """One request on a connection of its own."""
        sent = {**({} if self.key is None else {"authorization": f"Bearer {self.key}"}), **(headers or {})}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def get(self, path: str) -> Answer:
        """GET."""
        return self.send("GET", path)

    def post(self, path: str, values: Any) -> Answer:
        """POST of JSON."""
        return self.send("POST", path, json.dumps(values).encode(), JSON)

    def upload(self, content: bytes, filename: str = "rows.jsonl", **fields: str) -> Answer:
        """POST /v1/files."""
        parts = [*({"purpose": "fine-tune"} | fields).items()]
        return self.send("POST", "/v1/files", form(parts, "file", filename, content), FORM)

    def raw(self, text: bytes) -> bytes:
        """Bytes as they are; what comes until the end of the connection."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            connection.sendall(text)
            data = b""
            with contextlib.suppress(TimeoutError, ConnectionError):
                while chunk := connection.recv(65536):
                    data += chunk
            return data


def peer(running: Running, project: str = "default", role: Any = "member") -> Peer:
    """Somebody with a fresh key."""
    return Peer(port_of(running), running.service.tenants.add_key(project, "test", role))


def port_of(running: Running) -> int:
    """Where the service listens."""
    return int(running.url.rsplit(":", 1)[1].split("/")[0])


def form(fields: Sequence[tuple[str, str]], file: str, filename: str, content: bytes) -> bytes:
    """A multipart body; names stand in it as they are."""
    parts = [f'Content-Disposition: form-data; name="{name}"\r\n\r\n{value}'.encode() for name, value in fields]
    parts.append(f'Content-Disposition: form-data; name="{file}"; filename="{filename}"\r\n\r\n'.encode() + content)
    return b"".join(b"--" + BOUNDARY.encode() + b"\r\n" + part + b"\r\n" for part in parts) + f"--{BOUNDARY}--".encode()


def routes_of(running: Running) -> list[tuple[str, str]]:
    """Every path pattern with every method that it takes."""
    app = build_routes(running.service)
    assert all(isinstance(route, Route) for route in app.routes), "a mounted application would escape the key"
    found = [route for route in app.routes if isinstance(route, Route)]
    return [(method, route.path) for route in found for method in route.methods or ()]


@dataclass(frozen=True)
class Belongings:
    """What a project has, one of each kind; the model is only a row."""

    file: str
    upload: str
    part: str
    job: str
    model: str
    permission: str
    eval: str
    run: str
    item: str

    def path(self, pattern: str) -> str:
        """A route's path with these ids."""
        ids = (self.file, self.upload, self.job, self.model, self.permission, self.eval, self.run, self.item)
        for name, value in zip(PARAMETERS, ids, strict=True):
            pattern = pattern.replace(name, value)
        assert "{" not in pattern, pattern
        return pattern


def settle(running: Running, project: str) -> Belongings:
    """Give a project one of everything."""
    member, store = peer(running, project), running.service.jobs
    file = member.upload(rows(12, seed=5)).values["id"]
    asked = {"bytes": 3, "filename": "a", "mime_type": "text/plain", "purpose": "batch"}
    upload = member.post("/v1/uploads", asked).values["id"]
    sent = member.send("POST", f"/v1/uploads/{upload}/parts", form([], "data", "a", b"abc"), FORM)
    job = member.post("/v1/fine_tuning/jobs", {"model": MODEL, "training_file": file}).values["id"]
    while member.get(f"/v1/fine_tuning/jobs/{job}").values["status"] == "validating_files":
        time.sleep(0.05)  # from here on nothing changes by itself
    (row,) = [row for row in store.in_status("queued") if row["id"] == job]
    model = f"ft:{MODEL}:luthier::{job[-8:]}"
    store.add_model(row, model, "/nowhere")
    store.add_checkpoint(row, 3, f"{model}:ckpt-step-3", {"step": 3.0})
    store.note(job, [Told("x", "something happened")])
    (grant,) = store.grant(row["project_id"], model, [running.service.tenants.project(f"friend of {project}")])
    eval_ = member.post("/v1/evals", EVAL).values["id"]
    run = member.post(f"/v1/evals/{eval_}/runs", RUN).values["id"]
    while member.get(f"/v1/evals/{eval_}/runs/{run}").values["status"] != "completed":
        time.sleep(0.05)
    item = member.get(f"/v1/evals/{eval_}/runs/{run}/output_items").values["data"][0]["id"]
    return Belongings(file, upload, sent.values["id"], job, model, grant["id"], eval_, run, item)
