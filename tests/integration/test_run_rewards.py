"""`luthier run` on pairs and judged steps with a head: the report, a fresh process, the server, and what is refused."""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from tests.serving import running

from luthier.cli.main import main
from luthier.errors import EvaluationError, ExportError
from luthier.examples import Conversation, Message
from luthier.rewarding import Judges, open_reward_model
from luthier.serve.models import ServedModel
from luthier.serving import Runs

RECIPE = """
[model]
name = "{model}"
[data]
train = "rows.jsonl"
[objective]
type = "{objective}"
[optimizer]
learning_rate = 1e-2
[training]
steps = {steps}
rows_per_step = 8
[evaluation.systems.zero_shot]
[evaluation.systems.fine_tuned]
"""
CHAT = [
    {"role": "user", "content": "Where is number 3?"},
    {"role": "assistant", "content": "Number 3 is in Main Street."},
]


def write(folder: Path, model: Path, rows: list[dict[str, Any]], objective: str, steps: int = 20) -> Path:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = folder / f"{objective}.toml"
    recipe.write_text(RECIPE.format(model=model, objective=objective, steps=steps), encoding="utf-8")
    return recipe


@pytest.fixture(scope="module")
def reward_run(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("reward")
    rows = [
        {
            "prompt": f"Where is number {i * 37 % 991}?",
            "chosen": f"Number {i * 37 % 991} is in Main Street.",
            "rejected": "No.",
        }
        for i in range(120)
    ]
    recipe = write(folder, tiny_model_folder, rows, "reward")
    assert main(["run", str(recipe), "--out", str(folder / "run")]) == 0
    return folder / "run"


def test_the_report_tells_what_was_measured_and_misses_nothing(reward_run: Path) -> None:
    report = json.loads((reward_run / "report.json").read_text(encoding="utf-8"))
    found = {one["name"]: one["metrics"]["reward_accuracy"]["value"] for one in report["systems"]}
    assert found["fine_tuned"] == 1 and set(found) == {"zero_shot", "fine_tuned"}
    assert not [one for one in report["missing"] if one["part"] == "forgetting.json"]
    assert not (reward_run / "forgetting.json").exists()
    record = json.loads((reward_run / "records/fine_tuned.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert record["rewards"][0] > record["rewards"][1] and record["scores"] == {"reward_accuracy": 1.0}


def test_a_fresh_process_reads_the_same_scores(reward_run: Path) -> None:
    chat = Conversation(tuple(Message(m["role"], m["content"]) for m in CHAT))  # type: ignore[arg-type]
    (here,) = open_reward_model(reward_run).judge([chat])
    program = (
        "import sys\nfrom pathlib import Path\nfrom luthier.examples import Conversation, Message\n"
        "from luthier.rewarding import open_reward_model\n"
        f"chat = Conversation(tuple(Message(m['role'], m['content']) for m in {CHAT!r}))\n"
        "print(repr(open_reward_model(Path(sys.argv[1])).judge([chat])[0].reward))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(reward_run)], capture_output=True, text=True, check=True)
    assert float(done.stdout) == here.reward
    assert Judges()([str(reward_run)] * 2, chat.messages) == [here.reward] * 2


def ask(url: str, body: dict[str, Any], route: str = "/score") -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(
        url.removesuffix("/v1") + route, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_the_server_scores_replies_and_writes_none(reward_run: Path) -> None:
    runs = Runs({"judge": reward_run})
    models: list[ServedModel] = runs.models()
    chat = Conversation(tuple(Message(m["role"], m["content"]) for m in CHAT))  # type: ignore[arg-type]
    (here,) = open_reward_model(reward_run).judge([chat])
    with running(models) as url:
        status, told = ask(url, {"model": "judge", "messages": CHAT})
        assert status == 200 and told["object"] == "score" and told["steps"] is None
        assert told["score"] == pytest.approx(here.reward, abs=1e-5) and told["raw"] == pytest.approx(
            here.raw, abs=1e-5
        )
        assert told["usage"]["prompt_tokens"] > 10 and told["usage"]["completion_tokens"] == 0
        long = [CHAT[0], {"role": "assistant", "content": "w " * 4000}]
        for body, param, said in (
            ({"model": "judge", "messages": CHAT[:1]}, "messages", "must be the assistant's"),
            ({"model": "base", "messages": CHAT}, "model", "writes replies"),
            ({"model": "judge", "messages": CHAT, "n": 2}, "n", "n"),
            ({"model": "judge", "messages": long}, "messages", "context"),
        ):
            status, told = ask(url, body)
            assert status == 400 and told["error"]["param"] == param and said in told["error"]["message"]
        status, told = ask(url, {"model": "judge", "messages": CHAT[:1]}, "/v1/chat/completions")
        assert status == 400 and "score replies (/score)" in told["error"]["message"]
        assert ask(url, {"model": "nobody", "messages": CHAT})[0] == 404


def test_a_reward_model_is_exported_nowhere_and_its_head_never_lost(
    reward_run: Path, tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from luthier.export.make import build_exporter, export
    from luthier.progress import Silent

    with pytest.raises(ExportError, match="answers by a head of kind 'reward'"):
        export(reward_run, build_exporter("peft"), tmp_path / "out", Silent())
    head = reward_run / "adapter/head.safetensors"
    kept = head.read_bytes()
    head.unlink()
    try:
        with pytest.raises(Exception, match=r"head.safetensors was changed, added or removed"):
            open_reward_model(reward_run)
    finally:
        head.write_bytes(kept)


def test_judged_steps_end_with_a_report(tmp_path: Path, tiny_model_folder: Path) -> None:
    rows = [
        {
            "prompt": f"Count from {i}.",
            "completions": [f"{i + 1} is next.", "Banana." if i % 2 else f"{i + 2} follows."],
            "labels": [True, not i % 2],
        }
        for i in range(80)
    ]
    recipe = write(tmp_path, tiny_model_folder, rows, "process_reward", steps=30)
    assert main(["run", str(recipe), "--out", str(tmp_path / "run")]) == 0
    report = json.loads((tmp_path / "run/report.json").read_text(encoding="utf-8"))
    found = {one["name"]: one["metrics"]["step_accuracy"]["value"] for one in report["systems"]}
    assert found["fine_tuned"] > 0.95
    chat = Conversation((Message("user", "Count from 4."), Message("assistant", "5 is next.\nBanana.")))
    (judged,) = open_reward_model(tmp_path / "run").judge([chat])
    assert judged.steps is not None and judged.steps[0] > 0.5 > judged.steps[1]


def test_a_run_without_a_head_judges_nothing(tmp_path: Path, tiny_model_folder: Path, reward_run: Path) -> None:
    rows = [{"prompt": f"Say {i}.", "completion": f"{i}"} for i in range(40)]
    recipe = write(tmp_path, tiny_model_folder, rows, "sft", steps=4)
    assert main(["train", str(recipe), "--out", str(tmp_path / "run")]) == 0
    with pytest.raises(EvaluationError, match="the model has no head"):
        open_reward_model(tmp_path / "run")


SAMPLED = """
seed = 1
[model]
name = "{model}"
[data]
train = "chats.jsonl"
test_share = 0.0
[objective]
type = "grpo"
[optimizer]
learning_rate = 1e-2
[training]
steps = 3
rows_per_step = 2
[rollout]
group_size = 3
max_new_tokens = 6
validation_prompts = 2
[rollout.rewards.liked]
grader = {{ type = "reward_model", runs = ["{run}"] }}
[rollout.rewards.short]
weight = 0.0
grader = {{ type = "string_check", operation = "eq", input = "{{{{sample.output_text}}}}", reference = "No." }}
"""


def sampled_recipe(folder: Path, model: Path, run: str) -> Path:
    asked = [
        {"messages": [{"role": "user", "content": f"Where is number {i * 37 % 991}?"}, *CHAT[1:], CHAT[0]]}
        for i in range(24)
    ]
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked), encoding="utf-8")
    recipe = folder / "grpo.toml"
    recipe.write_text(SAMPLED.format(model=model, run=run), encoding="utf-8")
    return recipe


def test_a_reward_model_grades_what_another_training_samples(
    tmp_path: Path, tiny_model_folder: Path, reward_run: Path
) -> None:
    """Its run is named relative to the recipe; each reply has the reward that a fresh look gives it."""
    recipe = sampled_recipe(tmp_path, tiny_model_folder, os.path.relpath(reward_run, tmp_path))
    assert main(["train", str(recipe), "--out", str(tmp_path / "run")]) == 0
    lines = (tmp_path / "run/rollouts/rollout-000001.jsonl").read_text(encoding="utf-8").splitlines()
    replies = [json.loads(line) for line in lines[1:]]
    rows = {row["id"]: row for row in map(json.loads, (tmp_path / "run/data/train.jsonl").open(encoding="utf-8"))}
    assert len(replies) == 6 and not any("problems" in reply for reply in replies)
    judge = open_reward_model(reward_run)
    for reply in replies:
        chat = [Message(m["role"], m["content"]) for m in rows[reply["prompt"]]["messages"]]
        asked = chat[:3]
        (judged,) = judge.judge([Conversation((*asked, Message("assistant", reply["text"])))])
        assert reply["reward"] == reply["rewards"]["liked"] == pytest.approx(judged.reward, abs=1e-6)
    assert len({reply["reward"] for reply in replies}) > 1


def test_a_run_that_judges_nothing_is_no_reward_of_0(
    tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"Number {i * 37 % 991}?", "completion": f"Number {i * 37 % 991}."} for i in range(40)]
    told = write(tmp_path, tiny_model_folder, rows, "sft", steps=3)
    assert main(["train", str(told), "--out", str(tmp_path / "plain")]) == 0
    recipe = sampled_recipe(tmp_path, tiny_model_folder, "plain")
    assert main(["train", str(recipe), "--out", str(tmp_path / "run")]) != 0
    assert "the model has no head, and rewards are read by one" in capsys.readouterr().err
    assert not (tmp_path / "run/rollouts").exists()
