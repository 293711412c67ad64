"""`luthier runs` and `luthier rebase` over real runs of tiny random models."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.integration.test_run import RECIPE, load, write_rows

from luthier.cli.main import main
from luthier.comparison import compare_runs, read_side, require_same_rows
from luthier.data.formats.base import read_examples
from luthier.data.split import group_keys
from luthier.errors import DataError
from luthier.evaluation.metrics.field_f1 import FieldF1
from luthier.evaluation.significance import compare, number_groups
from luthier.files import sha256_of
from luthier.rebase import plan_rebase

Json = Callable[..., Any]


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    """Another base: wider, other weights, the same tokenizer."""
    import torch
    from transformers import AutoConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("other") / "tiny-wide"
    shutil.copytree(tiny_model_folder, folder)
    config = AutoConfig.from_pretrained(folder)
    config.hidden_size, config.intermediate_size = 96, 160
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = LlamaForCausalLM(config)
        model.get_input_embeddings().weight.data[config.pad_token_id].normal_(std=config.initializer_range)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("again")
    write_rows(folder / "rows.jsonl", 260)
    path = folder / "recipe.toml"
    path.write_text(RECIPE.format(model=tiny_model_folder, steps=6), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def old(recipe: Path) -> Path:
    out = recipe.parent / "old"
    assert main(["run", str(recipe), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def rebased(old: Path, other_model: Path, recipe: Path) -> Path:
    (recipe.parent / "rows.jsonl").rename(recipe.parent / "moved.jsonl")  # the old run's folder is all that is needed
    try:
        assert main(["rebase", str(old), "--model", str(other_model)]) == 0
    finally:
        (recipe.parent / "moved.jsonl").rename(recipe.parent / "rows.jsonl")
    return old.with_name("old-tiny-wide")


@pytest.fixture
def as_json(capsys: pytest.CaptureFixture[str]) -> Json:
    def call(*arguments: str) -> Any:
        capsys.readouterr()
        assert main(["runs", "--json", *arguments]) == 0
        return json.loads(capsys.readouterr().out)

    return call


def test_a_rebase_keeps_rows_and_split_byte_for_byte(old: Path, rebased: Path) -> None:
    for name in ("train", "validation", "test"):
        assert (rebased / f"data/{name}.jsonl").read_bytes() == (old / f"data/{name}.jsonl").read_bytes()
    assert load(rebased / "recipe.json")["model"]["name"].endswith("tiny-wide")
    assert load(rebased / "recipe.json")["optimizer"] == load(old / "recipe.json")["optimizer"]
    assert load(rebased / "manifest.json")["parents"] == [
        {"id": load(old / "manifest.json")["id"], "folder": str(old.resolve()), "relation": "rebase of"}
    ]


def test_a_rebase_ends_with_pairs_of_every_system_and_a_verdict(old: Path, rebased: Path, as_json: Json) -> None:
    found = load(rebased / "rebase.json")
    assert found["decision"] in ("keep", "move") and found["sentence"].lower().startswith(found["decision"])
    assert found["learning_rate"] == "learning rate 0.004, as the recipe says"
    comparison = found["comparison"]
    assert comparison["test_rows"] == len((old / "data/test.jsonl").read_text().splitlines()) >= 20
    assert {one["first"] for one in comparison["systems"]} == {"zero_shot", "fine_tuned"}
    assert comparison["settings"].keys() == {"model.name"} and not comparison["left_out"]
    for one in comparison["systems"]:
        values, d = one["values"], one["difference"]
        assert d["difference"] == pytest.approx(values[1]["value"] - values[0]["value"])
        assert d["low"] <= d["difference"] <= d["high"]
        states = [load(run / f"records/{one['first']}.state.json")["statistics"]["field_f1"] for run in (old, rebased)]
        rows = list(read_examples(old / "data/test.jsonl"))
        a, b = (np.array(state) for state in states)
        expected = compare(FieldF1(), b, a, groups_N=number_groups(group_keys(rows)))
        assert (d["low"], d["high"], d["p_value"]) == (expected.low, expected.high, expected.p_value)
    assert as_json(str(old), str(rebased)) == comparison


def test_the_values_of_the_comparison_are_those_of_both_evaluations(old: Path, rebased: Path, as_json: Json) -> None:
    found = {one["first"]: one["values"] for one in as_json(str(old), str(rebased))["systems"]}
    for place, run in enumerate((old, rebased)):
        for system in load(run / "evaluation.json")["systems"]:
            assert found[system["name"]][place] == system["metrics"]["field_f1"]


@pytest.mark.parametrize(("coarsest", "better"), [(0.99, "tie"), (1e-6, "unknown")])
def test_who_is_better_is_decided_as_the_first_run_decides(
    old: Path, rebased: Path, coarsest: float, better: str
) -> None:
    first, second = read_side(old), read_side(rebased)
    decision = {"smallest_gain": 0.99, "coarsest_effect": coarsest}
    found = compare_runs(replace(first, recipe={**first.recipe, "decision": decision}), second)
    assert {one.first: one.better for one in found.systems}["fine_tuned"] == better


def test_both_are_listed_with_their_descent(old: Path, rebased: Path, as_json: Json) -> None:
    listed = {entry["folder"]: entry for entry in as_json()}
    mine, new = listed[str(old.resolve())], listed[str(rebased.resolve())]
    assert mine["state"] == new["state"] == "reported"
    assert new["systems"]["fine_tuned"] == load(rebased / "evaluation.json")["systems"][1]["metrics"]["field_f1"]
    assert new["usd"] == load(rebased / "report.json")["cost"]["run_usd"] and new["seconds"] > 0
    assert [child["id"] for child in as_json(mine["id"][:8])["children"]] == [new["id"]]
    folders = [entry["folder"] for entry in as_json()]
    assert folders.index(str(rebased.resolve())) < folders.index(str(old.resolve())), "newest first"


def test_a_run_on_other_rows_is_paired_on_the_shared_ones_alone(
    old: Path, recipe: Path, tmp_path: Path, as_json: Json
) -> None:
    rows = [json.loads(line) for line in (old / "data/test.jsonl").read_text().splitlines()]
    rows[0]["messages"][-1]["content"] = json.dumps({"number": "1", "street": "Elsewhere"})
    changed = tmp_path / "test.jsonl"
    changed.write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]))
    out = tmp_path / "fewer"
    files = {name: old / f"data/{name}.jsonl" for name in ("train", "validation")} | {"test": changed}
    settings = [part for name, path in files.items() for part in ("--set", f"data.{name}={path}")]
    assert main(["run", str(recipe), "--out", str(out), *settings]) == 0
    found = as_json(str(old), str(out))
    assert found["rows"]["test"] == {"first": len(rows), "second": len(rows) - 1, "shared": len(rows) - 2}
    assert found["test_rows"] == len(rows) - 2 and {"data.test"} <= found["settings"].keys()
    assert [one["difference"]["difference"] for one in found["systems"] if one["first"] == "zero_shot"] == [0.0]


def test_nothing_is_compared_that_means_nothing(old: Path, tmp_path: Path, as_json: Json) -> None:
    changed, other, alone = tmp_path / "changed", tmp_path / "other", tmp_path / "alone"
    for folder in (changed, other, alone):
        shutil.copytree(old, folder)
    with (changed / "records/fine_tuned.jsonl").open("a") as file:
        file.write("\n")
    found = as_json(str(old), str(changed))
    assert [one["first"] for one in found["systems"]] == ["zero_shot"]
    assert "was changed since it was made" in found["left_out"][0]
    values = load(other / "evaluation.json")
    (other / "evaluation.json").write_text(json.dumps({**values, "primary_metric": "exact_match"}))
    assert "primary metrics differ" in as_json(str(old), str(other))["left_out"][0]
    (alone / "evaluation.json").unlink()
    assert "was not evaluated" in as_json(str(old), str(alone))["left_out"][0]


def test_tokens_of_another_tokenizer_are_not_compared(old: Path, tmp_path: Path, as_json: Json) -> None:
    other, folders = tmp_path / "other", [old, tmp_path / "other"]
    shutil.copytree(old, other)
    manifest = load(other / "manifest.json")
    manifest["model"]["sha256"]["tokenizer.json"] = "0" * 64
    (other / "manifest.json").write_text(json.dumps(manifest))
    assert len(as_json(*map(str, folders))["systems"]) == 2, "a metric of answers is compared"
    for folder in folders:  # as if perplexity had been the primary metric of both
        shutil.copytree(folder, tmp_path / f"p-{folder.name}")
        values = load(folder / "evaluation.json") | {"primary_metric": "perplexity"}
        (tmp_path / f"p-{folder.name}/evaluation.json").write_text(json.dumps(values))
    found = as_json(*(str(tmp_path / f"p-{folder.name}") for folder in folders))
    assert not found["systems"] and all("cut texts into others" in reason for reason in found["left_out"])


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--set", "data.test_share=0.3"], "keeps the rows"),
        (["--set", "seed=3"], "keeps the rows"),
        (["--set", "training.stepz=3"], "did you mean 'steps'"),
        (["--model", "no-such-model"], "no-such-model"),
    ],
)
def test_what_cannot_be_rebased_is_one_clear_message(
    more: list[str], says: str, old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["rebase", str(old), "--model", "smollm2-135m-instruct", "--out", str(tmp_path / "out"), *more]
    assert main(arguments) == 2
    assert says in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_an_unmeasured_run_is_not_rebased(
    old: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(recipe), "--out", str(tmp_path / "trained")]) == 0
    assert main(["rebase", str(tmp_path / "trained"), "--model", "x"]) == 2
    assert "not trained and measured" in capsys.readouterr().err
    assert main(["rebase", str(tmp_path), "--model", "x"]) == 2
    assert "not a run's folder" in capsys.readouterr().err


def test_rows_of_one_id_are_told_apart_by_their_order(old: Path, tmp_path: Path, as_json: Json) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(old, copy)
    records = sorted((copy / "records").glob("*.jsonl"))
    for path in (copy / "data/test.jsonl", *records):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows = [{**row, "id": "same"} if n < 3 else row for n, row in enumerate(rows)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for path in records:
        state = load(path.with_suffix(".state.json"))
        path.with_suffix(".state.json").write_text(json.dumps({**state, "records_sha256": sha256_of(path)}))
    found = as_json(str(copy), str(copy))
    assert found["rows"]["test"] == {"first": len(rows), "second": len(rows), "shared": len(rows)}
    assert found["test_rows"] == len(rows)
    values = {system["name"]: system["metrics"]["field_f1"] for system in load(old / "evaluation.json")["systems"]}
    assert {one["first"]: one["values"][0] for one in found["systems"]} == values


def test_rows_to_replay_are_those_of_the_run_and_not_of_the_file_any_more(
    recipe: Path, other_model: Path, tmp_path: Path, as_json: Json, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new, source = tmp_path / "old", tmp_path / "new", tmp_path / "other.jsonl"
    rows = [{"messages": [{"role": "user", "content": f"Say {n}."}, {"role": "assistant", "content": f"It is {n}."}]}
            for n in range(40)]  # fmt: skip
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["run", str(recipe), "--out", str(old), "--set", f"data.replay={source}"]) == 0
    source.unlink()
    assert main(["rebase", str(old), "--model", str(other_model), "--out", str(new)]) == 0
    assert (new / "data/replay.jsonl").read_bytes() == (old / "data/replay.jsonl").read_bytes()
    found = as_json(str(old), str(new))
    assert found["settings"].keys() == {"model.name"} and found["rows"]["replay"]["shared"] == 40
    with (old / "data/replay.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(DataError, match=r"replay\.jsonl"):
        require_same_rows(old, new)


def test_a_run_with_a_remedy_in_place_is_not_rebased(
    old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(old, tmp_path / "old")
    (tmp_path / "old/remember.json").write_text(json.dumps({"metric": "field_f1", "chosen": "kl-1"}))
    assert main(["rebase", str(tmp_path / "old"), "--model", "smollm2-135m-instruct"]) == 2
    told = capsys.readouterr().err
    assert "put kl-1 in place" in told and "remember.html" in told
    (tmp_path / "old/remember.json").write_text(json.dumps({"metric": "field_f1", "chosen": "plain"}))
    assert plan_rebase(tmp_path / "old", "smollm2-135m-instruct").recipe.model.name == "smollm2-135m-instruct"


@pytest.mark.chaos
def test_a_rebase_that_was_killed_goes_on(old: Path, other_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    settings = ["--set", "training.steps=60", "--set", "training.save_every=2", "--set", "training.patience=false"]
    command = [sys.executable, "-m", "luthier.cli.main", "rebase", str(old), "--model", str(other_model)]
    command += ["--out", str(out), *settings]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ))
    deadline = time.monotonic() + 120
    while not (out / "checkpoints/step-000010").is_dir():
        assert time.monotonic() < deadline and child.poll() is None
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    first = load(out / "manifest.json")
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0 and "going on after step" in done.stderr, done.stderr
    manifest = load(out / "manifest.json")
    assert manifest["id"] == first["id"] and manifest["openings"] == 2 and manifest["parents"] == first["parents"]
    assert "Keep:" in done.stdout or "Move:" in done.stdout


def test_a_merged_run_is_a_run_of_its_own_and_comes_from_all_of_its_parts(
    old: Path, tmp_path: Path, as_json: Json, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(old, tmp_path / "second")
    manifest = load(tmp_path / "second/manifest.json")
    (tmp_path / "second/manifest.json").write_text(json.dumps({**manifest, "id": "second"}))
    out = tmp_path / "merged"
    assert main(["merge", str(old), f"{tmp_path / 'second'}=0.5", "--out", str(out)]) == 0
    entry = as_json(str(out))
    ids = [load(folder / "manifest.json")["id"] for folder in (old, tmp_path / "second")]
    assert [(p["id"], p["relation"]) for p in entry["parents"]] == [(one, "merge of") for one in ids]
    assert entry["id"] not in ids and entry["state"] == "trained" and entry["seconds"] == 0
    assert str(out) in [child["folder"] for child in as_json(str(old))["children"]]
    assert main(["evaluate", str(out)]) == 0
    assert as_json(str(out))["state"] == "evaluated"
    assert {one["first"] for one in as_json(str(old), str(out))["systems"]} == {"zero_shot", "fine_tuned"}
    assert main(["rebase", str(out), "--model", "x"]) == 2
    assert "was merged, not trained" in capsys.readouterr().err


def test_a_copied_run_is_listed_beside_the_first(old: Path, tmp_path: Path, as_json: Json) -> None:
    shutil.copytree(old, tmp_path / "copy")
    listed = {entry["folder"] for entry in as_json("--scan", str(tmp_path))}
    assert {str(old.resolve()), str((tmp_path / "copy").resolve())} <= listed


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["no-such-run"], "neither a run's folder"),
        (["a", "b", "c"], "two can be compared"),
        (["--scan", "no-such-folder"], "no such folder"),
    ],
)
def test_a_name_that_is_no_run_is_one_clear_message(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runs", *arguments]) == 2
    assert says in capsys.readouterr().err


def test_lists_and_comparisons_are_readable(old: Path, rebased: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    for arguments in ([], [str(rebased)], [str(old), str(rebased)]):
        assert main(["runs", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "reported" in printed and "rebase of" in printed and "model.name: " in printed
    assert "train: the same" in printed and "20 test rows that both have" in printed and "cost of the second" in printed
