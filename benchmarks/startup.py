"""How long the command line takes to answer: the median and the slowest of twenty fresh processes.

`luthier --help` lists every verb without importing any of them, so it should take little more than Python itself.
"""

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


def seconds(command: list[str]) -> list[float]:
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - began)
    return times


def main() -> int:
    slowest = 0.0
    for name, command in COMMANDS.items():
        times = seconds(command)
        slowest = max(slowest, statistics.median(times))
        print(f"{name:<24} median {statistics.median(times):.3f} s   slowest {max(times):.3f} s   of {REPEATS}")
    print(f"limit: a median of {LIMIT_SECONDS} s")
    return int(slowest > LIMIT_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
