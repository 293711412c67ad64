"""`luthier check`: what it prints, what it refuses, and that looking at data files needs no torch."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.cli.main import main
from luthier.cli.row_checks import MAX_KINDS, Broken
from luthier.errors import DataError

Write = Callable[[str, list[dict[str, Any]]], Path]


def chat(user: str, reply: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": reply}]}


ROWS = [
    chat(f"What is the {word} of the {thing} made in {year}?", f"It is {year % 7}.")
    for word, thing, year in zip(
        ["weight", "color", "owner", "price", "sound", "taste", "shape", "origin", "age", "name", "size", "use"],
        ["bell", "lute", "drum", "harp", "horn", "flute", "organ", "viola", "cello", "gong", "lyre", "zither"],
        range(1701, 1713),
        strict=True,
    )
]
TOOL = {"type": "function", "function": {"name": "tune", "description": "Tunes a string.", "parameters": {}}}


@pytest.fixture
def recipe(tmp_path: Path, write_jsonl: Write, tiny_model_folder: Path) -> Path:
    write_jsonl("train.jsonl", ROWS)
    path = tmp_path / "recipe.toml"
    path.write_text(f'[model]\nname = "{tiny_model_folder}"\n[data]\ntrain = "train.jsonl"\n', encoding="utf-8")
    return path


def test_data_files_are_read_checked_and_counted(write_jsonl: Write, capsys: pytest.CaptureFixture[str]) -> None:
    train, test = write_jsonl("train.jsonl", ROWS[:10]), write_jsonl("test.jsonl", ROWS[10:])
    assert main(["check", str(train), "--test", str(test)]) == 0
    out = capsys.readouterr().out
    assert f"{train}: read as messages" in out
    assert "rows: 10 train, 2 test" in out and "rows per second" in out
    assert "data checks:" in out


def test_an_error_in_the_data_is_exit_code_2(write_jsonl: Write, capsys: pytest.CaptureFixture[str]) -> None:
    train, test = write_jsonl("train.jsonl", ROWS), write_jsonl("test.jsonl", ROWS[3:4])
    assert main(["check", str(train), "--test", str(test)]) == 2
    assert "leakage" in capsys.readouterr().out


def test_a_row_without_an_assistant_turn_is_refused(
    tmp_path: Path, write_jsonl: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [*ROWS, {"messages": [{"role": "user", "content": "Anybody?"}]}]
    assert main(["check", str(write_jsonl("train.jsonl", rows))]) == 2
    assert _error(capsys, "roles") == ["where: " + str(tmp_path / "train.jsonl") + ", line 13"]


def _error(capsys: pytest.CaptureFixture[str], check: str) -> list[str]:
    """Where the errors of a check were found, as printed."""
    lines = capsys.readouterr().out.splitlines()
    found = [i for i, line in enumerate(lines) if line.startswith(f"error    {check}: ")]
    return [lines[i + 1].strip() for i in found]


BROKEN = [
    '{"messages": [}',
    '{"messages": "x"}',
    '{"messages": [{"role": "bot", "content": "a"}]}',
    '{"messages": [[}',
]


def test_every_row_that_cannot_be_read_is_counted_and_the_rest_is_checked(
    tmp_path: Path, write_jsonl: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    train = write_jsonl("train.jsonl", [*ROWS, ROWS[0]])
    lines = train.read_text(encoding="utf-8").splitlines()
    for place, line in zip((2, 4, 6, 8), BROKEN, strict=True):
        lines.insert(place, line)  # lines 3, 5, 7 and 9
    train.write_text("\n".join(lines), encoding="utf-8")

    assert main(["check", str(train)]) == 2
    out = capsys.readouterr().out
    assert "rows: 13 train" in out
    assert "schema: 2 rows cannot be read; the first: broken JSON: Expecting value at character 15" in out
    assert f"where: {train}, lines 3, 9" in out
    assert "schema: 1 row cannot be read: 'messages' is a string" in out and f"{train}, line 5" in out
    assert "unknown role 'bot'" in out and f"{train}, line 7" in out
    assert "exact_duplicates" in out, "the rows that can be read are checked"

    assert main(["check", str(train), "--json"]) == 2
    values = json.loads(capsys.readouterr().out)
    assert (values["passed"], values["error"], values["rows"]) == (False, "", {"train": 13})
    schema = [finding for finding in values["findings"] if finding["check"] == "schema"]
    assert [finding["count"] for finding in schema] == [2, 1, 1]
    assert [[place["line"] for place in finding["where"]] for finding in schema] == [[3, 9], [5], [7]]


def test_the_bad_rows_of_a_recipes_files_are_all_counted_too(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (tmp_path / "train.jsonl").open("a", encoding="utf-8") as file:
        file.write("\n".join(BROKEN))
    assert main(["check", str(recipe)]) == 2
    out = capsys.readouterr().out
    assert out.count("error    schema: ") == 3 and "the gates were left out" in out and "rows: 12 train" in out


def test_many_kinds_of_bad_rows_are_told_apart_up_to_a_limit() -> None:
    broken = Broken()
    for number in range(500):
        broken.add(DataError(f"the role {'x' * number} at character {number}", "a.jsonl", number + 1))
    findings = broken.findings()
    assert len(findings) == MAX_KINDS + 1 and sum(finding.count for finding in findings) == 500
    assert findings[-1].message == f"{500 - MAX_KINDS} rows cannot be read: something else"
    assert [place.line for place in findings[-1].where] == list(range(MAX_KINDS + 1, MAX_KINDS + 21))


def test_json_is_printed_even_where_nothing_can_be_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tmp_path / "absent.jsonl"), "--json"]) == 2
    captured = capsys.readouterr()
    values = json.loads(captured.out)
    assert not values["passed"] and "no such file" in values["error"] and "no such file" in captured.err


def _refusal(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one message on stderr of a command that must end with 2."""
    assert main(args) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and "Traceback" not in captured.err
    return captured.err


