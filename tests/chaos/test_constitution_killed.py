"""`kill -9` of `luthier constitution`, between and inside its stages: given again it goes on, and all ends alike."""

import random
import signal
import time
from pathlib import Path

import pytest
from tests.chaos.command import begin, end, kill
from tests.constitutions import that_ends, write

pytestmark = pytest.mark.chaos

KILLS = 12
PARTS = ("replies", "revised", "drawn", "compared", "calibration", "answers", "judged")
WEIGHTS = ("supervised/adapter/adapter_model.safetensors", "preferred/adapter/adapter_model.safetensors")
MORE = """
rounds = 2
calibration = "red_team.jsonl"
calibration_pairs = 24
"""


def records(out: Path) -> list[Path]:
    """Files that are written once."""
    return sorted(path for part in PARTS for path in (out / part).glob("**/batch-*"))


def reached(out: Path) -> int:
    """How far a run is: its records, checkpoints and artifacts."""
    steps = [path for name in ("supervised", "preferred") for path in (out / name).glob("checkpoints/step-*")]
    return len(records(out)) + len(steps) + sum((out / path).is_file() for path in WEIGHTS)


def test_kills_at_every_stage_change_nothing(tmp_path: Path, tiny_model_folder: Path) -> None:
    recipe = write(tmp_path, that_ends(tiny_model_folder, tmp_path / "model"), MORE)
    whole, out, chance, codes, stages = tmp_path / "whole", tmp_path / "killed", random.Random(1), [], set()
    end(begin("constitution", recipe, "--out", whole), 900)
    marks = sorted(chance.sample(range(1, reached(whole)), KILLS))
    for after in marks:
        child = begin("constitution", recipe, "--out", out)
        while child.poll() is None and reached(out) < after:
            time.sleep(0.002)
        time.sleep(chance.random() * 0.5)
        before = {path: path.read_bytes() for path in records(out)}
        codes.append(kill(child))
        stages.add(next((part for part in reversed(PARTS) if list((out / part).glob("**/batch-*"))), "data"))
        assert all(path.read_bytes() == content for path, content in before.items())
    end(begin("constitution", recipe, "--out", out), 900)
    print(f"exit codes {codes}, killed within {sorted(stages)}; {len(records(whole))} records")
    assert codes.count(-signal.SIGKILL) >= KILLS - 2, "the kills came too late to mean anything"
    assert len(stages) >= 4
    assert [path.relative_to(out) for path in records(out)] == [path.relative_to(whole) for path in records(whole)]
    for path in records(whole):
        assert (out / path.relative_to(whole)).read_bytes() == path.read_bytes(), path
    for name in ("supervised.jsonl", "preferences.jsonl", *WEIGHTS):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    pages = [path.relative_to(whole) for path in whole.glob("**/*.html")]
    assert len(pages) >= 3
    for page in pages:  # but for the name of the folder
        assert (out / page).read_text().replace("killed", "whole") == (whole / page).read_text(), page
    assert not list(out.glob("**/.*.tmp"))
