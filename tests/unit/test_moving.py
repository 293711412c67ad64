"""`luthier import openai`: what a file is, what becomes of it, and what is refused with its place."""

import base64
import json
import os
import shlex
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.openai_export import (
    EVAL,
    JOB,
    TRAIN,
    TUNED,
    VALID,
    chat,
    chats,
    completion,
    evaluation,
    job,
    page,
    result_csv,
    stored_messages,
    write_export,
    write_lines,
)

from luthier.cli.main import main
from luthier.data.formats.base import read_examples
from luthier.errors import DataError, StorageError
from luthier.examples import Conversation
from luthier.moving.answers import collect, newest, prompt_key, read_answers
from luthier.moving.exports import curve_of, files_of, read_export
from luthier.moving.graders import read_graders
from luthier.moving.make import make
from luthier.recipe import load

Write = Callable[..., Path]


def put(path: Path, values: Any) -> Path:
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def import_openai(*words: object) -> int:
    return main(["import", "openai", *map(str, words)])


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("moving")
    assert import_openai(write_export(folder / "exported"), "-o", folder / "moved") == 0
    return folder / "moved"


def test_a_job_becomes_a_recipe_with_its_hyperparameters(moved: Path) -> None:
    recipe = load(moved / JOB / "recipe.toml")
    assert (recipe.training.epochs, recipe.training.rows_per_step, recipe.training.patience) == (2.0, 4, None)
    assert recipe.optimizer.model_dump()["learning_rate"] == pytest.approx(5e-4 * 1.8)
    assert recipe.seed == 683058546 and recipe.data.test == str(moved / JOB / "test.jsonl")
    assert recipe.data.validation is None, "the best checkpoint is never chosen on the rows that are compared on"
    assert set(recipe.evaluation.systems) >= {"zero_shot", "fine_tuned"}


def test_the_summary_tells_all(moved: Path) -> None:
    text = (moved / "summary.md").read_text("utf-8")
    for part in (
        "2 fine-tuning jobs, 2 training files, 1 result tables, 1 Evals, 1 runs of Evals, 9 output items, 18 stored",
        "Known and not needed: 2 `fine_tuning.job.event`",
        "our own 0.0005, times 1.8",
        "answered 26 of 30 rows",
        "1 recorded answers are of `gpt-4o`",
        "Kept in `job.json` and read by nothing: `object`, `created_at`",
        "status is cancelled",
    ):
        assert part in text, part


def test_rows_answers_and_graders_are_there(moved: Path) -> None:
    folder = moved / JOB
    answers = read_answers(folder / "answers.jsonl")
    rows = [one for one in read_examples(folder / "test.jsonl") if isinstance(one, Conversation)]
    by_prompt, _, _ = newest(answers)
    assert [by_prompt[prompt_key(row.prompt)].model for row in rows] == [TUNED] * 26
    assert len(list(read_examples(folder / "unanswered.jsonl"))) == 4
    assert [grader.name for grader in read_graders(folder / "graders.json")] == ["Right label", "Near", "Judge"]
    assert (folder / "old_curve.csv").read_text() == result_csv()
    assert json.loads((moved / f"evals/{EVAL}.json").read_text()) == evaluation()
    assert not (moved / "ftjob-cancelled/recipe.toml").exists()


@pytest.mark.parametrize("dialect", ["openai", "azure"])
@pytest.mark.parametrize("encoded", [False, True])
def test_result_tables_of_both_dialects_plain_or_base64(dialect: str, encoded: bool, tmp_path: Path) -> None:
    text = result_csv(20)
    if dialect == "azure":
        text = (
            "step,train_loss,train_mean_token_accuracy,valid_loss,validation_mean_token_accuracy,full_valid_loss,"
            "full_valid_mean_token_accuracy\n1,0.5,0.9,,,,\n2,0.4,0.9,0.6,0.8,0.61,0.81\n"
        )
    path = tmp_path / "result.csv"
    path.write_bytes(base64.encodebytes(text.encode()) if encoded else text.encode())
    (table,) = read_export([path]).curves.values()
    assert table.decode() == text
    last = curve_of(table, path)[-1]
    wanted = {"loss": 0.4, "validation_loss": 0.6, "full_validation_loss": 0.61} if dialect == "azure" else {"step": 20}
    assert {name: last[name] for name in wanted} == wanted
    assert "validation_loss" not in curve_of(table, path)[0]