def test_bad_input_gives_one_clear_message(
    tmp_path: Path, write_jsonl: Write, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("", encoding="utf-8")
    assert "empty.jsonl" in _refusal(["check", str(empty)], capsys)
    assert "no such file" in _refusal(["check", str(tmp_path / "absent.jsonl")], capsys)

    broken = write_jsonl("broken.jsonl", ROWS)
    lines = broken.read_text(encoding="utf-8").splitlines()
    lines[6] = '{"messages": [{"role": "user",'
    broken.write_text("\n".join(lines), encoding="utf-8")
    assert main(["check", str(broken)]) == 2
    assert _error(capsys, "schema") == [f"where: {broken}, line 7"]

    assert "did you mean 'rank'" in _refusal(["check", str(recipe), "--set", "adapter.rnak=3"], capsys)
    assert "no-such-model" in _refusal(["check", str(recipe), "--set", "model.name=no-such-model"], capsys)
    assert "no-such-model" in _refusal(["check", str(write_jsonl("t.jsonl", ROWS)), "--model", "no-such-model"], capsys)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (["--model", "x"], "--set model.name=x"),
        (["--test", "x.jsonl"], "--set data.test=x.jsonl"),
        (["--format", "text"], "--set data.format=text"),
        (["other.jsonl"], "expected it alone"),
    ],
)
def test_options_that_a_recipe_would_ignore_are_refused(
    recipe: Path, extra: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in _refusal(["check", str(recipe), *extra], capsys)


def test_set_without_a_recipe_is_refused(write_jsonl: Write, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--set changes a recipe" in _refusal(["check", str(write_jsonl("t.jsonl", ROWS)), "--set", "seed=1"], capsys)


def test_a_recipe_runs_checks_split_and_gates(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(recipe)]) == 0
    out = capsys.readouterr().out
    assert "validation" in out and "pass  serving_prompt" in out
    assert "train.jsonl: read as messages" in out
    assert "13 gates passed, 0 refused" in out


def test_a_gate_that_refuses_is_exit_code_2_with_advice(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(recipe), "--set", "training.max_tokens=20"]) == 2
    out = capsys.readouterr().out
    assert "FAIL  truncation" in out and "training.max_tokens" in out


def test_tools_that_the_model_cannot_see_are_refused_with_the_template_that_shows_them(
    write_jsonl: Write, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = write_jsonl("tools.jsonl", [{**row, "tools": [TOOL]} for row in ROWS])
    assert main(["check", str(train), "--model", str(tiny_model_folder)]) == 2
    out = capsys.readouterr().out
    assert "FAIL  nothing_dropped" in out and "tools[0].function.name" in out and "chatml_tools" in out


def test_show_prints_rows_spread_over_the_file_with_marks(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(recipe), "--show", "3"]) == 0
    out = capsys.readouterr().out
    headings = [line for line in out.splitlines() if line.startswith("row ")]
    assert len(headings) == 3 and all("trained" in line for line in headings)
    assert out.count("⟦It is ") == 3 and out.count("<|im_end|>⟧") == 3
    assert "\x1b[" not in out, "colors are for terminals"


def test_json_is_one_object_with_everything(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(recipe), "--json", "--show", "1"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["passed"] is True and sum(values["rows"].values()) == len(ROWS)
    assert {gate["gate"] for gate in values["gates"]} >= {"serving_prompt", "nothing_dropped"}
    assert len(values["shown"]) == 1 and isinstance(values["findings"], list)


@pytest.mark.parametrize("text", ["0", "-1", "x"])
def test_show_wants_a_number_of_rows(text: str, recipe: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["check", str(recipe), "--show", text])
    assert caught.value.code == 2


def test_data_files_are_checked_without_torch_and_without_transformers(write_jsonl: Write) -> None:
    train = write_jsonl("train.jsonl", ROWS)
    program = (
        "import sys\nfrom luthier.cli.main import main\n"
        f"code = main(['check', {str(train)!r}])\n"
        "print(code, sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"


@pytest.mark.slow
def test_rows_stream_without_being_held(tmp_path: Path) -> None:
    """Four times the rows may not take much more memory: the checks keep bytes a row, the reader nothing."""
    program = (
        "import resource, sys\nfrom luthier.cli.main import main\n"
        "code = main(['check', sys.argv[1]])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peaks = []
    for count in (2_000, 8_000):
        path = tmp_path / f"{count}.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for i in range(count):
                file.write(json.dumps(chat(f"Question {i}: " + f"{i * 7919} " * 200, f"Answer {i}.")) + "\n")
        done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=False)
        assert f"rows: {count:,} train" in done.stdout, done.stderr
        peaks.append(int(done.stdout.splitlines()[-1]) * 1024)
        size = path.stat().st_size
    assert peaks[1] - peaks[0] < size * 0.75, f"held rows: peaks {peaks} for a file of {size} bytes"
