"""What schemathesis loads into its own process (`SCHEMATHESIS_HOOKS`): it counts requests, and judges refusals."""

import atexit
import json
import os
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import schemathesis
from schemathesis import CheckContext, HookContext, Response
from schemathesis.generation.case import Case
from tests.fuzz.sent import is_whole_float

SHAPE = ("missing_required_parameter", "unknown_parameter", "invalid_type", "invalid_value", "out_of_range")
"""Codes that say that a request is not of the documented shape, and not that its meaning is wrong."""
IN_WORDS = (
    ".content' is required",
    "need each other",
    "Token ids must be between",
    "holds the same option twice",
    "names no call before it",
)
"""What schemas cannot say: a reply has content or calls, a vocabulary has an end, names differ whatever is beside."""
_counts: Counter[str] = Counter()
_lock = threading.Lock()


@schemathesis.hook
def after_call(context: HookContext, case: Case, response: Response) -> None:
    """Count an answer by its route and status."""
    with _lock:
        _counts[f"{case.operation.label} {response.status_code}"] += 1


@schemathesis.check
def documented_is_taken(ctx: CheckContext, response: Response, case: Case) -> None:
    """What the document allows is not refused for its shape."""
    meta: Any = case.meta
    if response.status_code == 400 and meta is not None and meta.generation.mode.is_positive:
        error = response.json()["error"]
        in_words = any(one in error["message"] for one in IN_WORDS)
        in_words = in_words or is_whole_float(case.body, error["param"])
        assert error["code"] not in SHAPE or in_words, f"the document allows what is refused: {error['message']}"


@atexit.register
def _write() -> None:
    Path(os.environ["FUZZ_COUNTS"]).write_text(json.dumps(_counts))
