"""Run benchmarks and keep what they print in `benchmarks/results`, headed by machine, versions and commit."""

import os
import pkgutil
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
APART = ("gpu", "methods", "preferences", "reward", "reward_probe", "rl")
"""Not for `make bench`: what needs a GPU, and what takes hours (`make methods`)."""
METHODS_PAGE = "docs/methods.md"
"""Written by benchmarks, so it differs from the commit as soon as the first of them is done."""
PACKAGES = ("luthier", "torch", "transformers", "tokenizers", "numpy")


def names() -> list[str]:
    """The benchmarks there are: the files of this folder."""
    return sorted(m.name for m in pkgutil.iter_modules([str(FOLDER)]) if not m.name.startswith("_") and not m.ispkg)


def processor() -> str:
    """The processor's own name where the system tells it."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def commit() -> str:
    """The commit measured, marked when files other than `METHODS_PAGE` differ from it."""
    done = _git("describe", "--always")
    if done.returncode:
        return "not a git checkout"
    differs = _git("diff", "--quiet", "HEAD", "--", f":(top,exclude){METHODS_PAGE}").returncode
    return done.stdout.strip() + ("-dirty" if differs else "")


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], cwd=FOLDER.parent, capture_output=True, text=True, check=False)


def threads_of(options: Sequence[str]) -> str:
    """The threads that were asked for; benchmarks that take `--threads` use one and then all where it is left out."""
    if "--threads" in options[:-1]:
        return options[options.index("--threads") + 1]
    return os.environ.get("OMP_NUM_THREADS", "all")


def heading(name: str, options: Sequence[str] = ()) -> str:
    """What a figure means nothing without."""
    threads = threads_of(options)
    lines = [
        f"benchmark  {name}",
        f"taken      {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}",
        f"commit     {commit()}",
        f"machine    {processor()}, {os.cpu_count()} cores, threads: {threads}, {platform.platform()}",
        f"versions   Python {platform.python_version()}, " + ", ".join(f"{p} {version(p)}" for p in PACKAGES),
    ]
    return "\n".join(lines) + "\n"


def result_file(name: str, options: Sequence[str] = ()) -> Path:
    """Where the result of a benchmark taken today on this processor is kept; one in float32, or with one thread,
    beside the other."""
    name += "-float32" if "--float32" in options else ""
    name += "-1-thread" if threads_of(options) == "1" else ""
    machine = re.sub(r"[^a-z0-9]+", "-", processor().lower()).strip("-")
    return RESULTS / f"{name}_{machine}_{time.strftime('%Y-%m-%d', time.gmtime())}.md"


def run(name: str, options: Sequence[str]) -> int:
    """Run one benchmark, pass its output on as it comes, and keep it, but for what it says of its progress."""
    head = heading(name, options)
    print(head, flush=True)
    command = [sys.executable, "-u", "-m", f"benchmarks.{name}", *options]
    kept: list[str] = []
    with subprocess.Popen(command, cwd=FOLDER.parent, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            kept.append(line)
    print(f"exit code {process.returncode}\n", flush=True)
    found = "".join(kept)
    if not found.startswith("|"):
        found = f"```\n{found}```\n"
    said = shlex.join(["python", "-m", "benchmarks", name, *options])
    RESULTS.mkdir(exist_ok=True)
    result_file(name, options).write_text(
        f"# {name}\n\n```\n{head}command    {said}, exit code {process.returncode}\n```\n\n{found}", encoding="utf-8"
    )
    return process.returncode


def main(asked: list[str]) -> int:
    """Run the benchmarks asked for, or all; 1 if any of them failed, 2 if one does not exist.

    What stands behind the first name is passed on to it: `python -m benchmarks sft a --threads 2`.
    """
    if asked and asked[0] not in names():
        print(f"no benchmark {asked[0]}; there are: {', '.join(names())}", file=sys.stderr)
        return 2
    if asked:
        return int(run(asked[0], asked[1:]) != 0)
    return int(any([run(name, ()) for name in names() if name not in APART]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
