"""Runs the source of a Python grader in a locked process of its own; see `_jail_runner.py` for the walls.

Without the filter of system calls there is no jail, and nothing runs.
"""

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from luthier.evaluation.graders.base import Limits

RUNNER = Path(__file__).with_name("_jail_runner.py")
SETUP_SECONDS = 20.0
"""What a busy machine may take to start Python and put up the walls; the grader's own time begins after that."""

Ending: TypeAlias = Literal["reward", "no_number", "failed", "no_jail"]


@dataclass(frozen=True)
class Outcome:
    """What came of a source."""

    ending: Ending
    """`no_number`: its result is none. `failed`: it raised, met a limit, or was ended. `no_jail`: it did not run."""
    reward: float = 0.0
    details: str = ""
    layers: tuple[str, ...] = ()
    """The walls that stood."""


def run_jailed(
    source: str, sample: Mapping[str, Any], item: Mapping[str, Any], limits: Limits, only_check: bool = False
) -> Outcome:
    """Run `grade(sample, item)` of a source, or only see whether it could be run."""
    if sys.platform != "linux":
        return Outcome("no_jail", details=f"Python graders need Linux, which locks them in; this is {sys.platform}")
    try:
        request = {
            "source": source,
            "sample": sample,
            "item": item,
            "only_check": only_check,
            "memory_bytes": limits.memory_bytes,
            "seconds": limits.seconds,
        }
        text = json.dumps(request)
    except (TypeError, ValueError, RecursionError) as error:
        return Outcome("failed", details=f"the item or the sample cannot be handed over as JSON: {error}")
    try:
        return _run(text.encode("ascii"), limits.seconds)
    except OSError as error:
        return Outcome("no_jail", details=f"the process cannot be started: {error}")


def _run(request: bytes, seconds: float) -> Outcome:
    # files, not pipes: one that reads nothing cannot make us wait, and one that writes much cannot fill our memory
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as written:
        given.write(request)
        given.seek(0)
        with subprocess.Popen(
            [sys.executable, "-P", "-s", "-S", "-B", "-X", "utf8", str(RUNNER)],
            stdin=given,
            stdout=written,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=_environment(),
            start_new_session=True,
        ) as process:
            try:
                code: int | None = process.wait(seconds + SETUP_SECONDS)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                if process.returncode is None:  # else its number may be another's by now
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
        written.seek(0)
        lines = written.read(2**17).split(b"\n")
    return _outcome(lines, code, seconds)


def _environment() -> dict[str, str]:
    """Where Python finds its own libraries, and one order of sets for all grades, or rewards could not be repeated."""
    kept = {name: value for name, value in os.environ.items() if name == "LD_LIBRARY_PATH"}
    return {**kept, "PYTHONHASHSEED": "0"}


def _outcome(lines: list[bytes], code: int | None, seconds: float) -> Outcome:
    setup = _object(lines[0])
    layers = tuple(setup.get("layers", ()))
    if not layers:
        told = setup.get("no_jail") or f"the jail's process {_ended(code, seconds)} before the walls stood"
        return Outcome("no_jail", details=str(told))
    if len(lines) > 3:
        return Outcome("failed", details="the source wrote to the jail's own output", layers=layers)
    said = _object(lines[1]) if len(lines) > 1 else {}
    reward = said.get("reward")
    if code == 0 and isinstance(reward, float) and math.isfinite(reward):
        return Outcome("reward", reward, layers=layers)
    if code == 0 and isinstance(reward, float):
        return Outcome("no_number", details=f"grade returned {reward}", layers=layers)
    if code == 0 and "no_number" in said:
        return Outcome("no_number", details=str(said["no_number"]), layers=layers)
    details = said.get("error") or f"the source {_ended(code, seconds)} without a reward"
    return Outcome("failed", details=str(details), layers=layers)


def _object(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _ended(code: int | None, seconds: float) -> str:
    if code in (None, -signal.SIGALRM, -signal.SIGXCPU):
        return f"took longer than {seconds:g} s and was ended"
    return f"was ended by {signal.strsignal(-code)}" if code < 0 else f"ended with exit code {code}"
