"""Spans of OpenTelemetry: FastAPI makes those of requests by itself, here are those of jobs.

The API comes with FastAPI and does nothing until somebody says where spans go; who sends them is the SDK, an extra.
Spans of requests have paths and queries, so ids and names, and never a body, a header or an exception's words.
"""

import importlib.util
from collections.abc import Mapping

from fastapi.telemetry import TelemetryConfig
from opentelemetry import trace
from opentelemetry.trace import StatusCode

from luthier.errors import ServeError

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
SENDER = "opentelemetry.exporter"


def telemetry(traces: bool) -> TelemetryConfig:
    """What FastAPI shall tell: spans or nothing. Its log records quote exceptions, and Prometheus has the figures."""
    return {
        "tracing": traces,
        "metrics": False,
        "logs": False,
        "operation_spans": False,
        "auto_configure": traces,
    }


def require_collector(environment: Mapping[str, str]) -> None:
    """Whether spans can be sent.

    Raises:
        ServeError: nobody said where, or the SDK is not installed.
    """
    if not environment.get(ENDPOINT, "").startswith(("http://", "https://")):
        raise ServeError(f"--traces: set {ENDPOINT} to a collector's address, such as http://127.0.0.1:4318")
    if importlib.util.find_spec("opentelemetry.sdk") is None or importlib.util.find_spec(SENDER) is None:
        raise ServeError("--traces needs OpenTelemetry's SDK: pip install 'luthier[otel]'")


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
