"""A training whose replies a model judges over HTTP: it stops where that fails, and goes on with the same bits."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.endpoint import Reply, completion, serving
from tests.integration.test_run import RECIPE, write_rows

from luthier.cli.main import main

JUDGED = """
[objective]
type = "grpo"
[rollout]
max_new_tokens = 12
group_size = 4
validation_prompts = 4
[rollout.models.judge]
base_url = "{url}"
model = "served"
retries = {retries}
first_wait_seconds = 0
concurrency = 3
[rollout.rewards.good]
[rollout.rewards.good.grader]
type = "score_model"
model = "judge"
input = [{{ role = "user", content = "{{{{sample.output_text}}}}" }}]
"""
STEPS = 5


def score(body: dict[str, Any], _number: int) -> Reply:
    """The share of the letter e."""
    text = body["messages"][0]["content"].partition("\n\nAnswer with")[0]
    return completion(json.dumps({"result": text.count("e") / max(len(text), 1)}))


def train(folder: Path, out: Path, url: str, model: Path, retries: int = 0, verb: str = "train") -> int:
    recipe = folder / "recipe.toml"
    settings = f"steps = {STEPS}\nsave_every = 1\npatience = false"
    content = RECIPE.format(model=model, steps=STEPS).replace(f"steps = {STEPS}", settings)
    recipe.write_text(content + JUDGED.format(url=url, retries=retries), encoding="utf-8")
    return main([verb, str(recipe), *([] if verb == "estimate" else ["--out", str(out)])])


def test_a_judge_that_fails_stops_the_training_which_then_ends_as_if_it_had_not(
    tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(tmp_path / "rows.jsonl")
    fails_at: list[int] = []

    def answer(body: dict[str, Any], number: int) -> Reply:
        return Reply(b"out of order", 503) if fails_at and number >= fails_at[0] else score(body, number)

    with serving(answer) as heard:
        assert train(tmp_path, tmp_path / "whole", heard.url, tiny_model_folder) == 0
        said = capsys.readouterr()
        assert "which is this machine, to be graded by served" in said.out + said.err
        asked = len(heard.bodies)
        fails_at.append(asked + asked * 2 // 3)
        assert train(tmp_path, tmp_path / "run", heard.url, tiny_model_folder) == 2
        said = capsys.readouterr()
        assert "status 503: out of order" in said.err and "the same command goes on" in said.err
        rollouts = sorted(path.name for path in (tmp_path / "run" / "rollouts").glob("rollout-*"))
        assert 0 < len(rollouts) < STEPS
        fails_at.clear()
        before = len(heard.bodies)
        # another patience is the same training
        assert train(tmp_path, tmp_path / "run", heard.url, tiny_model_folder, retries=3) == 0
        assert len(heard.bodies) - before <= asked - asked * 2 // 3
        assert train(tmp_path, tmp_path / "estimated", heard.url, tiny_model_folder, verb="estimate") == 0
        assert len(heard.bodies) - before <= asked - asked * 2 // 3  # nobody is asked for an estimate
    for name in ("adapter/adapter_model.safetensors", f"rollouts/rollout-{STEPS:06d}.jsonl"):
        whole, gone_on = ((tmp_path / run / name).read_bytes() for run in ("whole", "run"))
        assert whole == gone_on
    lines = (tmp_path / "run" / "rollouts" / "rollout-000001.jsonl").read_text(encoding="utf-8").splitlines()
    for line in map(json.loads, lines[1:]):
        text = line["text"]
        assert line["reward"] == pytest.approx(text.count("e") / max(len(text), 1))


def test_the_report_asks_the_judge_of_the_training(tmp_path: Path, tiny_model_folder: Path) -> None:
    """One judge: what it answered in one is kept for the other, and what it costs is counted once."""
    write_rows(tmp_path / "rows.jsonl")
    with serving(score) as heard:
        assert train(tmp_path, tmp_path / "out", heard.url, tiny_model_folder, verb="run") == 0
    found = json.loads((tmp_path / "out/evaluation.json").read_text(encoding="utf-8"))
    rewards = [system["metrics"]["reward"]["value"] for system in found["systems"]]
    assert len(rewards) > 1 and all(0 <= value <= 1 for value in rewards) and found["primary_metric"] != "reward"
    (kept,) = (tmp_path / "out/rollouts/responses").iterdir()
    questions = [body["messages"] for body in heard.bodies]
    assert len(kept.read_text(encoding="utf-8").splitlines()) == len(questions)
    assert len({json.dumps(question) for question in questions}) == len(questions)
