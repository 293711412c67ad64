"""How long the command line takes to answer, in twenty fresh processes each.

`luthier --help` lists every verb without importing any of them, so it should take little more than Python itself. The
limit is on processor time, which a busy machine does not change; wall time is printed beside it.
"""

import resource
import statistics
import subprocess
import sys
import time

REPEATS = 20
LIMIT_SECONDS = 0.3
COMMANDS = {
    "python alone": [sys.executable, "-c", "pass"],
    "luthier --help": [sys.executable, "-m", "luthier.cli.main", "--help"],
    "luthier recipe --help": [sys.executable, "-m", "luthier.cli.main", "recipe", "--help"],
}


def children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure(command: list[str]) -> tuple[float, float]:
    """Median processor and wall seconds."""
    processor, wall = [], []
    for _ in range(REPEATS):
        before, began = children_seconds(), time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        processor.append(children_seconds() - before)
        wall.append(time.perf_counter() - began)
    return statistics.median(processor), statistics.median(wall)


def main() -> int:
    slowest = 0.0
    for name, command in COMMANDS.items():
        processor, wall = measure(command)
        slowest = max(slowest, processor)
        print(f"{name:<24} {processor:.3f} s of processor time, {wall:.3f} s on the clock (medians of {REPEATS})")
    print(f"limit: {LIMIT_SECONDS} s of processor time")
    return int(slowest > LIMIT_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
