"""`kill -9` at random moments, saves included: every run ends with the weights of an undisturbed one."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from luthier.engine import checkpoint

pytestmark = pytest.mark.chaos

ROOT = Path(__file__).parents[2]
KILLS = 20


def start(folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "tests.chaos.child", str(folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(folder: Path) -> str:
    child = start(folder)
    output, _ = child.communicate(timeout=300)
    assert child.returncode == 0
    return output.splitlines()[-1]


def kill_once(folder: Path, rng: random.Random) -> bool:
    """Start, wait for a step, wait a random moment more, kill. Returns whether a save was cut short."""
    child = start(folder)
    assert child.stdout is not None
    wanted = rng.randrange(1, 6)
    for _ in range(wanted):
        if not child.stdout.readline():
            break
    time.sleep(rng.random() * 0.03)
    child.send_signal(signal.SIGKILL)
    child.wait()
    return any((folder / "checkpoints").glob(".*.tmp"))


def test_20_kills_give_20_identical_final_weights(tmp_path: Path) -> None:
    expected = finish(tmp_path / "undisturbed")
    assert expected.startswith("done ")
    rng = random.Random(0)
    cut_saves, results = 0, []
    for number in range(KILLS):
        folder = tmp_path / f"run-{number}"
        cut_saves += kill_once(folder, rng)
        found = checkpoint.latest(folder / "checkpoints")
        assert found is None or not found.skipped, "a half-written checkpoint was visible"
        results.append(finish(folder))
    print(f"{KILLS} kills, {cut_saves} inside a save; {results.count(expected)} of {KILLS} final weights identical")
    assert results == [expected] * KILLS
    assert cut_saves > 0, "no kill hit a save; the test has lost its point"
