"""The registry of runs: read from folders, written by several processes at once, and never in the way of a training."""

import json
import pwd
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from tests.children import Child

from luthier import run_registry
from luthier.config import build
from luthier.errors import LuthierError, RecipeError, StorageError
from luthier.recipe import Recipe
from luthier.run_folder import RunFolder
from luthier.run_registry import Parent


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "home"
    monkeypatch.setenv("LUTHIER_HOME", str(place))
    return place


def begin(folder: Path, parents: list[Parent] | None = None, **settings: Any) -> RunFolder:
    run = RunFolder(folder)
    recipe = build(Recipe, {"data": {"train": "rows.jsonl"}, **settings})
    with run.locked():
        run.begin(recipe, "", folder, parents or [])
    return run


def listed() -> dict[str, run_registry.Entry]:
    return {Path(entry.folder).name: entry for entry in run_registry.entries()}


def test_a_run_is_listed_from_its_beginning_and_follows_its_stages(tmp_path: Path) -> None:
    run = begin(tmp_path / "a", model={"name": "some-model"}, adapter={"type": "dora"})
    entry = listed()["a"]
    assert (entry.stage, entry.model, entry.adapter, entry.openings) == ("begun", "some-model", "dora", 1)
    assert entry.recipe_sha256 == run.read("manifest.json")["recipe_sha256"]
    run.write("data/split.json", {"written": {"findings.json": "x", "train.jsonl": "1", "test.jsonl": None}})
    with run.timed("check"):
        pass
    assert (listed()["a"].stage, listed()["a"].rows) == ("data", {"train": "1", "test": None})
    run.write("training.json", {"stopped": "interrupted"})
    run.enter()
    assert listed()["a"].stage == "data", "a stopped training is not trained"
    run.write("training.json", {"stopped": "early"})
    run.enter()
    assert listed()["a"].stage == "trained"
    value = {"value": 0.5, "low": 0.4, "high": 0.6}
    systems = [{"name": name, "metrics": {"accuracy": value}} for name in ("zero_shot", "few_shot")]
    run.write("evaluation.json", {"primary_metric": "accuracy", "systems": systems})
    run.enter()
    assert listed()["a"].stage == "trained", "fine_tuned is not measured yet"
    systems.append({"name": "fine_tuned", "metrics": {"accuracy": value}})
    run.write("evaluation.json", {"primary_metric": "accuracy", "systems": systems})
    run.write("forgetting.json", {"verdict": "slight"})
    run.add_spent("train", 1.5, None)
    entry = listed()["a"]
    assert entry.stage == "evaluated" and entry.systems["fine_tuned"].model_dump() == value
    assert (entry.metric, entry.forgetting) == ("accuracy", "slight") and entry.seconds == pytest.approx(1.5, abs=0.1)
    run.write("report.json", {"cost": {"run_usd": 0.25}})
    run.enter()
    assert (listed()["a"].stage, listed()["a"].usd) == ("reported", 0.25)


def test_going_on_keeps_the_id_and_is_counted(tmp_path: Path) -> None:
    begin(tmp_path / "a")
    first = listed()["a"]
    begin(tmp_path / "a")
    assert (listed()["a"].id, listed()["a"].openings) == (first.id, 2)


def test_a_failure_is_kept_until_the_run_goes_on(tmp_path: Path) -> None:
    run = begin(tmp_path / "a")
    recipe = build(Recipe, {"data": {"train": "rows.jsonl"}})
    with pytest.raises(LuthierError), run.locked():
        run.begin(recipe, "", tmp_path)
        raise LuthierError("the rows are bad\nin many ways")
    assert (listed()["a"].state, listed()["a"].failure, listed()["a"].stage) == ("failed", "the rows are bad", "begun")
    with pytest.raises(RecipeError), RunFolder(tmp_path / "a").locked():
        raise RecipeError("a process that never opened the run")
    assert listed()["a"].failure == "the rows are bad"
    begin(tmp_path / "a")
    assert listed()["a"].state == "begun"


def test_descent_is_found_both_ways(tmp_path: Path) -> None:
    begin(tmp_path / "a")
    parent = listed()["a"]
    begin(tmp_path / "b", [Parent(id=parent.id, folder=parent.folder, relation="rebase of")])
    assert [child.folder for child in run_registry.children(parent.id)] == [str(tmp_path / "b")]
    assert listed()["b"].parents[0].relation == "rebase of"
    begin(tmp_path / "b")
    assert listed()["b"].parents[0].id == parent.id, "going on forgets nothing"


def test_what_a_run_continues_is_known_at_its_next_opening_too(tmp_path: Path) -> None:
    trial = Parent(id="search", folder="sweep", relation="trial of")
    earlier = Parent(id="run", folder="first", relation="continuation of")
    begin(tmp_path / "a", [trial]).record(parents=[trial.model_dump(), earlier.model_dump()])
    moved = trial.model_copy(update={"folder": "moved"})
    begin(tmp_path / "a", [moved])
    assert listed()["a"].parents == (moved, earlier)


