"""Checkpoints: whole or not there, and a damaged one is passed over aloud."""

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine_runs import make_run

from luthier.engine import checkpoint
from luthier.engine.loop import train
from luthier.errors import CheckpointError, StorageError
from luthier.files import sync

EVERY_STEP: dict[str, Any] = {
    "training": {"steps": 5, "rows_per_step": 4, "save_every": 1, "keep": 10, "patience": 100}
}


def trained(folder: Path) -> Path:
    run = make_run(folder, **EVERY_STEP)
    list(train(run))
    return run.checkpoints


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "manifest", "no manifest"])
@pytest.mark.parametrize("file", ["trainable.safetensors", "optimizer.safetensors", "state.json", "rng.safetensors"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before_and_says_so(
    damage: str, file: str, tmp_path: Path
) -> None:
    folder = trained(tmp_path) / "step-000005"
    path = folder / file
    content = path.read_bytes()
    if damage == "flip":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "truncate":
        path.write_bytes(content[:-1])
    elif damage == "delete":
        path.unlink()
    elif damage == "manifest":
        (folder / "manifest.json").write_text("{")
    else:
        (folder / "manifest.json").unlink()
    found = checkpoint.latest(folder.parent)
    assert found is not None and found.step == 4
    assert len(found.skipped) == 1 and "step-000005" in found.skipped[0]


def test_when_every_checkpoint_is_damaged_it_refuses_and_says_what_to_do(tmp_path: Path) -> None:
    folder = trained(tmp_path)
    for path in folder.glob("*/manifest.json"):
        path.unlink()
    with pytest.raises(CheckpointError, match=r"every checkpoint is damaged(.|\n)*Remove"):
        checkpoint.latest(folder)


def test_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path / "none") is None


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    folder = trained(tmp_path)
    other = make_run(tmp_path, **EVERY_STEP, seed=1)
    found = checkpoint.latest(folder)
    assert found is not None
    with pytest.raises(CheckpointError, match="another recipe"):
        checkpoint.restore(other, found.folder)


def test_rotation_keeps_the_newest_the_best_and_one_to_fall_back_on(tmp_path: Path) -> None:
    run = make_run(
        tmp_path, training={"steps": 6, "rows_per_step": 4, "save_every": 1, "keep": 1, "validate_every": 100}
    )
    list(train(run))
    kept = {int(p.name[5:]) for p in run.checkpoints.iterdir()}
    assert kept == {run.state.best_step, 5, 6}


def test_an_interrupted_save_leaves_nothing_that_passes_for_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fills up at any sync of a save: earlier checkpoints stay, the half one is gone."""
    run = make_run(tmp_path, **EVERY_STEP)
    steps = train(run)
    next(steps)
    syncs = fail_at = 0

    def full_disk(path: Path) -> None:
        nonlocal syncs
        syncs += 1
        if syncs == fail_at:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        sync(path)

    monkeypatch.setattr(checkpoint, "sync", full_disk)
    run.state.step = 2
    for moment in range(1, 7):
        syncs, fail_at = 0, moment
        with pytest.raises(StorageError, match=r"disk is full.*Earlier checkpoints are intact"):
            checkpoint.save(run)
        found = checkpoint.latest(run.checkpoints)
        assert found is not None and found.step == 1 and not found.skipped
        assert not list(run.checkpoints.glob(".*"))
    fail_at = 0
    checkpoint.save(run)
    found = checkpoint.latest(run.checkpoints)
    assert found is not None and found.step == 2


def test_nothing_in_a_checkpoint_is_pickled(tmp_path: Path) -> None:
    folder = trained(tmp_path) / "step-000005"
    assert {p.suffix for p in folder.iterdir()} == {".safetensors", ".json"}
    assert json.loads((folder / "state.json").read_text())["state"]["step"] == 5


def test_random_numbers_go_on_where_they_stopped(tmp_path: Path) -> None:
    run = make_run(tmp_path, **EVERY_STEP)
    next(iter(train(run)))
    expected = torch.rand(4)
    torch.manual_seed(99)
    found = checkpoint.latest(run.checkpoints)
    assert found is not None
    checkpoint.restore(run, found.folder)
    assert torch.equal(torch.rand(4), expected)
