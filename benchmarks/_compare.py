"""Luthier and its peers in turn, A B A B, each in a fresh process, and the table of what they took.

A contender is a script that reads a job (JSON) and prints an outcome (JSON) as its last line. The clock and the loss
are its own; the peak of its memory is what the operating system says of the whole process.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
LOSS_TOLERANCE = 0.03
"""Nats by which the final losses of two contenders may differ; above, they did not do the same work."""


@dataclass(frozen=True)
class Contender:
    """A library in one setting."""

    name: str
    script: str
    """A file of `benchmarks/peers`."""
    setting: str
    """What was chosen for it, for the table."""
    environment: str = ""
    """A folder below `.peers` (`make peers`); empty: the environment of the project."""
    best: bool = True
    """Whether this was the peer's fastest setting here; the others run with `--tune`."""
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What one process took for one job."""

    step_seconds: tuple[float, ...]
    tokens: tuple[int, ...]
    """Tokens of each step, as the rows have them."""
    trained: tuple[int, ...]
    losses: tuple[float, ...]
    first_step: float
    """Seconds from the start of the process to the end of its first step."""
    peak_bytes: int

    @property
    def seconds(self) -> float:
        """Of the steps after the first, which may pay for set-up."""
        return sum(self.step_seconds[1:])

    @property
    def speed(self) -> float:
        """Tokens of the rows a second."""
        return sum(self.tokens[1:]) / self.seconds

    @property
    def trained_speed(self) -> float:
        """Trained-on tokens a second."""
        return sum(self.trained[1:]) / self.seconds


def _python(contender: Contender) -> Path:
    """The interpreter that has the library.

    Raises:
        ContenderFailed: its environment was not made.
    """
    if not contender.environment:
        return Path(sys.executable)
    python = FOLDER.parent / ".peers" / contender.environment / "bin" / "python"
    if not python.is_file():
        raise ContenderFailed(f"{contender.name}: {python} is missing; `make peers` makes it")
    return python


class ContenderFailed(Exception):
    """A process ended without an outcome; the message holds the end of what it said."""


def run(contender: Contender, job: Mapping[str, Any], threads: int, timeout: float = 3600) -> Outcome:
    """Let one contender do one job in a fresh process.

    Raises:
        ContenderFailed: it did not print an outcome.
    """
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "job.json"
        folder = Path(place) / "work"
        folder.mkdir()
        wanted = {**job, **contender.options, "threads": threads, "folder": str(folder), "started": time.time()}
        file.write_text(json.dumps(wanted), encoding="utf-8")
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(folder / "hub"),
            "PYTHONPATH": os.pathsep.join([str(FOLDER.parent), str(FOLDER.parent / "src")]),  # this checkout's own code
        }
        command = [str(_python(contender)), "-u", str(FOLDER / "peers" / contender.script), str(file)]
        with (Path(place) / "output").open("w+", encoding="utf-8") as output:
            process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, env=environment)
            try:
                _, status, usage = _wait(process, timeout)
            except TimeoutError:
                process.kill()
                process.wait()
                raise ContenderFailed(f"{contender.name}: still running after {timeout:.0f} s") from None
            output.seek(0)
            said = output.read()
    last = said.strip().splitlines()[-1] if said.strip() else ""
    if status or not last.startswith("{"):
        raise ContenderFailed(f"{contender.name}: exit code {os.waitstatus_to_exitcode(status)}\n{said[-3000:]}")
    found = json.loads(last)
    parts = {name: tuple(found[name]) for name in ("step_seconds", "tokens", "trained", "losses")}
    return Outcome(**parts, first_step=found["first_step"], peak_bytes=usage.ru_maxrss * 1024)


def _wait(process: "subprocess.Popen[bytes] | subprocess.Popen[str]", timeout: float) -> tuple[int, int, Any]:
    """As os.wait4, which tells the peak of this very process, with a limit."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        found = os.wait4(process.pid, os.WNOHANG)
        if found[0]:
            process.returncode = os.waitstatus_to_exitcode(found[1])
            return found
        time.sleep(0.2)
    raise TimeoutError


def in_turn(
    contenders: Sequence[Contender], job: Mapping[str, Any], threads: int, rounds: int
) -> dict[str, list[Outcome]]:
    """`rounds` times every contender once; one that fails is told and left out of the rest."""
    outcomes: dict[str, list[Outcome]] = {contender.name: [] for contender in contenders}
    failed: set[str] = set()
    for _ in range(rounds):
        for contender in contenders:
            if contender.name in failed:
                continue
            try:
                found = run(contender, job, threads)
                outcomes[contender.name].append(found)
                steps = ", ".join(f"{x:.1f}" for x in found.step_seconds)
                losses = ", ".join(f"{x:.3f}" for x in found.losses)
                print(f"    {contender.name}: steps of {steps} s, losses {losses}", file=sys.stderr, flush=True)
            except ContenderFailed as error:
                failed.add(contender.name)
                print(f"    {error}", file=sys.stderr, flush=True)
    return {name: found for name, found in outcomes.items() if found}