def test_preferences_keep_their_beta(tmp_path: Path) -> None:
    rows = [
        {
            "input": {"messages": one["messages"][:-1], "tools": [], "parallel_tool_calls": True},
            "preferred_output": [one["messages"][-1]],
            "non_preferred_output": [{"role": "assistant", "content": "fog"}],
        }
        for one in chats(60, 3)
    ]
    write_lines(tmp_path / f"{TRAIN}.jsonl", rows)
    settings = {"n_epochs": "auto", "batch_size": 8, "learning_rate_multiplier": "auto", "beta": 0.25}
    method = {"type": "dpo", "dpo": {"hyperparameters": settings}}
    given = job(validation_file=None, method=method, hyperparameters={"n_epochs": "auto"}, result_files=[])
    put(tmp_path / "job.json", given)
    assert import_openai(tmp_path, "-o", tmp_path / "out") == 0
    recipe = load(tmp_path / "out" / JOB / "recipe.toml")
    assert recipe.objective.model_dump()["beta"] == 0.25 and recipe.training.patience == 3
    assert recipe.optimizer.model_dump()["learning_rate"] == pytest.approx(5e-5)


def test_graded_training_keeps_its_grader_or_says_why_there_is_no_recipe(tmp_path: Path) -> None:
    rows = [{"messages": one["messages"][:-1], "correct": one["messages"][-1]["content"]} for one in chats(20, 4)]
    write_lines(tmp_path / f"{TRAIN}.jsonl", rows)
    grader = {key: value for key, value in evaluation()["testing_criteria"][0].items() if key != "id"}
    settings = {"eval_samples": 2, "compute_multiplier": 0.5, "learning_rate_multiplier": 2, "reasoning_effort": "low"}
    own = {"grader": {**grader, "extra": None}, "hyperparameters": {**settings, "eval_interval": "auto"}}
    method = {"type": "reinforcement", "reinforcement": own}
    put(tmp_path / "job.json", job(validation_file=None, method=method, result_files=[]))
    assert import_openai(tmp_path, "-o", tmp_path / "out") == 0
    recipe = load(tmp_path / "out" / JOB / "recipe.toml")
    assert recipe.rollout is not None and recipe.rollout.validation_prompts == 2
    assert recipe.rollout.rewards["grader"].grader.model_dump()["name"] == grader["name"]
    rate = recipe.optimizer.model_dump()["learning_rate"]
    text = (tmp_path / "out/summary.md").read_text()
    for part in (
        f"| learning_rate_multiplier = 2 | `optimizer.learning_rate` = {rate:g}: our own {rate / 2:g}, times 2 |",
        "| compute_multiplier = 0.5 | `rollout.group_size` = 4 replies to each prompt |",
        "| eval_samples = 2 | `rollout.validation_prompts` = 2 |",
        "| eval_interval = auto | `training.validate_every`: by our own rules |",
        "| reasoning_effort = low | no equivalent",
    ):
        assert part in text, part
    assert "beta" not in text

    shutil.rmtree(tmp_path / "out")
    asks = {"type": "score_model", "name": "s", "model": "gpt-4o", "input": [{"role": "user", "content": "?"}]}
    put(
        tmp_path / "job.json",
        job(validation_file=None, result_files=[], method={**method, "reinforcement": {"grader": asks}}),
    )
    assert import_openai(tmp_path, "-o", tmp_path / "asked") == 0
    assert {path.name for path in (tmp_path / "asked" / JOB).iterdir()} == {"train.jsonl", "graders.json", "job.json"}
    assert "there is no model to grade with here" in (tmp_path / "asked/summary.md").read_text()


