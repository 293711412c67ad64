"""`luthier run` with rewards: the report goes by them where rows only ask, and by what is wanted where they tell it."""

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.cli.main import main

RECIPE = """
[model]
name = "{model}"
[data]
train = "rows.jsonl"
[objective]
type = "grpo"
[training]
steps = 1
rows_per_step = 2
[rollout]
group_size = 2
max_new_tokens = 6
[rollout.rewards.near]
weight = 2.0
[rollout.rewards.near.grader]
type = "text_similarity"
evaluation_metric = "fuzzy_match"
input = "{{{{sample.output_text}}}}"
reference = "{{{{item.right}}}}"
[evaluation]
forgetting = {{ text = "none", multiple_choice = "none" }}
[evaluation.systems.zero_shot]
[evaluation.systems.fine_tuned]
"""


def recipe(folder: Path, model: Path, answered: bool) -> Path:
    rows = []
    for i in range(40):
        right = f"Number {i * 37 % 991} is in Main Street."
        messages = [{"role": "user", "content": f"Where is number {i * 37 % 991}?"}]
        rows.append(
            {"messages": [*messages, {"role": "assistant", "content": right}] if answered else messages, "right": right}
        )
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    path = folder / "recipe.toml"
    path.write_text(RECIPE.format(model=model), encoding="utf-8")
    return path


def evaluated(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    return found


def test_rows_that_only_ask_are_compared_by_the_reward(
    tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["run", str(recipe(tmp_path, tiny_model_folder, answered=False)), "--out", str(tmp_path / "out")]
    assert main([*run, "--set", 'evaluation.metrics=["rouge_l"]']) == 2
    assert "no assistant message and no target to compare with" in capsys.readouterr().err
    assert main(run) == 0
    found = evaluated(tmp_path / "out")
    assert found["primary_metric"] == "reward" and all(one["metrics"].keys() == {"reward"} for one in found["systems"])
    # the weighted sum, as a training sees it: nothing the tiny model writes is near enough for more than half of 2
    assert all(0 < one["metrics"]["reward"]["value"] < 1 for one in found["systems"])
    lines = (tmp_path / "out/records/zero_shot.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 3 and "reward" in (tmp_path / "out/report.html").read_text(encoding="utf-8")


def test_rewards_do_not_decide_where_rows_say_what_is_wanted(tmp_path: Path, tiny_model_folder: Path) -> None:
    assert main(["run", str(recipe(tmp_path, tiny_model_folder, answered=True)), "--out", str(tmp_path / "out")]) == 0
    found = evaluated(tmp_path / "out")
    assert found["primary_metric"] != "reward" and all("reward" in one["metrics"] for one in found["systems"])


def test_a_run_without_rewards_cannot_be_measured_by_them(
    tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(tmp_path, tiny_model_folder, answered=True)
    text = path.read_text(encoding="utf-8").replace('type = "grpo"', 'type = "sft"')
    path.write_text(
        text.partition("[rollout]")[0] + "[evaluation]" + text.partition("[evaluation]")[2], encoding="utf-8"
    )
    assert main(["run", str(path), "--out", str(tmp_path / "out"), "--set", 'evaluation.metrics=["reward"]']) == 2
    assert "learns from [rollout.rewards]" in capsys.readouterr().err
