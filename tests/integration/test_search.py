"""`luthier search` with real trainings of a tiny random model: stopped, resumed, and kept away from the test rows."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.integration.test_run import RECIPE, load, write_rows

from luthier.cli.main import main

pytest.importorskip("optuna")
from luthier.search.study import Outcome, Trial, outcome_lines, told
from luthier.search.trial import Ground, Result, Watched

TRY = ["--try", "optimizer.learning_rate=5e-3..5e-2:log", "--try", "adapter.rank=8,32", "--try", "training.steps=8..12"]
SMALL = [*TRY, "--trials", "4", "--seeds", "2"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("search")
    write_rows(folder / "rows.jsonl", 60)
    path = folder / "recipe.toml"
    content = RECIPE.format(model=tiny_model_folder, steps=6)
    # `auto` is a matter of speed, so two searches may mean different things by it; within one it is settled
    path.write_text(content.replace("[data]", 'precision = "float32"\n[data]'), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def searched(recipe: Path) -> Path:
    out = recipe.parent / "searched"
    assert main(["search", str(recipe), "--out", str(out), *SMALL]) == 0
    return out


def decided(out: Path) -> Any:
    """`search.json` without what differs between two searches of the same kind."""
    return {key: value for key, value in load(out / "search.json").items() if key not in ("id", "created", "settings")}


def test_the_winner_has_the_least_validation_loss_and_is_run_and_tested_once(searched: Path) -> None:
    found = load(searched / "search.json")
    complete = {t["name"]: t for t in found["trials"] if t["state"] == "complete"}
    assert len(found["trials"]) == 4 and found["best"] == min(complete, key=lambda name: complete[name]["value"])
    values = complete[found["best"]]["values"]
    assert found["winner"] == "trial" and complete[found["best"]]["value"] < found["given"]["value"]
    best = load(searched / "best/recipe.json")
    assert best["optimizer"]["learning_rate"] == values["optimizer.learning_rate"]
    assert best["adapter"]["rank"] == values["adapter.rank"]
    assert load(searched / "best/training.json")["best_validation_loss"] == complete[found["best"]]["value"]
    assert {s["name"] for s in load(searched / "best/evaluation.json")["systems"]} == {"zero_shot", "fine_tuned"}
    places = sorted(str(path.relative_to(searched)) for path in searched.rglob("records"))
    assert places == ["best/records"], "test rows were asked by the winner alone"


def test_luck_is_counted_with_seeds_that_chose_nothing(searched: Path) -> None:
    luck = load(searched / "search.json")["luck"]
    assert luck["seeds"] == [1, 2] and len(luck["winner"]) == len(luck["given"]) == 2
    assert luck["advantage"] == [b - a for a, b in zip(luck["winner"], luck["given"], strict=True)]
    assert luck["mean"] == pytest.approx(sum(luck["advantage"]) / 2)
    assert luck["low"] <= luck["mean"] <= luck["high"] and luck["spread"] >= 0
    for name in ("given-1", "given-2"):
        assert load(searched / f"seeds/{name}/recipe.json")["adapter"]["rank"] == 16, "the recipe as it stands"


def test_a_winner_that_fails_with_another_seed_is_none_and_the_search_goes_on(
    searched: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, arguments = tmp_path / "out", ["search", str(recipe), "--out", str(tmp_path / "out"), *SMALL]
    shutil.copytree(searched, out)
    shutil.rmtree(out / "best")

    def fail(place: str) -> None:
        path = out / place / "manifest.json"
        manifest = load(path)
        manifest["trial"]["result"] = {"state": "failed", "value": None, "note": "step 3: the gradient norm is nan"}
        path.write_text(json.dumps(manifest))

    fail(f"seeds/{load(out / 'search.json')['best']}-2")
    assert main(arguments) == 0
    found, said = load(out / "search.json"), capsys.readouterr().out
    assert found["winner"] == "given" and found["luck"]["advantage"][1] is None is found["luck"]["winner"][1]
    assert found["luck"]["mean"] == found["luck"]["advantage"][0] and ", failed\n" in said
    assert "the recipe as it stands wins" in said and load(out / "best/recipe.json")["adapter"]["rank"] == 16
    fail("seeds/given-1")
    assert main(arguments) == 2
    assert "seeds/given-1: failed with another seed: step 3" in capsys.readouterr().err


def test_trials_of_other_lengths_are_judged_at_the_same_shares(tmp_path: Path) -> None:
    def judged(steps: int, every: int) -> dict[int, float]:
        told: list[tuple[int, float]] = []
        lines = [{"step": n, **({"validation_loss": 1.0 / n} if n % every == 0 else {})} for n in range(1, steps + 1)]
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        Watched(steps, lambda *one: told.append(one)).replay(tmp_path / "metrics.jsonl", steps)
        assert [percent for percent, _ in told] == sorted({percent for percent, _ in told})
        return dict(told)

    assert judged(12, 5) == dict.fromkeys((40, 50, 60, 70), 1 / 5) | dict.fromkeys((80, 90, 100), 1 / 10)
    long, short = judged(40, 1), judged(8, 2)
    assert list(long) == list(range(10, 101, 10)) and list(short) == list(range(20, 101, 10))
    assert long[20] == 1 / 8 and short[40] == 1 / 4 and short[100] == 1 / 8


def test_a_pruned_trial_without_a_finite_loss_is_told_as_pruned(searched: Path) -> None:
    note = "stopped at 30 % of its steps"
    ground = cast(Ground, SimpleNamespace(by_loss=True, higher_is_better=False))
    assert told(Result("pruned", None, note), ground) == f"{note}, validation loss not finite"
    trials = [
        Trial(str(n), {"a": n}, result)
        for n, result in enumerate(
            (
                Result("failed", None, "x"),
                Result("pruned", None, note),
                Result("pruned", 2.0, note),
                Result("complete", 1.0),
            )
        )
    ]
    lines = outcome_lines(Outcome(trials, Result("complete", 1.5), trials[3], None, "trial"), ground)
    assert [line.split()[0] for line in lines[1:5]] == ["3", "2", "1", "0"]


def test_what_auto_means_is_settled_once_for_all_runs_of_a_search(recipe: Path, tmp_path: Path) -> None:
    out, arguments = tmp_path / "out", ["--try", "adapter.rank=8,32", "--trials", "2", "--seeds", "0"]
    arguments = ["search", str(recipe), "--out", str(out), *arguments, "--set", "model.precision=auto"]
    assert main(arguments) == 0
    held = {"precision": "bfloat16", "device": "cpu"}  # as if this machine had been faster in it on another day
    if load(out / "rows/manifest.json")["held"] == held:
        held["precision"] = "float32"
    for name in ("trials", "given", "best", "study.sqlite", "search.json"):
        path = out / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    manifest = load(out / "rows/manifest.json")
    (out / "rows/manifest.json").write_text(json.dumps({**manifest, "held": held}))
    assert main(arguments) == 0
    manifests = [path for path in out.rglob("manifest.json") if "checkpoints" not in path.parts]
    assert len(manifests) >= 4 and all(load(path)["held"] == held for path in manifests)


def test_trials_are_listed_as_trials_of_the_search(searched: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["runs", "--all", "--json"]) == 0
    listed = {Path(e["folder"]): e for e in json.loads(capsys.readouterr().out)}
    search_id = load(searched / "search.json")["id"]
    entry, best = listed[(searched / "trials/0000").resolve()], listed[(searched / "best").resolve()]
    assert [(p["id"], p["relation"]) for p in entry["parents"]] == [(search_id, "trial of")]
    assert [(p["id"], p["relation"]) for p in best["parents"]] == [(search_id, "winner of")]
    assert entry["trial"]["values"].keys() == {"optimizer.learning_rate", "adapter.rank", "training.steps"}
    assert main(["runs", "--json"]) == 0
    folders = {Path(e["folder"]) for e in json.loads(capsys.readouterr().out)}
    assert (searched / "best").resolve() in folders and (searched / "trials/0000").resolve() not in folders


def test_the_same_command_again_trains_nothing(searched: Path, recipe: Path) -> None:
    def written() -> dict[Path, Any]:
        trained = {p: p.stat().st_mtime_ns for p in searched.rglob("metrics.jsonl") if "best" not in p.parts}
        return trained | {p: p.stat().st_mtime_ns for p in searched.glob("best/checkpoints/*")}

    before, found = written(), decided(searched)
    assert main(["search", str(recipe), "--out", str(searched), *SMALL]) == 0
    assert written() == before
    assert decided(searched) == found


def test_the_test_rows_cannot_move_a_search(searched: Path, recipe: Path, tmp_path: Path) -> None:
    """Other test rows, with answers that are all wrong: every trial and the choice stay as they are."""
    data = searched / "rows/data"
    for name in ("train", "validation"):
        shutil.copy(data / f"{name}.jsonl", tmp_path)
    rows = [json.loads(line) for line in (data / "test.jsonl").read_text().splitlines()]
    outs = []
    for number, answer in enumerate((None, '{"number": "0", "street": "Wrong"}')):
        for row in rows:
            row["messages"][-1]["content"] = answer or row["messages"][-1]["content"]
        (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        files = [f"data.{name}={tmp_path / name}.jsonl" for name in ("train", "validation", "test")]
        outs.append(tmp_path / f"out-{number}")
        settings = [part for file in files for part in ("--set", file)]
        arguments = ["search", str(recipe), "--out", str(outs[-1]), *TRY, "--trials", "3", "--seeds", "1", *settings]
        assert main(arguments) == 0
    a, b = (decided(out) for out in outs)
    assert a.pop("rows") != b.pop("rows") and a == b


def test_a_recipe_that_nothing_beats_stands(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    arguments = ["search", str(recipe), "--out", str(out), "--try", "optimizer.learning_rate=1e-7,1e-6"]
    assert main([*arguments, "--trials", "2", "--seeds", "2"]) == 0
    assert load(out / "search.json")["winner"] == "given" and not (out / "seeds").exists()
    assert load(out / "best/recipe.json")["optimizer"]["learning_rate"] == 4e-3
    assert "the recipe as it stands wins" in capsys.readouterr().out


def test_a_search_by_the_metric_maximizes_it(recipe: Path, tmp_path: Path) -> None:
    metric = ["--set", "evaluation.metrics=['token_accuracy']", "--set", "evaluation.task=text"]
    arguments = ["search", str(recipe), "--out", str(tmp_path / "out"), *TRY, "--by", "metric", *metric]
    assert main([*arguments, "--trials", "3", "--seeds", "0"]) == 0
    found = load(tmp_path / "out/search.json")
    values = {t["name"]: t["value"] for t in found["trials"] if t["state"] == "complete"}
    assert found["best"] == max(values, key=lambda name: values[name]) and found["luck"] is None
    assert all(0 <= value <= 1 for value in values.values())


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_hopeless_trials_are_ended_early(pruner: str, recipe: Path, tmp_path: Path) -> None:
    rates = "4e-3,3e-3,5e-3,6e-3,1e-7,2e-7,3e-7,4e-7"
    out = tmp_path / "out"
    arguments = ["search", str(recipe), "--out", str(out), "--try", f"optimizer.learning_rate={rates}"]
    settings = ["--set", "training.steps=20", "--set", "training.patience=false"]
    assert main([*arguments, *settings, "--trials", "16", "--seeds", "0", "--prune", pruner]) == 0
    trials = load(out / "search.json")["trials"]
    pruned = [t for t in trials if t["state"] == "pruned"]
    assert pruned and all("stopped at" in t["note"] for t in pruned)
    for trial in pruned:
        log = out / "trials" / trial["name"] / "metrics.jsonl"
        if log.is_file():  # else the same settings had been pruned before
            assert len(log.read_text().splitlines()) < 20
    assert not list(out.glob("trials/*/checkpoints")) and not list(out.glob("trials/*/adapter"))


def test_a_search_that_goes_on_waits_for_no_tracker(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["search", str(recipe), "--out", str(out), *TRY, "--set", "tracking.mlflow.uri=http://127.0.0.1:1"]
    assert main(arguments) == 2
    assert "tracking.mlflow: MLflow: " in capsys.readouterr().err and not (out / "search.json").exists()
    (out / "search.json").write_text('{"id": "a", "settings": {}}')
    assert main(arguments) == 2
    assert "holds another search" in capsys.readouterr().err


def test_settings_that_cannot_be_trained_are_counted_and_passed_over(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["search", str(recipe), "--out", str(out), "--try", "adapter.targets=['q_proj'],['query']"]
    assert main([*arguments, "--trials", "4", "--seeds", "0"]) == 0
    trials = {json.dumps(t["values"]): t for t in load(out / "search.json")["trials"]}
    states = {next(iter(t["values"]["adapter.targets"])): t["state"] for t in trials.values()}
    assert states["q_proj"] == "complete" and states.get("query", "failed") == "failed"


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ([], "nothing to try"),
        (["--try", "optimizer.learning_rat=1e-4..1e-2"], "did you mean 'learning_rate'"),
        (["--try", "adapter.rank=4,8", "--trials", "0"], "at least 1 trial"),
        (["--space", "missing.toml"], "missing.toml"),
    ],
)
def test_what_cannot_be_searched_is_one_clear_message_before_anything_is_written(
    more: list[str], says: str, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", str(recipe), "--out", str(tmp_path / "out"), *more]) == 2
    assert says in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_another_search_in_the_same_folder_is_refused(
    searched: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", str(recipe), "--out", str(searched), "--try", "adapter.rank=2,8"]) == 2
    assert "space" in capsys.readouterr().err


def start(recipe: Path, out: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "luthier.cli.main", "search", str(recipe), "--out", str(out), *SMALL]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
@pytest.mark.chaos
@pytest.mark.parametrize("place", ["trials/0001", "trials/0003"])
def test_a_search_that_was_stopped_ends_as_an_undisturbed_one(
    number: signal.Signals, code: int, place: str, searched: Path, recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    child = start(recipe, out)
    log = out / place / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not log.is_file() or not log.read_bytes():
        assert time.monotonic() < deadline and child.poll() is None
        time.sleep(0.002)
    child.send_signal(number)
    child.communicate(timeout=60)
    assert child.returncode == code
    again = start(recipe, out)
    error = again.communicate(timeout=600)[1]
    assert again.returncode == 0 and "going on with the search" in error, error
    assert decided(out) == decided(searched)
    assert len(list((out / "trials").iterdir())) == 4, "the trial went on in its own folder"