def test_what_was_moved_deleted_or_copied_is_told_and_never_an_error(tmp_path: Path) -> None:
    for name in ("kept", "moved", "deleted", "copied"):
        begin(tmp_path / "runs" / name)
    ids = {name: entry.id for name, entry in listed().items()}
    shutil.move(tmp_path / "runs/moved", tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "runs/deleted")
    shutil.copytree(tmp_path / "runs/copied", tmp_path / "runs/twin")
    assert {name for name, entry in listed().items() if entry.is_gone} == {"moved", "deleted"}
    with pytest.raises(RecipeError, match="moved or deleted"):
        run_registry.find(ids["moved"][:6])
    found, damaged = run_registry.scan(tmp_path)
    assert {Path(entry.folder).name for entry in found} == {"kept", "elsewhere", "copied", "twin"} and not damaged
    assert listed().keys() == {"kept", "elsewhere", "copied", "twin"} and listed()["elsewhere"].id == ids["moved"]
    with pytest.raises(RecipeError, match="more than one run"):
        run_registry.find(ids["copied"])
    assert run_registry.find(str(tmp_path / "runs/twin")).id == ids["copied"]


def test_a_folder_made_anew_is_another_run(tmp_path: Path) -> None:
    begin(tmp_path / "a")
    before = listed()["a"]
    shutil.rmtree(tmp_path / "a")
    begin(tmp_path / "a")
    assert listed()["a"].id != before.id and before.is_gone and not listed()["a"].is_gone


def test_the_registry_is_made_anew_from_the_folders_alone(tmp_path: Path, home: Path) -> None:
    begin(tmp_path / "runs/a")
    parent = listed()["a"]
    begin(tmp_path / "runs/deep/b", [Parent(id=parent.id, folder=parent.folder, relation="rebase of")])
    before = run_registry.entries()
    shutil.rmtree(home)
    assert run_registry.entries() == []
    run_registry.scan(tmp_path / "runs")
    assert run_registry.entries() == before and run_registry.children(parent.id) == [listed()["b"]]


def test_a_damaged_run_does_not_hide_the_others(tmp_path: Path) -> None:
    begin(tmp_path / "runs/a")
    begin(tmp_path / "runs/b")
    (tmp_path / "runs/a/recipe.json").write_text("{")
    found, damaged = run_registry.scan(tmp_path / "runs")
    assert [Path(entry.folder).name for entry in found] == ["b"] and "recipe.json is damaged" in damaged[0]
    with pytest.raises(RecipeError, match="no such folder"):
        run_registry.scan(tmp_path / "missing")


def test_a_run_that_is_older_than_ids_is_found(tmp_path: Path) -> None:
    begin(tmp_path / "a")
    path = tmp_path / "a/manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["id"], manifest["openings"]
    path.write_text(json.dumps(manifest))
    first, second = (run_registry.scan(tmp_path)[0][0].id for _ in range(2))
    assert first == second and len(run_registry.entries()) == 1


@pytest.mark.parametrize("how", ["unwritable", "damaged", "newer"])
def test_a_registry_that_cannot_be_written_stops_nothing_and_is_told_once(
    how: str, tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if how == "unwritable":
        home.write_text("a file where a folder should be")
    else:
        home.mkdir()
        (home / "runs.sqlite").write_text("no database, but long enough to be taken for one" * 100)
    if how == "newer":
        (home / "runs.sqlite").unlink()
        begin(tmp_path / "first")
        with sqlite3.connect(home / "runs.sqlite") as connection:
            connection.execute("PRAGMA user_version = 99")
        connection.close()
    run = begin(tmp_path / "a")
    run.add_spent("train", 1.0, None)
    assert run.read("manifest.json")["stages"] == {"train": {"seconds": 1.0}}
    assert capsys.readouterr().err.count("this run is not listed") == 1
    if how != "unwritable":
        with pytest.raises(StorageError, match="--scan FOLDER"):
            run_registry.entries()


CHILD = """
import sys
from pathlib import Path
from luthier.config import build
from luthier.recipe import Recipe
from luthier.run_folder import RunFolder
for number in range(20):
    run = RunFolder(Path(sys.argv[1]) / f"{sys.argv[2]}-{number}")
    with run.locked():
        run.begin(build(Recipe, {"data": {"train": "x"}}), "", Path("."))
        run.add_spent("train", 1.0, None)
"""


@pytest.mark.slow
def test_processes_at_once_lose_no_run(tmp_path: Path) -> None:
    children = [Child(CHILD, tmp_path / "runs", str(number)) for number in range(3)]
    assert [child.ended(300) for child in children] == [(0, "", "")] * 3
    assert len(run_registry.entries()) == 60 and all(entry.seconds == 1.0 for entry in run_registry.entries())


def test_a_run_that_is_not_to_be_listed_is_not(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "a", listed=False)
    run.begin(build(Recipe, {"data": {"train": "x"}}), "", tmp_path)
    run.add_spent("train", 1.0, None)
    assert not run_registry.place().exists()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"LUTHIER_HOME": "/some/place"}, "/some/place/runs.sqlite"),
        ({"LUTHIER_HOME": "", "XDG_DATA_HOME": "/data"}, "/data/luthier/runs.sqlite"),
        ({"LUTHIER_HOME": "", "XDG_DATA_HOME": "", "HOME": "/of/me"}, "/of/me/.local/share/luthier/runs.sqlite"),
    ],
)
def test_the_place_can_be_set(variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert str(run_registry.place()) == expected


def test_without_a_home_folder_a_run_goes_on_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unknown(number: int) -> None:
        raise KeyError(number)

    for name in ("LUTHIER_HOME", "XDG_DATA_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)  # as in a container whose user has no entry
    begin(tmp_path / "a").add_spent("train", 1.0, None)
    assert "this run is not listed, and goes on" in (said := capsys.readouterr().err) and "LUTHIER_HOME" in said
    with pytest.raises(StorageError, match="has no place"):
        run_registry.entries()
