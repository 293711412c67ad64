"""From an export of OpenAI's to a trained model and its comparison with what the old one answered."""

import json
from pathlib import Path

import pytest
from tests.openai_export import JOB, TUNED, write_export

from luthier.cli.main import main


def test_an_export_ends_in_a_trained_model_and_a_parity_report(
    tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exported, out = write_export(tmp_path / "exported"), tmp_path / "moved"
    assert main(["import", "openai", str(exported), "-o", str(out), "--model", str(tiny_model_folder)]) == 0
    told = capsys.readouterr().out
    folder = out / JOB
    assert f"luthier run {folder}/recipe.toml --out {folder}/run" in told
    quick = ["evaluation.forgetting.multiple_choice=none", "evaluation.forgetting.text=none", "training.steps=6"]
    options = [part for setting in quick for part in ("--set", setting)]
    assert main(["run", f"{folder}/recipe.toml", "--out", f"{folder}/run", *options]) == 0
    (line,) = [one.strip() for one in told.splitlines() if "luthier parity" in one]
    assert main(line.split()[1:]) == 0
    said = capsys.readouterr().out
    parity = json.loads((folder / "run/parity.json").read_text("utf-8"))
    assert parity["sentence"] in said and parity["old_model"] == TUNED
    assert parity["rows"] == parity["test_rows"] == 26
    compared = {one["name"]: one for one in parity["compared"]}
    assert list(compared) == ["accuracy", "macro_f1", "Right label", "Near"]
    accuracy = compared["accuracy"]
    assert accuracy["old"]["value"] == pytest.approx(21 / 26)  # every sixth is wrong
    assert compared["Right label"]["old"]["value"] == pytest.approx(4 / 9)  # of the Eval; other rows have no item
    difference = accuracy["difference"]
    assert difference["low"] <= difference["difference"] <= difference["high"]
    assert difference["difference"] == pytest.approx(accuracy["new"]["value"] - 21 / 26)
    report = json.loads((folder / "run/report.json").read_text("utf-8"))
    (tuned,) = [one for one in report["systems"] if one["name"] == "fine_tuned"]
    assert tuned["metrics"]["accuracy"]["value"] == accuracy["new"]["value"]
    assert parity["old_spent"]["completion_tokens"] == 2 and parity["new_spent"]["seconds"] > 0
    assert any("Judge" in one and "model" in one for one in parity["not_graded"])
    assert any("Right label" in one and "17 of 26" in one for one in parity["not_graded"])
    assert len(parity["old_training"]["curve"]) == 60 and parity["new_training"]["steps"] == 6
    page = (folder / "run/parity.html").read_text("utf-8")
    assert TUNED in page and "<script" not in page