def test_a_job_that_went_on_starts_where_the_earlier_run_ended(tmp_path: Path) -> None:
    write_lines(tmp_path / f"{TRAIN}.jsonl", chats(60, 5))
    write_lines(tmp_path / "file-More.jsonl", chats(60, 6))
    first = job(validation_file=None, result_files=[])
    second = job(id="ftjob-2", model=TUNED, training_file="file-More", validation_file=None, result_files=[])
    put(tmp_path / "jobs.json", page([first, {**second, "fine_tuned_model": "ft:x:acme::2"}]))
    assert import_openai(tmp_path, "-o", tmp_path / "out") == 0
    tree = tomllib.loads((tmp_path / "out/ftjob-2/recipe.toml").read_text())
    assert tree["adapter"]["start_from"] == f"../{JOB}/run"


def test_an_integration_is_taken_as_the_service_writes_it(tmp_path: Path) -> None:
    write_lines(tmp_path / f"{TRAIN}.jsonl", chats(60, 16))
    asked = {"project": "weather", "name": None, "entity": None, "tags": ["a"], "run_id": "ftjob-x"}
    integrations = [{"type": "wandb", "wandb": asked}]
    put(tmp_path / "job.json", {**job(validation_file=None, result_files=[]), "integrations": integrations})
    assert import_openai(tmp_path, "-o", tmp_path / "out") == 0
    tree = tomllib.loads((tmp_path / "out" / JOB / "recipe.toml").read_text())
    assert tree["tracking"] == {"wandb": {"type": "wandb", "project": "weather", "tags": ["a"]}}


def test_one_answer_is_too_few_and_the_summary_says_so(tmp_path: Path) -> None:
    held = chats(20, 17)
    write_lines(tmp_path / f"{TRAIN}.jsonl", chats(60, 18))
    write_lines(tmp_path / f"{VALID}.jsonl", held)
    write_lines(tmp_path / "answers.jsonl", [{"messages": held[0]["messages"][:-1], "output": "sun"}])
    put(tmp_path / "job.json", job(result_files=[]))
    assert import_openai(tmp_path, "-o", tmp_path / "out") == 0
    text = (tmp_path / "out/summary.md").read_text()
    assert "answered one row of the validation file, which is too few" in text and "luthier parity" not in text
    assert len(list(read_examples(tmp_path / "out" / JOB / "test.jsonl"))) == 20


def test_the_commands_can_be_given_to_a_shell_and_the_folder_is_as_open_as_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_lines(tmp_path / "more.jsonl", chats(60, 19))
    out = tmp_path / "moved here"
    before = os.umask(0o077)
    try:
        assert import_openai(tmp_path / "more.jsonl", "-o", out) == 0
    finally:
        os.umask(before)
    (line,) = [one for one in capsys.readouterr().out.splitlines() if "luthier run" in one]
    assert shlex.split(line) == ["luthier", "run", f"{out}/more/recipe.toml", "--out", f"{out}/more/run"]
    assert out.stat().st_mode & 0o077 == 0


def test_rows_that_no_job_names_get_a_recipe_by_our_rules(tmp_path: Path) -> None:
    write_lines(tmp_path / "more.jsonl", chats(60, 7))
    assert import_openai(tmp_path / "more.jsonl", "-o", tmp_path / "out") == 0
    assert load(tmp_path / "out/more/recipe.toml").training.patience == 3


def test_an_answer_of_ones_own_is_an_answer_too(tmp_path: Path) -> None:
    rows = chats(30, 8)
    lines = [{"messages": row["messages"][:-1], "output": "sun", "seconds": 0.5, "usd": 1e-4} for row in rows[:20]]
    write_lines(tmp_path / "answers.jsonl", [*lines, {"id": "x", "answer": {"role": "assistant", "content": "rain"}}])
    answers = read_answers(tmp_path / "answers.jsonl")
    assert [one.reply.content for one in answers] == ["sun"] * 20 + ["rain"] and answers[-1].id == "x"
    assert answers[0].seconds == 0.5 and answers[0].model is None


