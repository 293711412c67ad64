"""What a stage does with what an earlier process left."""

import json
from pathlib import Path

from luthier.engine.run import State
from luthier.stages import _mend_log


def write(path: Path, steps: list[int], tail: str = "") -> None:
    path.write_text("".join(json.dumps({"step": s, "loss": 1.0}) + "\n" for s in steps) + tail)


def steps_of(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


LAST: dict[str, float] = {"step": 3, "loss": 0.5}


def test_steps_that_will_be_done_again_and_a_cut_line_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, [1, 2, 3, 4, 5], '{"step": 6, "lo')
    _mend_log(path, State(step=3, last=LAST))
    assert steps_of(path) == [1, 2, 3]


def test_a_line_that_the_kill_came_before_is_written_from_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, [1, 2])
    _mend_log(path, State(step=3, last=LAST))
    assert steps_of(path) == [1, 2, 3]
    assert json.loads(path.read_text().splitlines()[-1]) == LAST


def test_a_run_that_begins_has_an_empty_log(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, [1, 2])
    _mend_log(path, State())
    assert steps_of(path) == []
