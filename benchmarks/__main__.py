"""Run benchmarks and keep what they print, headed by the machine, the versions and the commit."""

import os
import pkgutil
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

FOLDER = Path(__file__).parent
RESULTS = FOLDER.parent / "runs" / "benchmarks"
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
    """The commit measured, marked when files differ from it."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=FOLDER, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "not a git checkout"


def heading(name: str) -> str:
    """What a figure means nothing without."""
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    lines = [
        f"benchmark  {name}",
        f"taken      {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}",
        f"commit     {commit()}",
        f"machine    {processor()}, {os.cpu_count()} cores, threads: {threads}, {platform.platform()}",
        f"versions   Python {platform.python_version()}, " + ", ".join(f"{p} {version(p)}" for p in PACKAGES),
        "",
    ]
    return "\n".join(lines)


def run(name: str) -> int:
    """Run one benchmark, pass its output on as it comes, and keep it."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    with (RESULTS / f"{name}.txt").open("w", encoding="utf-8") as kept:

        def tell(text: str) -> None:
            for target in (sys.stdout, kept):
                target.write(text)
                target.flush()

        tell(heading(name) + "\n")
        command = [sys.executable, "-u", "-m", f"benchmarks.{name}"]
        with subprocess.Popen(
            command, cwd=FOLDER.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            for line in process.stdout or ():
                tell(line)
        tell(f"exit code {process.returncode}\n\n")
    return process.returncode


def main(asked: list[str]) -> int:
    """Run the benchmarks asked for, or all; 1 if any of them failed, 2 if one does not exist."""
    unknown = [name for name in asked if name not in names()]
    if unknown:
        print(f"no benchmark {', '.join(unknown)}; there are: {', '.join(names())}", file=sys.stderr)
        return 2
    codes = {name: run(name) for name in asked or names()}
    return int(any(codes.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
