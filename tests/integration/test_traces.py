"""`luthier up` with `traces`: a collector gets a span for each request and for each process of a job, and no secret."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from tests.jobs_attack import Peer
from tests.jobs_service import MODEL, rows, start

from luthier.errors import ServeError
from luthier.jobs.service import Options, open_service
from luthier.jobs.traces import require_collector

ROW, QUERY, STATE = "canary-row-2be771", "canary-query-90ab14", "canary-state-5c3d02"
WITHOUT_SENDER = """
import sys
sys.modules["opentelemetry.exporter.otlp.proto.http.trace_exporter"] = None
from luthier.jobs.traces import require_collector
require_collector({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"})
"""
TRACE = "0af7651916cd43dd8448eb211c80319c"


@contextmanager
def _collector(bodies: list[bytes]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_collector_gets_requests_and_jobs(tmp_path: Path, tiny_model_folder: Path) -> None:
    bodies: list[bytes] = []
    with _collector(bodies) as endpoint:
        more = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_COMPRESSION": "none"}
        process, url = start(tmp_path / "s", tiny_model_folder, tmp_path / "log", ["--set", "traces=true"], more)
        try:
            with open_service(Options(tmp_path / "s", bases=(str(tiny_model_folder),))) as service:
                key = service.tenants.add_key("p", "k")
            caller = Peer(int(url.rsplit(":", 1)[1].split("/")[0]), key)
            file = caller.upload(rows(30).replace(b"It is", ROW.encode())).values["id"]
            asked = {"model": MODEL, "training_file": file, "hyperparameters": {"n_epochs": 1, "batch_size": 8}}
            job = caller.post("/v1/fine_tuning/jobs", asked).values
            parent = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-00", "tracestate": f"a={STATE}"}
            listed = caller.send("GET", f"/v1/fine_tuning/jobs?metadata[{QUERY}]={QUERY}", headers=parent)
            assert listed.status == 200, listed.body
            until = time.monotonic() + 120
            while (job := caller.get(f"/v1/fine_tuning/jobs/{job['id']}").values)["status"] != "succeeded":
                assert time.monotonic() < until and job["status"] != "failed", job
                time.sleep(0.2)
        finally:
            process.terminate()
            assert process.wait(60) == 0
    spans = [
        span
        for body in bodies
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    names = {span.name for span in spans}
    assert {"POST /v1/files", "POST /v1/fine_tuning/jobs", "GET /v1/fine_tuning/jobs/{job_id}"} <= names, names
    (listing,) = [span for span in spans if span.name == "GET /v1/fine_tuning/jobs"]
    assert listing.trace_id.hex() != TRACE and not listing.parent_span_id
    (trained,) = [span for span in spans if span.name == "fine_tuning.job"]
    told = {one.key: one.value.string_value or one.value.int_value for one in trained.attributes}
    assert told == {"luthier.job.id": job["id"], "luthier.job.attempt": 1, "process.exit.code": 0}
    assert trained.end_time_unix_nano - trained.start_time_unix_nano > 0.2e9
    for canary in (ROW, QUERY, STATE, str(key)):
        assert canary.encode() not in b"".join(bodies)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "127.0.0.1:4318"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c.example:99999"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://[::1"},
        {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "grpc://c.example", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c.example"},
    ],
)
def test_traces_without_a_collector_are_refused(environment: dict[str, str]) -> None:
    first = min(environment, key=lambda name: "TRACES" not in name, default="OTEL_EXPORTER_OTLP_ENDPOINT")
    with pytest.raises(ServeError, match=first):
        require_collector(environment)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_SDK_DISABLED", "True"),
        ("OTEL_TRACES_EXPORTER", "none"),
        ("OTEL_TRACES_EXPORTER", "console"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
    ],
)
def test_an_environment_that_sends_nothing_is_refused(name: str, value: str) -> None:
    with pytest.raises(ServeError, match=name):
        require_collector({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318", name: value})


def test_any_environment_by_which_spans_are_sent_is_taken() -> None:
    require_collector({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"})
    require_collector(
        {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://c.example/v1/traces", "OTEL_SDK_DISABLED": "false"}
    )
    usual = {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"}
    require_collector(
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c.example", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", **usual}
    )


def test_another_exporter_alone_is_not_enough() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_SENDER], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "ServeError" in done.stderr and "luthier[otel]" in done.stderr, done.stderr
