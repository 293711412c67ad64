"""A million rows through `luthier check`: rows per second and peak memory of the command.

    python -m benchmarks.data [--rows 1000000] [--keep FOLDER]

The rows are generated: short support questions with labels, 1 % of them held out as a test file. Planted, and counted
again in what comes out: exact repeats, near repeats, leaks, contradicting labels. Exits with 1 over 1 GiB, or if fewer
are found than were planted.
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
from collections.abc import Iterator
from pathlib import Path

LIMIT_BYTES = 1 << 30
PLANTED = 0.001  # of all rows, for each kind
FOUND_AS = {
    "exact repeats": ("warning", "exact_duplicates"),
    "near repeats": ("warning", "near_duplicates"),
    "contradicting rows": ("warning", "contradictions"),
    "leaks": ("error", "leakage"),
}
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


def measure(folder: Path, count: int) -> int:
    """Run `luthier check` on the generated files, print what it took, and say whether it kept to the limit."""
    planted = generate(folder, count)
    size = sum(path.stat().st_size for path in folder.glob("*.jsonl"))
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    files = [str(folder / "train.jsonl"), "--test", str(folder / "test.jsonl")]
    command = [sys.executable, "-m", "luthier.cli.main", "check", *files, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | threads)
    took = resource.getrusage(resource.RUSAGE_CHILDREN)
    if not done.stdout:  # the exit code tells nothing: the leaks that were planted make it 1
        sys.exit(f"the checks failed:\n{done.stderr}")
    said = json.loads(done.stdout)
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, one thread")
    print(f"{count:,} rows, {size / 1e6:,.0f} MB; planted: {planted}")
    for finding in said["findings"]:
        print(f"  {finding['severity']:<8} {finding['check']:<18} {finding['count']:,}")
    for clock, seconds in (("processor", took.ru_utime + took.ru_stime), ("wall", said["seconds"])):
        print(f"{count / seconds:,.0f} rows per second of {clock} time ({seconds:.0f} s, reading included)")
    peak = took.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"peak memory {peak / 2**20:,.0f} MiB (limit {LIMIT_BYTES >> 20:,} MiB)")
    found = {(finding["severity"], finding["check"]): finding["count"] for finding in said["findings"]}
    missed = {name: number for name, number in planted.items() if found.get(FOUND_AS[name], 0) < number}
    print(f"missed: {missed}" if missed else "all that was planted was found")
    return int(peak > LIMIT_BYTES or bool(missed))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--keep", type=Path, help="keep the generated files in this folder")
    arguments = parser.parse_args()
    if arguments.rows < 1000:
        parser.error("--rows must be at least 1,000")
    if arguments.keep:
        arguments.keep.mkdir(parents=True, exist_ok=True)
        return measure(arguments.keep, arguments.rows)
    with tempfile.TemporaryDirectory() as folder:
        return measure(Path(folder), arguments.rows)


if __name__ == "__main__":
    sys.exit(main())
