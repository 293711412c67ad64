"""What the processes of the service get of its environment: where things lie, and no secrets."""

import os
from collections.abc import Mapping

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
    "CUDA_VISIBLE_DEVICES",
    "LD_LIBRARY_PATH",
    "TOKENIZERS_PARALLELISM",
)
"""Addresses of package indexes and proxies are none of these: they may hold a password."""
PARENT = "LUTHIER_SUPERVISOR"
"""The process with which a child ends."""


def child_environment(more: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child of this process, with what it is told."""
    found = {name: os.environ[name] for name in PASSED if name in os.environ}
    return {**found, **more, PARENT: str(os.getpid())}
