"""Trackers in whole runs, by the command line."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.trackers_read import tensorboard, wandb_history, wandb_summary, write_recipe

from luthier.cli.main import main
from luthier.recipe import load
from luthier.run_folder import RunFolder


def test_a_run_is_followed_to_its_verdict(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    recipe, out = write_recipe(tmp_path, tiny_model_folder), tmp_path / "out"
    settings = ["--set", "tracking.tensorboard={}", "--set", "tracking.wandb={}"]
    assert main(["run", str(recipe), "--out", str(out), *settings]) == 0
    report = RunFolder(out).read("report.json")
    seen, metric = tensorboard(out / "tensorboard"), report["evaluation"]["primary_metric"]
    lines = (out / "metrics.jsonl").read_text().splitlines()
    assert [event.step for event in seen.Scalars("loss")] == list(range(1, 7)) and len(lines) == 6
    (system,) = (one for one in report["systems"] if one["name"] == "fine_tuned")
    for name in ("value", "low", "high"):
        tag = f"test/fine_tuned/{metric}" + ("" if name == "value" else f"/{name}")
        assert [event.value for event in seen.Scalars(tag)] == [pytest.approx(system["metrics"][metric][name])]
    assert seen.Tensors("verdict")[0].tensor_proto.string_val[0].decode() == report["verdict"]["sentence"]
    assert [step["_step"] for step in wandb_history(out)] == list(range(1, 7))
    summary = wandb_summary(out)
    assert summary["verdict"] == report["verdict"]["sentence"] and summary["folder"] == str(out)
    assert summary["best_validation_loss"] == report["training"]["best_validation_loss"]


def test_a_tracker_that_is_named_after_the_training_is_told_all_of_it(tmp_path: Path, tiny_model_folder: Path) -> None:
    recipe, out = write_recipe(tmp_path, tiny_model_folder), tmp_path / "out"
    assert main(["train", str(recipe), "--out", str(out)]) == 0
    weights = (out / "adapter/adapter_model.safetensors").read_bytes()
    assert main(["train", str(recipe), "--out", str(out), "--set", "tracking.tensorboard={}"]) == 0
    assert [event.step for event in tensorboard(out / "tensorboard").Scalars("loss")] == list(range(1, 7))
    assert (out / "adapter/adapter_model.safetensors").read_bytes() == weights
    assert load(recipe).tracking == {}


def test_a_server_that_is_away_is_told_before_anything_is_made(
    tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, out = write_recipe(tmp_path, tiny_model_folder), tmp_path / "out"
    address = "tracking.mlflow.uri=http://127.0.0.1:1"
    assert main(["run", str(recipe), "--out", str(out), "--set", address]) == 2
    assert "error: tracking.mlflow: MLflow: " in capsys.readouterr().err
    assert not (out / "checkpoints").exists() and not (out / "records").exists()


@pytest.mark.chaos
def test_a_training_that_is_killed_has_every_step_once(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_SERVICE", raising=False)
    recipe, out = write_recipe(tmp_path, tiny_model_folder), tmp_path / "out"
    settings = ["steps=300", "validate_every=25", "patience=false"]
    command = [sys.executable, "-m", "luthier.cli.main", "train", str(recipe), "--out", str(out)]
    command += [word for setting in settings for word in ("--set", f"training.{setting}")]
    command += ["--set", "tracking.tensorboard={}", "--set", "tracking.wandb={}"]
    before = 0
    for _ in range(3):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while process.poll() is None and steps_told(out) < before + 30:
            time.sleep(0.05)
        process.kill()
        assert process.wait() < 0, "it ended before it could be killed: more steps are needed"
        before = steps_told(out)
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    losses = tensorboard(out / "tensorboard").Scalars("loss")
    assert [event.step for event in losses] == list(range(1, 301))
    assert [step["_step"] for step in wandb_history(out)] == list(range(1, 301))


def steps_told(out: Path) -> int:
    """How many steps TensorBoard's files hold."""
    if not (out / "tensorboard").is_dir():
        return 0
    seen = tensorboard(out / "tensorboard")
    return len(seen.Scalars("loss")) if "loss" in seen.Tags()["scalars"] else 0