def test_an_empty_question_was_asked_and_all_answers_that_are_none_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = {"messages": [{"role": "user", "content": ""}], "output": ""}
    write_lines(tmp_path / "answers.jsonl", [line])
    (one,) = read_answers(tmp_path / "answers.jsonl")
    assert one.prompt is not None and one.prompt[0].content == one.reply.content == ""
    write_lines(tmp_path / "answers.jsonl", [{**line, "score": 1}, line, {**line, "usd": -1}])
    assert import_openai(tmp_path, "-o", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "2 parts of the export" in said and "answers.jsonl, line 1" in said and "answers.jsonl, line 3" in said


def test_completions_without_what_was_asked_are_told_of(tmp_path: Path) -> None:
    put(tmp_path / "list.json", page([completion(1, "sun"), completion(2, "rain")]))
    write_lines(tmp_path / "messages.jsonl", stored_messages(2, chats(1, 9)[0]))
    answers, said = collect(read_export(sorted(tmp_path.iterdir())))
    assert [one.reply.content for one in answers] == ["rain"] and answers[0].prompt_tokens == 31
    assert len(said) == 1 and "1 stored completions are not used" in said[0] and "list.json" in said[0]


def test_the_newest_of_several_answers_counts(tmp_path: Path) -> None:
    asked = chats(1, 10)[0]["messages"][:-1]
    both = [{**completion(n, text), "messages": asked} for n, text in ((2, "new"), (1, "old"))]
    write_lines(tmp_path / "stored.jsonl", both)
    by_prompt, _, older = newest(read_answers(tmp_path / "stored.jsonl"))
    assert [one.reply.content for one in by_prompt.values()] == ["new"] and older == 1


@pytest.mark.parametrize(
    ("name", "text", "line", "why"),
    [
        ("a.jsonl", '{"messages": []}\n{"prompt": 1, "reply": 2}\n', 2, "fields are 'prompt', 'reply'"),
        ("a.jsonl", json.dumps(chat("a", "b")) + "\n{broken\n", 2, "neither JSON"),
        (
            "a.jsonl",
            json.dumps(chat("a", "b")) + '\n{"prompt": "a", "completion": "b", "object": 1}\n',
            2,
            "in the format",
        ),
        ("a.jsonl", json.dumps({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}), 1, "'image_url'"),
        ("a.json", '{"object": "vector_store", "id": "vs_1"}', 1, "'vector_store', which is nothing that OpenAI"),
        ("a.json", '{"object": "list", "data": 3}', 1, "'data' is a number"),
        ("a.json", '{"object": "fine_tuning.job"}', 1, "'id' is null"),
        ("a.json", '{"object": "fine_tuning.job", "id": "x", "method": "dpo"}', 1, "'method' is a string"),
        (
            "a.json",
            '{"object": "fine_tuning.job", "id": "x", "method": {"type": "magic"}}',
            1,
            "'method.type' is 'magic'",
        ),
        (
            "a.json",
            '{"object": "fine_tuning.job", "id": "x", "method": {"type": "reinforcement"}}',
            1,
            "'grader' is null",
        ),
        (
            "a.json",
            '{"object": "fine_tuning.job", "id": "x", "hyperparameters": {"n_epochs": "many"}}',
            1,
            "'n_epochs' is 'many'",
        ),
        (
            "a.json",
            '{"object": "fine_tuning.job", "id": "x", "integrations": [{"type": "wandb"}]}',
            1,
            "'integrations'",
        ),
        ("a.csv", "step,loss\n1,2\n", 1, "columns step,loss"),
        ("a.csv", result_csv(3).replace("0.75", "much"), 2, "no number"),
        ("a.csv", result_csv(1).replace("\n1,", "\n,"), 2, "which step"),
        ("notes.md", "# Notes\nOur export.\n", 1, "neither JSON that is understood nor a result table"),
        ("a.jsonl", "\n", 1, "holds nothing"),
        ("a.jsonl", '{"id": "1", "output": "x", "score": 2}', 1, "unknown field 'score'"),
        ("a.jsonl", '{"id": "1", "output": "x", "seconds": -1}', 1, "'seconds' is a number"),
    ],
)
def test_what_is_not_understood_is_refused_with_file_and_line(
    name: str, text: str, line: int, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert import_openai(tmp_path / name, "-o", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert f"{name}, line {line}: " in said and why in said, said
    assert not (tmp_path / "out").exists()


def test_all_problems_are_told_at_once_and_a_file_can_be_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_lines(tmp_path / "rows.jsonl", chats(60, 11))
    (tmp_path / "notes.md").write_text("Our notes")
    (tmp_path / ".hidden").write_text("x")
    write_lines(tmp_path / "odd.jsonl", [{"a": 1}, {"b": 2}])
    assert import_openai(tmp_path, "-o", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "3 parts of the export" in said and "odd.jsonl, line 2" in said and "notes.md" in said
    left = [part for name in ("notes.md", "odd.jsonl") for part in ("--without", tmp_path / name)]
    assert import_openai(tmp_path, "-o", tmp_path / "out", *left) == 0
    text = (tmp_path / "out/summary.md").read_text()
    assert "odd.jsonl" in text and ".hidden" in text
    with pytest.raises(DataError, match="--without names a file"):
        files_of([tmp_path], [tmp_path / "none.txt"])


def test_a_file_that_no_name_tells_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_lines(tmp_path / "rows.jsonl", chats(60, 12))
    write_lines(tmp_path / "held.jsonl", chats(20, 13))
    put(tmp_path / "job.json", job(result_files=["file-Gone"]))
    assert import_openai(tmp_path, "-o", tmp_path / "out") == 2
    assert f"--file {TRAIN}=PATH" in capsys.readouterr().err
    wrong = ["--file", f"file-Typo={tmp_path / 'rows.jsonl'}"]
    assert import_openai(tmp_path, "-o", tmp_path / "out", *wrong) == 2
    assert "--file file-Typo: no job" in capsys.readouterr().err
    named = ["--file", f"{TRAIN}={tmp_path / 'rows.jsonl'}", "--file", f"{VALID}={tmp_path / 'held.jsonl'}"]
    assert import_openai(tmp_path, "-o", tmp_path / "out", *named) == 0
    assert "(file-Gone) is not among the files" in (tmp_path / "out/summary.md").read_text()


def test_the_same_page_twice_is_fine_and_two_truths_are_not(tmp_path: Path) -> None:
    put(tmp_path / "a.json", job())
    put(tmp_path / "b.json", page([job()]))
    assert list(read_export(sorted(tmp_path.iterdir())).jobs) == [JOB]
    put(tmp_path / "c.json", job(seed=1))
    with pytest.raises(DataError, match="there twice, and not the same"):
        read_export(sorted(tmp_path.iterdir()))


def test_a_folder_with_changes_is_not_written_over(tmp_path: Path) -> None:
    write_lines(tmp_path / "rows.jsonl", chats(60, 14))
    export = read_export([tmp_path / "rows.jsonl"])
    (tmp_path / "out").mkdir()
    make(export, [], tmp_path / "out", "smollm2-135m-instruct", {})
    with pytest.raises(StorageError, match="may hold your changes"):
        make(export, [], tmp_path / "out", "smollm2-135m-instruct", {})


def test_a_job_that_cannot_be_made_leaves_nothing_behind(tmp_path: Path) -> None:
    write_lines(tmp_path / f"{TRAIN}.jsonl", chats(60, 15))
    put(
        tmp_path / "job.json",
        job(validation_file=None, result_files=[], hyperparameters={"batch_size": -3}, method=None),
    )
    before = set(tmp_path.iterdir())
    assert import_openai(tmp_path, "-o", tmp_path / "out") == 2
    assert set(tmp_path.iterdir()) == before
