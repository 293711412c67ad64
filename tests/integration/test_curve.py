"""`luthier curve` on a tiny run: smaller sets are part of larger ones, and what was trained is used again."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.integration.test_run import RECIPE, write_rows

from luthier.cli.main import main


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("curve")
    write_rows(folder / "rows.jsonl", 120)
    recipe, out = folder / "recipe.toml", folder / "out"
    recipe.write_text(RECIPE.format(model=tiny_model_folder, steps=4), encoding="utf-8")
    assert main(["run", str(recipe), "--out", str(out)]) == 0
    return out


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_curve_has_a_point_for_each_share_and_the_run_itself(trained: Path) -> None:
    assert main(["curve", str(trained), "--shares", "0.5,0.25", "--more", "10,50"]) == 0
    curve, whole = load(trained / "curve.json"), load(trained / "data/split.json")["train"]
    rows = [point["rows"] for point in curve["points"]]
    assert len(rows) == 3 and rows == sorted(rows) and rows[-1] == whole and abs(rows[0] - whole / 4) <= 2
    assert [p["more_rows"] for p in curve["promises"]] == [10, 50]
    run = {s["name"]: s for s in load(trained / "evaluation.json")["systems"]}["fine_tuned"]
    assert curve["points"][-1]["value"] == run["metrics"][curve["metric"]]["value"]
    steps = {load(trained / f"curve/{n}/training.json")["planned_steps"] for n in rows[:-1]}
    assert steps == {load(trained / "training.json")["planned_steps"]}
    assert load(trained / "report.json")["curve"]["points"] == curve["points"]
    again = [(trained / f"curve/{n}/metrics.jsonl").stat().st_mtime_ns for n in rows[:-1]]
    records = [(trained / f"curve/{n}/records/fine_tuned.jsonl").stat().st_mtime_ns for n in rows[:-1]]
    assert main(["curve", str(trained), "--shares", "0.25,0.5"]) == 0
    assert [(trained / f"curve/{n}/records/fine_tuned.jsonl").stat().st_mtime_ns for n in rows[:-1]] == records
    assert len(again) == 2 and load(trained / "curve.json")["points"] == curve["points"]


def test_the_runs_own_answers_are_not_asked_for_again_whatever_is_noted_of_the_system(
    tmp_path: Path, tiny_model_folder: Path
) -> None:
    write_rows(tmp_path / "rows.jsonl", 120)
    recipe, out = tmp_path / "recipe.toml", tmp_path / "out"
    text = RECIPE.format(model=tiny_model_folder, steps=2)
    recipe.write_text(text, encoding="utf-8")
    noted = ["--set", "evaluation.systems.fine_tuned.note=as in May"]
    assert main(["run", str(recipe), "--out", str(out), *noted]) == 0
    state = (out / "records/fine_tuned.state.json").read_bytes()
    assert main(["curve", str(out), "--shares", "0.25,0.5"]) == 0
    assert (out / "records/fine_tuned.state.json").read_bytes() == state


def test_a_run_that_was_not_trained_has_no_curve(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = trained.parent / "recipe.toml"
    assert main(["run", str(recipe), "--out", str(tmp_path / "x"), "--set", "optimizer.learning_rate=1e30"]) != 0
    assert main(["curve", str(tmp_path / "x")]) == 2
    assert "no trained model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("shares", "message"), [("0.0001", "leave some rows"), ("0.99999", "leave some rows"), ("0.6", "at least 3")]
)
def test_shares_that_make_no_curve_are_refused_before_anything_is_trained(
    trained: Path, shares: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(trained.glob("curve/*"))
    assert main(["curve", str(trained), "--shares", shares]) == 2
    assert message in capsys.readouterr().err and sorted(trained.glob("curve/*")) == before


def test_a_folder_that_is_no_run_is_left_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["curve", str(tmp_path / "typo")]) == 2
    assert "not a run's folder" in capsys.readouterr().err and not (tmp_path / "typo").exists()


def test_shares_of_the_same_rows_are_one_point_and_replayed_rows_count_in_the_steps(
    tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(tmp_path / "rows.jsonl", 120)
    write_rows(tmp_path / "other.jsonl", 160)
    recipe, out = tmp_path / "recipe.toml", tmp_path / "out"
    recipe.write_text(RECIPE.format(model=tiny_model_folder, steps=0).replace("steps = 0", "epochs = 0.2"), "utf-8")
    replay = ["--set", f"data.replay={tmp_path / 'other.jsonl'}", "--set", "data.replay_share=0.5"]
    assert main(["run", str(recipe), "--out", str(out), *replay]) == 0
    assert main(["curve", str(out), "--shares", "0.25,0.2501,0.5", "--more", "10000,20000"]) == 0
    curve, said = load(out / "curve.json"), "".join(capsys.readouterr())
    rows = [point["rows"] for point in curve["points"]]
    assert len(rows) == 3 and "3 shares come to 2 different numbers of rows" in said
    steps = {load(path)["planned_steps"] for path in out.glob("curve/*/training.json")}
    assert steps == {load(out / "training.json")["planned_steps"]}
    assert [p["more_rows"] for p in curve["promises"]] == [3 * rows[-1]]
    assert f"Of more than {3 * rows[-1]} more rows, 4 times those there are, nothing is said." in said
