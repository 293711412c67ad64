"""Commands as a user starts them, in processes of their own, to be killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path


def begin(*arguments: str | Path) -> "subprocess.Popen[str]":
    """`luthier` with these arguments."""
    return subprocess.Popen(
        [sys.executable, "-m", "luthier.cli.main", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def end(child: "subprocess.Popen[str]", seconds: float) -> None:
    """Let it end by itself, and well."""
    error = child.communicate(timeout=seconds)[1]
    assert child.returncode == 0, error


def kill(child: "subprocess.Popen[str]") -> int:
    """Its exit code; 0: it was faster."""
    child.send_signal(signal.SIGKILL)
    child.communicate()
    return child.returncode
