"""Spans of OpenTelemetry: FastAPI makes those of requests by itself, here are those of jobs.

The API comes with FastAPI and does nothing until somebody says where spans go; who sends them is the SDK, an extra.
Spans of requests have methods and paths, so ids and names, and never a query, a body, a header or an exception's words.
"""

import importlib
import os
from collections.abc import Mapping
from urllib.parse import urlsplit

from fastapi.telemetry import TelemetryConfig
from opentelemetry import trace
from opentelemetry.trace import StatusCode

from luthier.errors import ServeError

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
"""The first that is set counts."""
EXPORTER = "OTEL_TRACES_EXPORTER"
DISABLED = "OTEL_SDK_DISABLED"
SENDERS = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http.trace_exporter")


def telemetry(traces: bool) -> TelemetryConfig:
    """What FastAPI shall tell: spans or nothing. Its log records quote exceptions, and Prometheus has the figures."""
    if traces:
        from luthier.jobs.spans import provide

        provide(os.environ)
    return {
        "tracing": traces,
        "metrics": False,
        "logs": False,
        "operation_spans": False,
        "auto_configure": traces,
    }


def require_collector(environment: Mapping[str, str]) -> None:
    """Whether spans can be sent: where they cannot, FastAPI starts all the same and sends none.

    Raises:
        ServeError: nobody said where, the environment says not to or asks for another way than OTLP over HTTP, or the
            SDK or its sender cannot be imported.
    """
    if environment.get(DISABLED, "").strip().lower() == "true":
        raise ServeError(f"traces: {DISABLED} is true, so nothing would be sent; unset one of both")
    exporter = environment.get(EXPORTER, "")
    if exporter.strip().lower() not in ("", "otlp"):
        raise ServeError(f"traces: {EXPORTER} is {exporter}; expected otlp, or not set")
    name, protocol = _first(environment, PROTOCOLS)
    if protocol not in ("", "http/protobuf"):
        raise ServeError(f"traces: {name} is {protocol}; expected http/protobuf, or not set")
    name, endpoint = _first(environment, ENDPOINTS)
    if not _is_url(endpoint):  # not quoted: it may hold a password
        found = "is no http:// or https:// URL" if endpoint else "is not set"
        raise ServeError(f"traces: {name} {found}; set it to a collector's, such as http://127.0.0.1:4318")
    for module in SENDERS:
        try:
            importlib.import_module(module)  # to find it is not enough: other exporters have the same parent
        except ImportError as error:
            raise ServeError(f"traces cannot import {module} ({error}): pip install 'luthier[otel]'") from None


def _first(environment: Mapping[str, str], names: tuple[str, ...]) -> tuple[str, str]:
    """Name and value of the first variable that is set; the last name and "" if none is."""
    return next(((name, environment[name]) for name in names if environment.get(name)), (names[-1], ""))


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of the port, too
        return False


def tell_attempt(job_id: str, number: int, began: int, exit_code: int, fine: bool) -> None:
    """One span for a process that worked on a job.

    Args:
        job_id: whose.
        number: of the attempt, from 1.
        began: nanoseconds since 1970.
        exit_code: of the process.
        fine: whether it ended as it should.
    """
    attributes: dict[str, str | int] = {
        "luthier.job.id": job_id,
        "luthier.job.attempt": number,
        "process.exit.code": exit_code,
    }
    span = trace.get_tracer("luthier.jobs").start_span("fine_tuning.job", start_time=began, attributes=attributes)
    if not fine:
        span.set_status(StatusCode.ERROR)
    span.end()
