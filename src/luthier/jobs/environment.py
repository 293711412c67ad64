"""What the processes of the service get of its environment: where things lie, their share of the cores, no secrets."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from luthier.jobs.private import private_file

PASSED = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "VIRTUAL_ENV",
    "PYTHONPATH",
    "LUTHIER_HOME",
    "LUTHIER_CACHE",
    "LUTHIER_OFFLINE",
    "XDG_CACHE_HOME",
    "XDG_DATA_HOME",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "CUDA_VISIBLE_DEVICES",
    "LD_LIBRARY_PATH",
    "TOKENIZERS_PARALLELISM",
)
"""Addresses of package indexes and proxies are none of these: they may hold a password."""
WANDB = ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE")
"""What only a job gets that asks for Weights & Biases: the key to the operator's account there."""
PARENT = "LUTHIER_SUPERVISOR"
"""The process with which a child ends."""


THREADS, WAITING = "OMP_NUM_THREADS", "OMP_WAIT_POLICY"


def training_threads(at_once: int) -> dict[str, str]:
    """Threads of each of so many jobs that train at a time: what answers leave.

    With as many threads as cores, each barrier waits for one that another process has pushed aside: under 200 clients
    steps on two cores took 12 to 19 s instead of 0.5. A number that the operator set stays.
    """
    return _threads((_cores() - _answering(at_once)) // max(at_once, 1))


def answering_threads(at_once: int) -> dict[str, str]:
    """Threads of an engine beside so many jobs: a quarter of the cores, or all if nothing trains here."""
    return _threads(_answering(at_once))


def _answering(at_once: int) -> int:
    return max(1, _cores() // 4) if at_once else _cores()


def _cores() -> int:
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _threads(number: int) -> dict[str, str]:
    return {} if THREADS in os.environ else {THREADS: str(max(1, number))}


def child_environment(more: Mapping[str, str], also: Sequence[str] = ()) -> dict[str, str]:
    """The environment of a child of this process, with what it is told; `also` are further names that it gets."""
    found = {name: os.environ[name] for name in (*PASSED, *also) if name in os.environ}
    # threads that wait for one another sleep: they share their cores with other processes
    return {WAITING: "PASSIVE", **found, **more, PARENT: str(os.getpid())}


def start_child(
    program: str, arguments: Sequence[str], log: Path, environment: Mapping[str, str], own_session: bool = False
) -> "subprocess.Popen[bytes]":
    """A process of this service that runs a module of ours, and prints to the end of a log.

    Args:
        program: the module.
        arguments: of its command line.
        log: a file of this user's alone.
        environment: as of `child_environment`.
        own_session: ctrl-C in the terminal does not reach it.

    Raises:
        OSError: the log cannot be written, or no process begun.
    """
    with private_file(log, "ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=own_session,
        )
