"""Whole runs whose ladder has a remote model, another local model and a searched prompt; processes are real."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.endpoint import Reply, echo, serving

from luthier.cli.main import main

# float32: `auto` takes bfloat16 where that is quicker, and its ties are decided by which requests share a batch
RECIPE = """
[model]
name = "{model}"
precision = "float32"
[data]
train = "rows.jsonl"
test_share = 0.2
[optimizer]
learning_rate = 4e-3
[training]
steps = 6
rows_per_step = 4
[evaluation]
max_new_tokens = 6
[evaluation.systems.zero_shot]
tune_rows = 0
[evaluation.systems.fine_tuned]
[evaluation.forgetting]
multiple_choice = "none"
text = "none"
"""
KEY = "sk-SECRET-4711"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("outside")
    rows = []
    for i in range(60):
        text = f"{i * 37 % 991} {['Main', 'Oak', 'Lake', 'Hill'][i % 4]} Street, unit {i * 7 % 83}"
        answer = json.dumps({"number": str(i * 37 % 991)})
        messages = [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
        rows.append(json.dumps({"id": f"r{i}", "messages": messages}))
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    shutil.copytree(tiny_model_folder, folder / "larger")
    (folder / "recipe.toml").write_text(RECIPE.format(model=tiny_model_folder), encoding="utf-8")
    return folder / "recipe.toml"


@pytest.fixture(scope="module")
def finished(recipe: Path) -> Path:
    out = recipe.parent / "finished"
    assert main(["run", str(recipe), "--out", str(out)]) == 0
    return out


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be evaluated further."""
    return Path(shutil.copytree(finished, tmp_path / "out"))


@pytest.fixture
def served(finished: Path) -> Iterator[str]:
    """The base URL of `luthier serve` in a process of its own."""
    command = [sys.executable, "-m", "luthier.cli.main", "serve", str(finished), "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        yield line.split(" at ")[1].split(" ")[0]
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def outputs(out: Path, system: str) -> list[str]:
    return [json.loads(line)["output"] for line in (out / f"records/{system}.jsonl").read_text("utf-8").splitlines()]


def adding(**systems: dict[str, Any]) -> list[str]:
    """Arguments that put systems into the recipe."""
    found = []
    for name, values in systems.items():
        for key, value in values.items():
            found += ["--set", f"evaluation.systems.{name}.{key}={json.dumps(value)}"]
    return found


def test_a_served_run_is_measured_as_the_run_itself(out: Path, recipe: Path, served: str) -> None:
    """The trained model behind HTTP, in another process, answers as it does here: the client loses and adds nothing."""
    prices = {"input_usd_per_million_tokens": 1.0, "output_usd_per_million_tokens": 2.0, "spend_limit_usd": 5.0}
    remote = {"type": "remote", "base_url": served, "model": "finished", "suggest": False, "answer_room": 1.0, **prices}
    assert main(["run", str(recipe), "--out", str(out), *adding(away=remote)]) == 0
    assert outputs(out, "away") == outputs(out, "fine_tuned") != outputs(out, "zero_shot")
    report = load(out / "report.json")
    systems = {s["name"]: s for s in report["systems"]}
    assert systems["away"]["tokens"] == systems["fine_tuned"]["tokens"] and systems["away"]["baseline"]
    tokens = systems["away"]["tokens"]
    usd = (tokens["prompt"] + 2 * tokens["completion"]) / 1e6
    assert systems["away"]["details"]["usd"] == pytest.approx(usd)
    (cost,) = (c for c in report["cost"]["systems"] if c["system"] == "away")
    assert cost["here_usd_per_thousand"] is None
    (there,) = cost["hosted"]
    assert there["usd_per_thousand"] == pytest.approx(1000 * usd / systems["away"]["n"])
    assert pytest.approx(usd) == next(e["usd"] for e in report["cost"]["run"] if e["name"] == "Paid for away")


@pytest.mark.chaos
def test_an_evaluation_that_was_killed_goes_on_where_it_was(out: Path, recipe: Path) -> None:
    test_rows = len((out / "data/test.jsonl").read_text("utf-8").splitlines())
    assert test_rows > 6

    def slow(body: dict[str, Any], number: int) -> Reply:
        time.sleep(0.3)
        return echo(body, number)

    with serving(slow) as heard:
        remote = {"type": "remote", "base_url": heard.url, "model": "m", "concurrency": 1, "api_key_env": "OUR_API_KEY"}
        command = [sys.executable, "-m", "luthier.cli.main", "run", str(recipe), "--out", str(out)]
        environment = dict(os.environ, OUR_API_KEY=KEY)
        process = subprocess.Popen(
            [*command, *adding(away=remote)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        try:
            while len(heard.bodies) < 4:
                assert process.poll() is None, process.communicate()
                time.sleep(0.02)
        finally:
            process.kill()
            killed = b"".join(process.communicate())
        before = len(heard.bodies)
        kept = sum(len(p.read_text().splitlines()) for p in (out / "responses").iterdir())
        assert before - 1 <= kept <= before < test_rows
        done = subprocess.run(
            [*command, *adding(away=remote)], capture_output=True, env=environment, check=True, timeout=300
        )
        assert len(heard.bodies) - before == test_rows - kept, "what was kept is not asked again"
        assert all(h["authorization"] == f"Bearer {KEY}" for h in heard.headers)
    said = (killed + done.stdout + done.stderr).decode()
    assert f"sending the prompts of {test_rows} rows to {heard.url.split('/')[2]}, which is this machine" in said
    assert f"sending the prompts of {test_rows - kept} rows" in said and f"({kept} more are answered already)" in said
    everything = "".join(p.read_text("utf-8", "replace") for p in out.rglob("*") if p.is_file())
    assert "SECRET" not in said and "SECRET" not in everything
    assert "Traceback" not in said


def test_the_limit_ends_a_run_with_one_message(out: Path, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving() as heard:
        prices = {"input_usd_per_million_tokens": 1e5, "output_usd_per_million_tokens": 1e5, "spend_limit_usd": 1.0}
        remote = {"type": "remote", "base_url": heard.url, "model": "m", **prices}
        assert main(["run", str(recipe), "--out", str(out), *adding(away=remote)]) == 2
    assert "spend_limit_usd = 1: 0 USD are spent" in capsys.readouterr().err and heard.bodies == []


def test_other_models_and_searched_prompts_have_their_place_in_the_report(out: Path, recipe: Path) -> None:
    larger = {"type": "local_model", "model": "larger", "precision": "float32", "tune_rows": 2}
    searched = {"type": "optimized_prompt", "candidates": 2, "rounds": 1, "shots": 1, "tune_rows": 4}
    arguments = ["run", str(recipe), "--out", str(out), *adding(larger=larger, searched=searched)]
    assert main(arguments) == 0
    report = load(out / "report.json")
    systems = {s["name"]: s for s in report["systems"]}
    assert systems["larger"]["baseline"] and systems["searched"]["baseline"]
    assert systems["larger"]["details"]["model"] == "larger" and systems["larger"]["tokens"]["prompt"] > 0
    details = systems["searched"]["details"]
    assert details["tried"][0]["validation_score"] == max(t["validation_score"] for t in details["tried"])
    assert details["calls"]["answers"] == sum(t["rows"] for t in details["tried"]) > 10
    page = (out / "report.html").read_text("utf-8")
    assert "larger" in page and "searched" in page
    written = {p: p.stat().st_mtime_ns for p in (out / "records").iterdir()}
    assert main(arguments) == 0
    assert {p: p.stat().st_mtime_ns for p in (out / "records").iterdir()} == written
