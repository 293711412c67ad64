"""What trackers hold, read back by their own readers; and a tracker of the tests' own that can be made to fail."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.config import build
from luthier.errors import TrackingError
from luthier.recipe import Recipe
from luthier.run_folder import RunFolder
from luthier.trackers._wandb_files import records
from luthier.trackers.base import Line, Plain, Session, Status, Subject, Tracker

MLFLOW = {"MLFLOW_ALLOW_FILE_STORE": "true"}
"""The client of MLflow keeps runs in files, too, if it is allowed to: a store without a server."""


class Ledger(Tracker):
    """A file of lines; while the file `away` lies beside it, it takes none."""

    home: str

    def require(self) -> None:
        """Nothing."""

    def reach(self) -> None:
        """Not while it is away."""
        _require_there(Path(self.home))

    def open(self, subject: Subject, run_id: str | None) -> Session:
        """The same file again."""
        _require_there(Path(self.home))
        return LedgerSession(Path(self.home), run_id or "first")


class LedgerSession(Session):
    def __init__(self, home: Path, run_id: str) -> None:
        self.id, self.place, self._home = run_id, str(home), home

    def last_step(self) -> int:
        """Of the file."""
        return max(steps_of_ledger(self._home), default=0)

    def describe(self, settings: Mapping[str, Plain]) -> None:
        """A line; the first that finds the file `slow` waits for `go`."""
        slow = self._home / "slow"
        if slow.exists():
            slow.unlink()
            while not (self._home / "go").exists():
                time.sleep(0.01)
        self._write("settings", dict(settings))

    def tell(self, lines: Sequence[Line]) -> None:
        """A line each."""
        for line in lines:
            self._write("step", dict(line))

    def conclude(self, step: int, figures: Mapping[str, float], words: Mapping[str, str]) -> None:
        """A line."""
        self._write("end", {"step": step, **figures, **words})

    def close(self, status: Status) -> None:
        """A line."""
        self._write("status", {"status": status})

    def drop(self) -> None:
        """Nothing is held."""

    def _write(self, kind: str, values: Mapping[str, Any]) -> None:
        _require_there(self._home)
        with (self._home / "lines.jsonl").open("a") as file:
            file.write(json.dumps({"kind": kind, **values}) + "\n")


def _require_there(home: Path) -> None:
    if (home / "away").exists():
        raise TrackingError("nobody is there")


def ledger_lines(home: Path, kind: str) -> list[dict[str, Any]]:
    path = home / "lines.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [line for line in lines if line["kind"] == kind]


def steps_of_ledger(home: Path) -> list[int]:
    return [line["step"] for line in ledger_lines(home, "step")]


def recipe_with(tracking: Mapping[str, Any], **more: Any) -> Recipe:
    return build(Recipe, {"data": {"train": "rows.jsonl"}, "tracking": dict(tracking), **more})


def run_folder(path: Path) -> RunFolder:
    path.mkdir(parents=True, exist_ok=True)
    return RunFolder(path, listed=False)


def log_steps(folder: RunFolder, numbers: Sequence[int]) -> None:
    """Write steps as a training does, a validation with each fifth."""
    with (folder / "metrics.jsonl").open("a") as log:
        for n in numbers:
            line = {"step": n, "seconds": 0.01, "loss": 1 / n, **({"validation_loss": 2 / n} if n % 5 == 0 else {})}
            log.write(json.dumps(line) + "\n")
            log.flush()


def tensorboard(folder: Path) -> Any:
    """TensorBoard's own view of a folder of event files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0}).Reload()


def wandb_records(home: Path, kind: str) -> list[Any]:
    """Records of one kind in all files that W&B's client wrote below a folder, the oldest file first."""
    paths = sorted(home.glob("wandb/*run-*/run-*.wandb"))
    return [_field(one, kind) for path in paths for one in records(path) if one.HasField(kind)]


def _field(record: Any, kind: str) -> Any:
    return next(value for field, value in record.ListFields() if field.name == kind)


def wandb_history(home: Path) -> list[dict[str, Any]]:
    """The steps that W&B's files hold."""
    return [
        {(item.key or item.nested_key[0]): json.loads(item.value_json) for item in history.item}
        for history in wandb_records(home, "history")
    ]


def wandb_summary(home: Path) -> dict[str, Any]:
    """The last value of everything in the summary."""
    return {
        (item.key or item.nested_key[0]): json.loads(item.value_json)
        for summary in wandb_records(home, "summary")
        for item in summary.update
    }


RECIPE = """
[model]
name = "{model}"
[data]
train = "rows.jsonl"
test_share = 0.3
[training]
steps = 6
rows_per_step = 4
[evaluation]
max_new_tokens = 8
[evaluation.forgetting]
multiple_choice = "none"
text = "none"
[evaluation.systems.zero_shot]
tune_rows = 0
[evaluation.systems.fine_tuned]
"""


def write_recipe(folder: Path, model: Path) -> Path:
    """A recipe of six steps over 40 rows that differ."""
    words = ("river", "tower", "garden", "window")
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as rows:
        for n in range(40):
            asked = f"What is {n * 37 % 101} and {words[n % 4]} {n * 7 % 83}?"
            turns = {"user": asked, "assistant": f"{words[n % 4]} {n}"}
            rows.write(json.dumps({"messages": [{"role": r, "content": c} for r, c in turns.items()]}) + "\n")
    path = folder / "recipe.toml"
    path.write_text(RECIPE.format(model=model), encoding="utf-8")
    return path
