"""What the processes of the service get of its environment: where things lie, and no secrets."""

import os
from collections.abc import Mapping, Sequence

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
WANDB = ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE")
"""What only a job gets that asks for Weights & Biases: the key to the operator's account there."""
PARENT = "LUTHIER_SUPERVISOR"
"""The process with which a child ends."""


def child_environment(more: Mapping[str, str], also: Sequence[str] = ()) -> dict[str, str]:
    """The environment of a child of this process, with what it is told; `also` are further names that it gets."""
    found = {name: os.environ[name] for name in (*PASSED, *also) if name in os.environ}
    return {**found, **more, PARENT: str(os.getpid())}
