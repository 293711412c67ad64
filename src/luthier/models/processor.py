"""What this machine's processor can do, as the system tells it."""

from functools import cache
from pathlib import Path

BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16"})
"""Names of x86 instructions that multiply bfloat16 numbers."""


@cache
def features() -> frozenset[str]:
    """Names of the instructions that Linux lists; empty where no file lists them."""
    information = Path("/proc/cpuinfo")
    if not information.exists():
        return frozenset()
    lines = information.read_text(encoding="utf-8", errors="replace").splitlines()
    listed = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return frozenset(listed.partition(":")[2].split())
