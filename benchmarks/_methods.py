"""What the benchmarks of methods share: a run of `luthier` that goes on where it was, and a section of the page."""

import argparse
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.__main__ import FOLDER, METHODS_PAGE, heading

PAGE = FOLDER.parent / METHODS_PAGE


STOPPED = 3
"""Exit code where the minutes are over."""


def parser_of(description: str | None, name: str, files: str) -> argparse.ArgumentParser:
    """What such a benchmark takes: `--data` with these files, `--seeds`, `--minutes`, and `--out`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help=f"folder with {files}")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--minutes", type=float, help="stop after so many; the same command goes on")
    parser.add_argument("--out", type=Path, default=Path("runs/methods") / name)
    return parser


def until_of(asked: argparse.Namespace) -> float | None:
    """The moment (`time.monotonic`) at which the minutes are over; None: there is none."""
    return None if asked.minutes is None else time.monotonic() + 60 * float(asked.minutes)


def stopped(place: Path) -> int:
    """Say that the minutes are over, and where; the exit code."""
    print(f"stopped in {place}; the same command goes on", file=sys.stderr)
    return STOPPED


def asked_of(
    text: str | None, name: str, data: str, model: str, epochs: float, **rates: float
) -> tuple[argparse.Namespace, float | None]:
    """What the command line of a benchmark of one model says, and the moment (`time.monotonic`) at which it stops.

    Args:
        text: the benchmark's own description.
        name: of its folder under runs/methods.
        data: what the folder of `--data` holds.
        model: the base where none is given.
        epochs: how many where none are given.
        rates: learning rates where none are given, by option.
    """
    parser = parser_of(text, name, data)
    parser.add_argument("--model", default=model)
    parser.add_argument("--epochs", type=float, default=epochs)
    for option, rate in rates.items():
        parser.add_argument(f"--{option.replace('_', '-')}", type=float, default=rate)
    asked = parser.parse_args()
    return asked, until_of(asked)


def finished(recipe: Path, folder: Path, until: float | None = None) -> bool:
    """Run a recipe to its report, or as far as it comes until that moment (`time.monotonic`); it goes on next time.

    Raises:
        CalledProcessError: it failed.
    """
    if (folder / "report.json").is_file():
        return True
    return to_its_end(["run", str(recipe), "--out", str(folder)], until)


def to_its_end(arguments: Sequence[str], until: float | None = None) -> bool:
    """Run `luthier` with these arguments, until that moment at most; whether it came to its end.

    Whoever ends the benchmark ends the run with it, which saves everything first.

    Raises:
        CalledProcessError: it failed.
    """
    command = [sys.executable, "-m", "luthier.cli.main", *arguments]
    with subprocess.Popen(command, stdout=sys.stderr) as process:
        before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        try:
            code = process.wait(None if until is None else max(until - time.monotonic(), 1))
        except subprocess.TimeoutExpired:
            process.terminate()  # the step is finished and everything saved
            process.wait()
            return False
        finally:
            signal.signal(signal.SIGTERM, before)
    if code:
        raise subprocess.CalledProcessError(code, command)
    return True


def prepared(folder: Path, files: Mapping[str, str]) -> Path:
    """The folder of a training, with its rows and its recipe.

    Exits where other rows or settings lie there: figures of theirs would be told as these.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        path = folder / name
        if not path.is_file():
            path.write_text(text, encoding="utf-8")
        elif path.read_text(encoding="utf-8") != text:
            raise SystemExit(f"{path} is of other rows or settings than these; use another --out, or remove {folder}")
    return folder


def pairs_of(path: Path, count: int, characters: int) -> list[dict[str, Any]]:
    """The first so many preference pairs whose prompt and either reply have no more characters than that."""
    return [row for row in rows_of(path) if max(_length(row, side) for side in ("chosen", "rejected")) <= characters][
        :count
    ]


def _length(row: Mapping[str, Any], side: str) -> int:
    return sum(len(message["content"]) for message in (*row["prompt"], *row[side]))


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON Lines file."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


def lines_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """The text of a JSON Lines file."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def commit_of(folder: Path) -> str:
    """The commit of Luthier that last worked on a run; figures of it may be older than the page's heading."""
    commit: str | None = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["git"]
    return "not a git checkout" if commit is None else commit[:7]


def measured(folder: Path, system: str, metric: str) -> Mapping[str, Any]:
    """A metric of a system with its interval: `value`, `low`, `high`."""
    systems = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))["systems"]
    (found,) = (one for one in systems if one["name"] == system)
    told: Mapping[str, Any] = found["metrics"][metric]
    return told


def statistics_of(folder: Path, system: str) -> dict[str, np.ndarray]:
    """Of each metric, what a finished run knows of each test row: (N, S)."""
    state = json.loads((folder / f"records/{system}.state.json").read_text(encoding="utf-8"))
    return {metric: np.array(values, dtype=np.float64) for metric, values in state["statistics"].items()}


def write_section(name: str, lines: Sequence[str]) -> None:
    """Put a benchmark's table into `docs/methods.md`, between the marks that bear its name, with what it was asked.

    Raises:
        ValueError: the page has no such marks.
    """
    text = PAGE.read_text(encoding="utf-8")
    marks = f"<!-- {name} -->", f"<!-- /{name} -->"
    pattern = re.compile(re.escape(marks[0]) + ".*?" + re.escape(marks[1]), re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"{PAGE} has no place for {name}: write {marks[0]} and {marks[1]} where its table shall stand")
    body = "\n".join(
        [marks[0], "", "```", heading(" ".join([name, *_asked(sys.argv[1:])])).strip(), "```", "", *lines, "", marks[1]]
    )
    PAGE.write_text(pattern.sub(lambda _: body, text), encoding="utf-8")


def _asked(arguments: Sequence[str]) -> list[str]:
    """Those that figures depend on: not where files lie, and how long it took."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--data", "--out", "--minutes"):
        parser.add_argument(name)
    return parser.parse_known_args(arguments)[1]
