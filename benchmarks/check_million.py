"""A million rows through every data check: rows per second and peak memory, measured in a process of its own.

    python benchmarks/check_million.py [--rows 1000000] [--keep FOLDER]

The rows are generated: short support questions with labels, 1 % of them held out as a test file. Planted, and counted
again in what comes out: exact repeats, near repeats, leaks, contradicting labels. Exits with 1 over 1 GiB.
"""

import argparse
import itertools
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

LIMIT_BYTES = 1 << 30
PLANTED = 0.001  # of all rows, for each kind
LABELS = [f"intent_{number:02d}" for number in range(60)]
SYLLABLES = ["".join(pair) for pair in itertools.product("bcdfghjklmnpqrstvwxz", "aeiou")]
TEMPLATE = "Classify the customer's message. Answer with the intent label only."


def word(generator: random.Random) -> str:
    return "".join(generator.choices(SYLLABLES, k=generator.randint(2, 4)))


def row(asked: str, label: str) -> str:
    turns = [("system", TEMPLATE), ("user", asked), ("assistant", label)]
    return json.dumps({"messages": [{"role": role, "content": text} for role, text in turns]}) + "\n"


def rows(count: int, generator: random.Random) -> Iterator[tuple[str, str]]:
    words = [word(generator) for _ in range(20_000)]
    for number in range(count):
        asked = " ".join(generator.choices(words, k=generator.randint(12, 30)))
        yield f"{asked} {number}", generator.choice(LABELS)


def generate(folder: Path, count: int) -> dict[str, int]:
    """Write train.jsonl and test.jsonl; return how many rows of each kind were planted."""
    generator = random.Random(0)
    held_out, planted = count // 100, max(int(count * PLANTED), 1)
    kept: list[tuple[str, str]] = []
    source = rows(count - held_out - 3 * planted, generator)
    with (folder / "train.jsonl").open("w", encoding="utf-8") as train:
        for number, (asked, label) in enumerate(source):
            train.write(row(asked, label))
            if number < 4 * planted:
                kept.append((asked, label))
        for asked, label in kept[:planted]:
            train.write(row(asked, label))
        for asked, label in kept[planted : 2 * planted]:
            train.write(row(asked.replace(" ", ", ", 1).upper() + "!", label))
        for asked, label in kept[2 * planted : 3 * planted]:
            train.write(row(asked, "another_" + label[-2:]))
    with (folder / "test.jsonl").open("w", encoding="utf-8") as test:
        for asked, label in kept[3 * planted :]:
            test.write(row(asked, label))
        for asked, label in rows(held_out - planted, generator):
            test.write(row("held out " + asked, label))
    return {"exact repeats": planted, "near repeats": planted, "contradicting rows": 2 * planted, "leaks": planted}


def child(folder: Path) -> None:
    """Run every check and print time and findings as JSON; the parent reads this process's peak memory."""
    from luthier.data.checks.base import run_checks
    from luthier.data.formats.base import read_examples

    began, began_cpu = time.perf_counter(), time.process_time()
    findings = run_checks({name: read_examples(folder / f"{name}.jsonl") for name in ("train", "test")})
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - began_cpu
    found = [(finding.severity, finding.check, finding.count) for finding in findings]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "findings": found, "peak_bytes": peak}))


def measure(folder: Path, count: int) -> int:
    planted = generate(folder, count)
    size = sum(path.stat().st_size for path in folder.glob("*.jsonl"))
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    command = [sys.executable, __file__, "--child", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | threads)
    if done.returncode:
        sys.exit(f"the checks failed:\n{done.stderr}")
    measured = json.loads(done.stdout)
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, one thread")
    print(f"{count:,} rows, {size / 1e6:,.0f} MB; planted: {planted}")
    for severity, check, found in measured["findings"]:
        print(f"  {severity:<8} {check:<18} {found:,}")
    for clock, seconds in (("processor", measured["cpu_seconds"]), ("wall", measured["seconds"])):
        print(f"{count / seconds:,.0f} rows per second of {clock} time ({seconds:.0f} s, reading included)")
    print(f"peak memory {measured['peak_bytes'] / 2**20:,.0f} MiB (limit {LIMIT_BYTES >> 20:,} MiB)")
    return int(measured["peak_bytes"] > LIMIT_BYTES)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--keep", type=Path, help="keep the generated files in this folder")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child)
        return 0
    if arguments.rows < 1000:
        parser.error("--rows must be at least 1,000")
    if arguments.keep:
        arguments.keep.mkdir(parents=True, exist_ok=True)
        return measure(arguments.keep, arguments.rows)
    with tempfile.TemporaryDirectory() as folder:
        return measure(Path(folder), arguments.rows)


if __name__ == "__main__":
    sys.exit(main())
