"""`kill -9` at random moments, saves included: every run ends with the weights of an undisturbed one."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.chaos.child import STEPS
from tests.chaos.command import begin, end, kill
from tests.integration.test_run import RECIPE, write_rows

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
    """Start, wait for any step of the run, wait a random moment more, kill. Returns whether a save was cut short."""
    child = start(folder)
    assert child.stdout is not None
    for _ in range(1 + rng.randrange(STEPS)):  # the line that it starts with, and as many steps
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


COMMAND_KILLS = 5
COMMAND_STEPS = 40


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The steps of `metrics.jsonl`, without what the clock says."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def kill_command(recipe: Path, out: Path, step: int, moment: float) -> int:
    """Kill the command `moment` seconds after the line of `step`; returns its exit code (0: it was faster)."""
    child, log = begin("train", recipe, "--out", out), out / "metrics.jsonl"
    while child.poll() is None and (not log.is_file() or len(log.read_bytes().splitlines()) < step):
        time.sleep(0.002)
    time.sleep(moment)
    return kill(child)


ONLINE = """
[objective]
type = "{objective}"
[rollout]
max_new_tokens = 12
group_size = 4
updates = 2
minibatches = 2
validation_prompts = 4
[rollout.rewards.has_a]
grader = {{ type = "string_check", input = "{{{{sample.output_text}}}}", reference = "a", operation = "like" }}
"""
"""What is added to the recipe for replies that are sampled."""


PPO = ONLINE.format(objective="ppo").replace('"ppo"', '"ppo"\nkl_target = 0.5\nkl_horizon = 50')


@pytest.mark.parametrize("added", ["", ONLINE.format(objective="grpo"), PPO], ids=["sft", "grpo", "ppo"])
def test_the_real_command_is_killed_again_and_again_and_leaves_what_an_undisturbed_one_does(
    added: str, tmp_path: Path, tiny_model_folder: Path
) -> None:
    write_rows(tmp_path / "rows.jsonl")
    recipe = tmp_path / "recipe.toml"
    settings = f"steps = {COMMAND_STEPS}\nsave_every = 1\npatience = false"
    content = RECIPE.format(model=tiny_model_folder, steps=COMMAND_STEPS)
    recipe.write_text(content.replace(f"steps = {COMMAND_STEPS}", settings) + added, encoding="utf-8")
    whole, out = tmp_path / "whole", tmp_path / "killed"
    end(begin("train", recipe, "--out", whole), 300)
    rng = random.Random(0)
    steps = sorted(rng.randrange(COMMAND_STEPS) for _ in range(COMMAND_KILLS))  # 0: before the first
    codes = [kill_command(recipe, out, step, rng.random() * 0.1) for step in steps]
    end(begin("train", recipe, "--out", out), 300)
    print(f"kills after steps {steps}: exit codes {codes}")
    assert codes.count(-signal.SIGKILL) >= COMMAND_KILLS - 1, "the kills came too late to mean anything"
    for path in sorted((whole / "adapter").iterdir()):
        assert (out / "adapter" / path.name).read_bytes() == path.read_bytes(), path.name
    assert lines_of(out / "metrics.jsonl") == lines_of(whole / "metrics.jsonl")
    rollouts = sorted(path.name for path in whole.glob("rollouts/*"))
    assert bool(rollouts) == bool(added) and rollouts == sorted(path.name for path in out.glob("rollouts/*"))
    for name in rollouts:
        assert (out / "rollouts" / name).read_bytes() == (whole / "rollouts" / name).read_bytes(), name
    gates = [json.loads((folder / "preflight.json").read_text(encoding="utf-8")) for folder in (whole, out)]
    assert gates[0] == gates[1]
