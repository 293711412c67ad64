"""Every benchmark of a method, one after the other, into docs/methods.md; each goes on where it was.

    python -m benchmarks.methods --data FOLDER [--minutes 60]

FOLDER holds `preference`, `instructions`, `json_extraction`, `toolcalls`, `intents` and `rag_qa`, with the files that
each benchmark names. Stops at the first that is not finished when its minutes are over, with exit code 3; the same
command goes on.
"""

import argparse
import subprocess
import sys
from pathlib import Path

METHODS = (
    "reward_probe",
    "retrievers",
    "classes",
    "rl",
    "bake",
    "preferences",
    "distill",
    "reward",
    "toolcalls",
    "constitution",
)
"""Files beside this one that take `--data` and `--minutes`."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--minutes", type=float, help="of each; absent: as long as it takes")
    asked = parser.parse_args()
    limit = [] if asked.minutes is None else ["--minutes", str(asked.minutes)]
    for name in METHODS:
        command = [sys.executable, "-m", f"benchmarks.{name}", "--data", str(asked.data), *limit]
        if code := subprocess.run(command, check=False).returncode:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