def ratio(ours: Sequence[Outcome], theirs: Sequence[Outcome]) -> tuple[float, float, float]:
    """Median, lowest and highest of our speed to theirs, pair by pair."""
    ratios = [a.speed / b.speed for a, b in zip(ours, theirs, strict=False)]
    return statistics.median(ratios), min(ratios), max(ratios)


def agree(ours: Sequence[Outcome], theirs: Sequence[Outcome], tolerance: float) -> bool:
    """Whether both ended with the same loss."""
    return abs(ours[-1].losses[-1] - theirs[-1].losses[-1]) <= tolerance


COLUMNS = (
    *("workload", "threads", "who", "setting", "tokens/s", "trained/s", "of the matrix rate", "peak GiB"),
    *("first step s", "last loss", "ours to it", "memory"),
)
HEADER = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|"


def lines(
    workload: str,
    threads: int,
    contenders: Sequence[Contender],
    outcomes: Mapping[str, Sequence[Outcome]],
    share: Callable[[Outcome], float] | None = None,
    tolerance: float = LOSS_TOLERANCE,
) -> list[str]:
    """Lines of the table; ours, the first contender, is what the others are compared with.

    Args:
        workload: what was done.
        threads: of each process.
        contenders: in the order of the lines.
        outcomes: by the name of the contender.
        share: how much of the machine's matrix rate an outcome is.
        tolerance: nats by which the last losses may differ.
    """
    ours = outcomes.get(contenders[0].name, [])
    made = []
    for contender in contenders:
        found = outcomes.get(contender.name)
        head = f"| {workload} | {threads} | {contender.name} | {contender.setting} |"
        if not found:
            made.append(f"{head} failed | | | | | | | |")
            continue
        text = f"{head} {_medians(found, share)}"
        if contender is contenders[0] or not ours:
            made.append(f"{text} | | |")
            continue
        speed, low, high = ratio(ours, found)
        peak = statistics.median(o.peak_bytes for o in ours) / statistics.median(o.peak_bytes for o in found)
        verdict = f"{speed:.2f}x [{low:.2f}, {high:.2f}]" if agree(ours, found, tolerance) else "void: losses differ"
        made.append(f"{text} | {verdict} | {peak:.2f}x |")
    return made


def _medians(found: Sequence[Outcome], share: Callable[[Outcome], float] | None) -> str:
    middle = statistics.median
    return " | ".join(
        [
            f"{middle([o.speed for o in found]):.0f}",
            f"{middle([o.trained_speed for o in found]):.0f}",
            f"{middle([share(o) for o in found]):.0%}" if share else "",
            f"{middle([o.peak_bytes for o in found]) / 2**30:.2f}",
            f"{middle([o.first_step for o in found]):.1f}",
            f"{found[-1].losses[-1]:.3f}",
        ]
    )


@dataclass(frozen=True)
class Race:
    """One line of the table and its peers, before anything has run."""

    name: str
    what: str
    job: Callable[[Path], Mapping[str, Any]]
    """Writes files into a folder and says what every contender has to do."""
    contenders: Sequence[Contender]
    """Ours first."""
    tolerance: float = LOSS_TOLERANCE
    """More where chance is in the losses."""


def matrix_rate(threads: int) -> float:
    """Operations a second of this machine's products with so many threads, measured in a process of its own."""
    command = [sys.executable, "-m", "benchmarks._arithmetic", str(threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, cwd=FOLDER.parent, capture_output=True, text=True, check=True, env=environment)
    return float(done.stdout)


def main(description: str, races: Sequence[Race], given: Sequence[str], training: bool = False) -> int:
    """The command line of a comparison; prints the table. Trainings can be compared in float32, too."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", help=f"of {', '.join(race.name for race in races)}; all if none")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=2, help="times that each contender has its turn")
    parser.add_argument("--tune", action="store_true", help="every setting of the peers, not only the best known one")
    if training:
        parser.add_argument(
            "--float32", action="store_true", help="all of them in float32, where nothing is rounded away"
        )
    asked = parser.parse_args(given)
    float32 = training and asked.float32
    unknown = set(asked.workloads) - {race.name for race in races}
    if unknown:
        parser.error(f"no workload {', '.join(sorted(unknown))}; there are {', '.join(race.name for race in races)}")
    print(HEADER)
    for race in races:
        if asked.workloads and race.name not in asked.workloads:
            continue
        contenders = [c for c in race.contenders if c.best or asked.tune]
        if float32:
            contenders = [replace(c, setting=c.setting.replace("bf16 autocast", "float32")) for c in contenders]
        with tempfile.TemporaryDirectory() as place:
            job = {**race.job(Path(place)), "float32": float32}
            for threads in asked.threads:
                share = _share(job, matrix_rate(threads)) if "operations" in job else None
                outcomes = in_turn(contenders, job, threads, asked.rounds)
                what = f"{race.name}: {race.what}"
                print(*lines(what, threads, contenders, outcomes, share, race.tolerance), sep="\n", flush=True)
    return 0


def _share(job: Mapping[str, Any], rate: float) -> Callable[[Outcome], float]:
    needed = sum(job["operations"][1:])
    return lambda outcome: needed / outcome.seconds / rate
