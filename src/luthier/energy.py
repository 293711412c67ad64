"""Energy that a part of a run took, from the processor's own counters (RAPL, as Linux shows them under powercap).

A counter is in microjoules and starts again at its range: at 150 W a range of 262 kJ lasts half an hour, so a thread
reads it every few seconds. Counted are whole processor packages and, where it is apart from them, memory. What the
GPU, the disks and the power supply take is not in it, nor is energy of this process told from that of others. Where the
counters are not there or not readable (they are the administrator's alone on most systems) nothing is measured.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
EVERY_SECONDS = 5.0
JOULES_PER_KWH = 3.6e6


@dataclass
class Spent:
    """What a part took; `joules` is None while it runs, and where nothing could be measured."""

    joules: float | None = None
    readings: int = 0
    """How often the counters were read while it ran."""


@dataclass
class Counter:
    """One domain's counter, added up over its restarts."""

    folder: Path
    range_microjoules: int
    last: int
    total: int = field(default=0)

    def read(self) -> None:
        """Add what was taken since the last reading, which must be less than one range ago."""
        now = _number(self.folder / "energy_uj")
        self.total += now - self.last if now >= self.last else now - self.last + self.range_microjoules
        self.last = now


def _number(path: Path) -> int:
    return int(path.read_text(encoding="ascii"))


def counters(root: Path = POWERCAP) -> list[Counter]:
    """The counters of packages and memory that this process may read."""
    found = []
    for folder in sorted(root.glob("intel-rapl:*")):
        try:
            name = (folder / "name").read_text(encoding="ascii").strip()
            # `psys` holds the packages again, and `core` and `uncore` are parts of theirs
            if name.startswith("package") or name == "dram":
                found.append(Counter(folder, _number(folder / "max_energy_range_uj"), _number(folder / "energy_uj")))
        except (OSError, ValueError):
            continue
    return found


@contextmanager
def measured(root: Path = POWERCAP, every_seconds: float = EVERY_SECONDS) -> Iterator[Spent]:
    """Measure the energy of a block; `joules` of what is yielded is set when it ends."""
    spent, found = Spent(), counters(root)
    if not found:
        yield spent
        return
    stop, failed = threading.Event(), threading.Event()

    def read_all() -> None:
        try:
            for counter in found:
                counter.read()
        except (OSError, ValueError):
            failed.set()  # a sum with a gap would be too small: nothing is told

    def follow() -> None:
        while not stop.wait(every_seconds):
            read_all()
            spent.readings += 1

    thread = threading.Thread(target=follow, name="energy", daemon=True)
    thread.start()
    try:
        yield spent
    finally:
        stop.set()
        thread.join()
        read_all()
        if not failed.is_set():
            spent.joules = sum(counter.total for counter in found) / 1e6
