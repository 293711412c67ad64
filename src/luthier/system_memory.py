"""Memory of the machine, as far as this process may have it: the limits of control groups count, too (containers).

Loads no torch, so that whoever starts processes that train can ask.
"""

import sys
from contextlib import suppress
from pathlib import Path

import psutil


def free_bytes() -> int:
    """What can be taken now beside all that is held."""
    own = _own_group()
    left = [] if own is None else left_in_groups(own)
    return int(min(psutil.virtual_memory().available, *left, sys.maxsize))


def total_bytes() -> int:
    """What this process could hold if nothing else held any."""
    own = _own_group()
    limits = [] if own is None else [limit for limit, _ in _limited(own)]
    return int(min(psutil.virtual_memory().total, *limits, sys.maxsize))


def own_bytes(process: int) -> int:
    """What a process holds for itself, without pages of files, which are given back when others need memory.

    Raises:
        psutil.Error: it ended.
    """
    found = psutil.Process(process).memory_info()
    return int(found.rss - found.shared if sys.platform == "linux" else found.rss)


def left_in_groups(own: Path) -> list[int]:
    """Bytes that are left of each memory limit on a control group (version 2) and on those around it."""
    found = []
    for limit, place in _limited(own):
        with suppress(OSError, ValueError):
            used = int((place / "memory.current").read_text(encoding="ascii"))
            # pages of files are given back when others are needed
            stats = dict(line.split() for line in (place / "memory.stat").read_text(encoding="ascii").splitlines())
            found.append(limit - used + int(stats.get("inactive_file", 0)))
    return found


def _limited(own: Path) -> list[tuple[int, Path]]:
    found = []
    for place in (own, *own.parents):
        with suppress(OSError, ValueError):  # the outermost has no limit, and "max" is none
            found.append((int((place / "memory.max").read_text(encoding="ascii")), place))
    return found


def _own_group() -> Path | None:
    """The folder of this process's control group; None: there is none."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines()
    except OSError:  # no Linux
        return None
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), None)
    return None if own is None else Path("/sys/fs/cgroup") / own
