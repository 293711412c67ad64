"""From an export of OpenAI's to a trained model and its comparison with what the old one answered."""

import json
from pathlib import Path

import pytest
from tests.openai_export import JOB, TRAIN, TUNED, VALID, chats, job, write_export, write_lines

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


def test_graded_training_is_compared_by_its_grader(
    tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows that only ask: against an empty reply every metric would be 0, and every two models as good."""
    exported, out = tmp_path / "exported", tmp_path / "moved"
    exported.mkdir()
    for name, count in ((TRAIN, 40), (VALID, 20)):
        rows = [{"messages": m[:-1], "right": m[-1]["content"]} for m in (r["messages"] for r in chats(count, count))]
        write_lines(exported / f"{name}.jsonl", rows)
    write_lines(exported / "answers.jsonl", [{"messages": r["messages"], "output": r["right"]} for r in rows])
    near = {"type": "text_similarity", "name": "Near", "evaluation_metric": "fuzzy_match"}
    grader = {**near, "input": "{{ sample.output_text }}", "reference": "{{ item.right }}"}
    settings = {"n_epochs": 1, "batch_size": 8, "compute_multiplier": 0.25, "eval_samples": 2}
    method = {"type": "reinforcement", "reinforcement": {"grader": grader, "hyperparameters": settings}}
    values = job(method=method, hyperparameters={}, result_files=[])
    (exported / "job.json").write_text(json.dumps(values), encoding="utf-8")
    assert main(["import", "openai", str(exported), "-o", str(out), "--model", str(tiny_model_folder)]) == 0
    assert "its report goes by the reward; the parity report goes by the grader" in (out / "summary.md").read_text(
        "utf-8"
    )
    run = str(out / JOB / "run")
    quick = ["evaluation.forgetting.multiple_choice=none", "evaluation.forgetting.text=none", "training.steps=2"]
    fewer = [*quick, "rollout.max_new_tokens=8", "evaluation.systems={ fine_tuned = {} }"]
    options = [part for setting in fewer for part in ("--set", setting)]
    assert main(["run", str(out / JOB / "recipe.toml"), "--out", run, *options]) == 0
    evaluated = json.loads((out / JOB / "run/evaluation.json").read_text("utf-8"))
    (trained,) = evaluated["systems"]
    assert trained["metrics"].keys() == {"reward"} and 0 < trained["metrics"]["reward"]["value"] < 1
    parity = ["parity", run, "--answers", str(out / JOB / "answers.jsonl")]
    assert main(parity) == 2 and "--graders" in capsys.readouterr().err
    assert main([*parity, "--graders", str(out / JOB / "graders.json")]) == 0
    found = json.loads((out / JOB / "run/parity.json").read_text("utf-8"))
    assert [one["name"] for one in found["compared"]] == ["Near"] and found["compared"][0]["old"]["value"] == 1
    assert found["sentence"].startswith("The new model answers worse") and "nothing to meet" in found["notes"][0]
