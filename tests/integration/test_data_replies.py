"""`luthier data replies`: a teacher of another run behind a prompt, graders, what is kept, and what that trains."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.endpoint import Reply, completion, serving

from luthier.cli.main import main

RECIPE = """
[model]
name = "{model}"
[data]
train = "rows.jsonl"
test_share = 0.0
[optimizer]
learning_rate = 8e-3
[training]
steps = 60
rows_per_step = 8
max_tokens = 256
"""
WRITES = """
[teacher]
run = "first"
prompt = "prompt.txt"
[evaluation.systems.elsewhere]
type = "remote"
base_url = "{url}"
model = "large"
[rollout]
group_size = 4
max_new_tokens = 24
[rollout.rewards.right.grader]
type = "string_check"
input = "{{{{sample.output_text}}}}"
reference = "{{{{item.reference_answer}}}}"
operation = "eq"
"""
ROWS = [{"id": f"r{i}", "prompt": f"Where is {i % 7}?", "completion": f"In {i % 7} Main Street."} for i in range(60)]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    found = tmp_path_factory.mktemp("replies")
    (found / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    (found / "prompt.txt").write_text("Be brief.", encoding="utf-8")
    head = RECIPE.format(model=tiny_model_folder)
    (found / "first.toml").write_text(head, encoding="utf-8")
    assert main(["train", str(found / "first.toml"), "--out", str(found / "first")]) == 0
    text = head + WRITES.format(url="http://127.0.0.1:1/v1")
    (found / "replies.toml").write_text(text, encoding="utf-8")
    return found


def test_the_teacher_writes_behind_its_prompt_and_rows_have_none(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, report = tmp_path / "out", tmp_path / "fates.jsonl"
    made = ["data", "replies", str(folder / "replies.toml"), "--out", str(out), "--model", "teacher"]
    assert main([*made, "--least", "1", "--report", str(report)]) == 0
    kept, fates = lines(out / "replies.jsonl"), lines(report)
    wanted = {row["id"]: row["completion"] for row in ROWS}
    assert kept and len(fates) == 51 and sum(fate["kept"] for fate in fates) == len(kept)
    for row in kept:
        assert [m["role"] for m in row["messages"]] == ["user", "assistant"]
        assert row["messages"][1]["content"] == wanted[row["id"]] and row["extra"]["reward"] == 1
    assert {fate["reason"] for fate in fates} <= {None, "no whole reply is worth as much as --least"} | NOT_WHOLE
    said = capsys.readouterr().out
    assert f"{len(kept)} rows" in said and "mean reward: 1.000 of what is kept" in said
    # the same replies, more of them: nothing is written anew
    before = {path: path.stat().st_mtime_ns for path in (out / "replies").iterdir()}
    assert main([*made, "--by", "passing", "--least", "0"]) == 0
    assert {path: path.stat().st_mtime_ns for path in (out / "replies").iterdir()} == before
    more = lines(out / "replies.jsonl")
    assert len(more) > len(kept) and len({row["id"] for row in more}) == len(more)
    # where nothing is good enough, nothing of the choice before is left
    assert main([*made, "--least", "2"]) != 0 and not (out / "replies.jsonl").exists()
    assert {path: path.stat().st_mtime_ns for path in (out / "replies").iterdir()} == before
    groups = {row["group"] for row in more if "/" in row["id"]}
    assert groups and all(row["id"].startswith(f"{row['group']}/") for row in more if "/" in row["id"])


NOT_WHOLE = {"every reply is cut off, empty, or nothing that the template can render"}


@pytest.mark.parametrize("name", ["elsewhere", "teacher"])
def test_an_endpoint_writes_and_what_is_good_is_kept(name: str, folder: Path, tmp_path: Path) -> None:
    recipe = folder / "elsewhere.toml"

    def answer(body: dict[str, Any], _number: int) -> Reply:
        number = body["messages"][-1]["content"].removeprefix("Where is ").removesuffix("?")
        return completion(f"In {number} Main Street." if int(number) % 2 else "I do not know.")

    with serving(answer) as endpoint:
        out = tmp_path / "out"
        text = (folder / "replies.toml").read_text(encoding="utf-8").replace("http://127.0.0.1:1/v1", endpoint.url)
        without_teacher = text[: text.index("[teacher]")] + text[text.index("[evaluation") :]
        recipe.write_text(without_teacher.replace("systems.elsewhere", f"systems.{name}"), encoding="utf-8")
        made = ["data", "replies", str(recipe), "--out", str(out), "--model", name, "--least", "0.5"]
        assert main([*made, "--set", "rollout.group_size=1"]) == 0
    kept = lines(out / "replies.jsonl")
    assert kept and all(row["messages"][1]["content"].startswith("In ") for row in kept)
    odd = {row["id"] for row in ROWS if int(row["prompt"][-2]) % 2}
    assert {row["id"] for row in kept} <= odd and {row["extra"]["writer"] for row in kept} == {"large"}


def test_without_rewards_every_reply_is_kept_and_worth_nothing_that_is_told(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    made = ["data", "replies", str(folder / "replies.toml"), "--out", str(out), "--model", "teacher"]
    assert main([*made, "--set", "rollout.rewards={}", "--set", "rollout.group_size=1"]) == 0
    kept = lines(out / "replies.jsonl")
    assert kept and all("reward" not in row["extra"] for row in kept)
    assert "mean reward" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "nobody"], "no such table"),
        ([], "changes nothing here without --model teacher"),
        (["--model", "teacher", "--by", "passing"], "say with --least X"),
        (["--model", "teacher", "--margin", "1"], "takes no --margin"),
        (["--model", "teacher", "--by", "judge"], "expected best or passing"),
        (["--model", "teacher", "--set", "rollout.rewards={}"], "nothing says what a reply is worth"),
        (["--model", "teacher", "--set", "teacher.replies=teacher"], "is of trainings; leave it out"),
        (["--model", "teacher", "--set", "evaluation.systems.teacher.type=few_shot"], "give the system another name"),
    ],
)
def test_what_cannot_be_is_refused(
    words: list[str], message: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "replies", str(folder / "replies.toml"), "--out", str(tmp_path / "out"), *words]) != 0
    assert message in capsys.readouterr().err


def test_a_model_that_teaches_itself_is_not_the_run_that_training_goes_on_from(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = folder / "itself.toml"
    text = (folder / "replies.toml").read_text(encoding="utf-8")
    recipe.write_text(text.replace('run = "first"\n', "") + '[adapter]\nstart_from = "first"\n', encoding="utf-8")
    assert main(["data", "replies", str(recipe), "--out", str(tmp_path / "out"), "--model", "teacher"]) != 0
    assert f"write run = '{folder / 'first'}' in [teacher]" in capsys.readouterr().err
