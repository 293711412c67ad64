"""`luthier init` and `luthier run` on raw text and on preference pairs with a tiny random model: each has a verdict."""

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.cli.main import main

SHORT = ("evaluation.forgetting.max_rows=20", "evaluation.forgetting.max_tokens=512", "optimizer.learning_rate=1e-2")


def run(folder: Path, model: Path, rows: list[dict[str, Any]], *settings: str) -> tuple[dict[str, Any], Path]:
    """The report of a run with the recipe that `luthier init` writes, and the run's folder."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe, out = folder / "recipe.toml", folder / "out"
    assert main(["init", str(folder / "rows.jsonl"), "--model", str(model), "-o", str(recipe)]) == 0
    options = [part for setting in (*SHORT, *settings) for part in ("--set", setting)]
    assert main(["run", str(recipe), "--out", str(out), *options]) == 0
    assert (out / "report.html").stat().st_size > 10_000
    report: dict[str, Any] = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return report, out


def records(out: Path, system: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / f"records/{system}.jsonl").read_text(encoding="utf-8").splitlines()]


def values(report: dict[str, Any], metric: str) -> dict[str, float]:
    return {system["name"]: system["metrics"][metric]["value"] for system in report["systems"]}


def test_raw_text_has_a_verdict(tmp_path: Path, tiny_model_folder: Path) -> None:
    names = ("Anna", "Boris", "Clara", "David")
    rows = [
        {"id": f"p{i}", "text": f"{names[i % 4]} is number {i * 37 % 991} of the team and lives in Main Street {i}."}
        for i in range(160)
    ]
    report, out = run(tmp_path, tiny_model_folder, rows, "training.steps=30")
    found = values(report, "bits_per_byte")
    assert found["fine_tuned"] < found["zero_shot"] - 1
    assert report["verdict"]["recommendation"] == "fine_tune"
    assert set(report["systems"][0]["metrics"]) == {"bits_per_byte", "perplexity", "token_accuracy"}
    texts = {row["id"]: row["text"] for row in rows}
    for record in records(out, "fine_tuned"):
        assert (record["prompt"], record["output"], record["target"]) == ([], "", texts[record["id"]])
        assert 0 < record["scores"]["bits_per_byte"] < 20


@pytest.fixture(scope="module")
def pairs() -> list[dict[str, Any]]:
    """The chosen reply is the longer one, so that a base which sums log-probabilities ranks nearly all pairs wrong."""
    return [
        {
            "id": f"p{i}",
            "prompt": f"Where is number {i * 37 % 991}?",
            "chosen": f"Number {i * 37 % 991} is in Main Street.",
            "rejected": "No.",
        }
        for i in range(160)
    ]


def test_a_model_that_learns_to_prefer_ranks_all_pairs_right(
    tmp_path: Path, tiny_model_folder: Path, pairs: list[dict[str, Any]]
) -> None:
    report, out = run(tmp_path, tiny_model_folder, pairs, "training.steps=30")
    found = values(report, "pair_accuracy")
    assert found["zero_shot"] < 0.5 and found["fine_tuned"] == 1
    assert report["verdict"]["recommendation"] == "fine_tune"
    assert set(report["systems"][0]["metrics"]) == {"pair_accuracy", "perplexity"}
    chosen = {row["id"]: row for row in pairs}
    for record in records(out, "fine_tuned"):
        row = chosen[record["id"]]
        assert (record["prompt"][-1]["content"], record["output"]) == (row["prompt"], "")
        assert record["target"] == row["chosen"] and record["scores"]["pair_accuracy"] == 1
        assert record["margin"] > 0


def test_the_estimate_scores_too(
    tmp_path: Path, tiny_model_folder: Path, pairs: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs), encoding="utf-8")
    recipe = tmp_path / "recipe.toml"
    assert main(["init", str(tmp_path / "rows.jsonl"), "--model", str(tiny_model_folder), "-o", str(recipe)]) == 0
    capsys.readouterr()
    assert main(["estimate", str(recipe), "--set", "training.steps=3"]) == 0
    assert "answering" in capsys.readouterr().out


def test_what_cannot_be_measured_is_one_clear_message(
    tmp_path: Path, tiny_model_folder: Path, pairs: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs), encoding="utf-8")
    recipe = tmp_path / "recipe.toml"
    assert main(["init", str(tmp_path / "rows.jsonl"), "--model", str(tiny_model_folder), "-o", str(recipe)]) == 0
    for setting, said in (
        ("evaluation.systems.few_shot.shots=2", "the system few_shot writes answers"),
        ('evaluation.metrics=["rouge_l"]', "the metric rouge_l measures nothing in the task 'pairs'"),
        ("evaluation.task=language", "the task 'language' cannot be measured on a row of the kind Preference"),
    ):
        capsys.readouterr()
        assert main(["run", str(recipe), "--out", str(tmp_path / "out" / said[:20]), "--set", setting]) == 2
        assert said in capsys.readouterr().err


def test_raw_text_may_be_trained_on_and_questions_tested(
    tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"id": f"p{i}", "text": f"Number {i * 37 % 991} of the team lives in Main Street {i}."} for i in range(60)]
    asked = [
        {"id": f"q{i}", "prompt": f"Where does number {i * 53 % 997} live?", "completion": f"In Oak Street {i}."}
        for i in range(12)
    ]
    test = tmp_path / "test.jsonl"
    test.write_text("".join(json.dumps(row) + "\n" for row in asked), encoding="utf-8")
    settings = (f"data.test={test}", "data.format=auto", "evaluation.task=auto", "evaluation.metrics=[]")
    more = ("evaluation.primary_metric=rouge_l", "evaluation.max_new_tokens=4", "training.steps=3")
    report, out = run(tmp_path, tiny_model_folder, rows, *settings, *more)
    assert set(values(report, "rouge_l")) == {"zero_shot", "fine_tuned"} and report["verdict"]["sentence"]
    assert [record["target"] for record in records(out, "zero_shot")] == [row["completion"] for row in asked]

    unknown = (*settings, "evaluation.primary_metric=rouge_l")  # no reply in the training rows tells how long one is
    options = [part for setting in (*SHORT, *unknown) for part in ("--set", setting)]
    assert main(["run", str(tmp_path / "recipe.toml"), "--out", str(tmp_path / "other"), *options]) == 2
    assert "no training row has an assistant message; set evaluation.max_new_tokens" in capsys.readouterr().err
