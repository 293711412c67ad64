"""`luthier init`: every recipe that it writes loads, fits the data it was written for, and overwrites nothing."""

import json
import random
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from luthier.cli.main import main
from luthier.data.profile import Lengths, estimate_tokens, profile
from luthier.draft import LARGEST_CONTEXT, OFFER, parameters_of
from luthier.recipe import Recipe, dump_part, load

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _chat(question: str, answer: str, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, **fields}


def _texts(count: int) -> list[dict[str, Any]]:
    return [_chat(f"Tell me about thing {i}.", f"Thing {i} is " + "very good " * 10) for i in range(count)]


def _json_rows(count: int) -> list[dict[str, Any]]:
    return [_chat(f"Count {i}", json.dumps({"n": i})) for i in range(count)]


def _label_rows(count: int, labels: int = 3) -> list[dict[str, Any]]:
    return [{"text": f"text number {i}", "label": f"label_{i % labels}"} for i in range(count)]


def _tool_rows(count: int) -> list[dict[str, Any]]:
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
    rows = []
    for i in range(count):
        row = _chat(f"Add 1 to {i}", "", tools=tools)
        row["messages"][1]["tool_calls"] = [{"function": {"name": "add", "arguments": {"a": i}}}]
        rows.append(row if i % 5 else _chat("Hello", "Hi", tools=tools))
    return rows


def _pairs(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"Question {i}?", "chosen": "A good answer.", "rejected": "No."} for i in range(count)]


def _init(folder: Path, rows: Iterable[Mapping[str, Any]], *options: str) -> Recipe:
    train = _write(folder / "train.jsonl", rows)
    output = folder / "recipe.toml"
    assert main(["init", str(train), "-o", str(output), *options]) == 0
    return load(output)


def _systems(recipe: Recipe) -> dict[str, Any]:
    return {name: system.model_dump() for name, system in recipe.evaluation.systems.items()}


def test_json_rows_with_a_schema_beside_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    recipe = _init(tmp_path, _json_rows(300))
    assert (recipe.data.train, recipe.data.format) == (str(tmp_path / "train.jsonl"), "messages")
    assert (recipe.data.test, recipe.data.validation, recipe.data.duplicates) == (None, None, "keep")
    assert (recipe.evaluation.task, recipe.evaluation.primary_metric) == ("json", "field_f1")
    assert recipe.evaluation.metrics == ("field_f1", "exact_match", "json_valid", "schema_valid")
    assert recipe.evaluation.json_schema == str(tmp_path / "schema.json")
    assert (recipe.model.template, recipe.data.instruction) == ("model", None)
    assert recipe.dump()["objective"]["type"] == "sft"
    assert recipe.dump()["optimizer"]["learning_rate"] == 5e-4
    said = capsys.readouterr().out
    assert "300 rows in the format messages" in said
    assert "json: answers are JSON objects" in said
    assert f"luthier run {tmp_path / 'recipe.toml'}" in said


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ("{", "not a readable JSON file"),
        (json.dumps({"type": "array"}), "no schema of an object"),
        (json.dumps({**SCHEMA, "required": ["missing"]}), "only 0 of the first 30 replies satisfy it"),
        (json.dumps({**SCHEMA, "properties": {"n": {"$ref": "http://localhost:1/x.json"}}}), "is left out"),
        (json.dumps({"type": "no such type"}), "not a JSON Schema"),
    ],
)
def test_a_schema_that_does_not_fit_is_left_out_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], schema: str, said: str
) -> None:
    (tmp_path / "schema.json").write_text(schema)
    recipe = _init(tmp_path, _json_rows(30))
    assert recipe.evaluation.json_schema is None
    assert "schema_valid" not in recipe.evaluation.metrics
    assert said in capsys.readouterr().out


def test_a_schema_is_judged_by_all_replies_and_a_few_may_be_broken(tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    recipe = _init(tmp_path, [*_json_rows(60), _chat("Count", "{oops"), _chat("Count", "[" * 100_000)])
    assert recipe.evaluation.json_schema == str(tmp_path / "schema.json")


def test_few_labels_are_named_in_the_instruction(tmp_path: Path) -> None:
    recipe = _init(tmp_path, _label_rows(90))
    assert (recipe.evaluation.task, recipe.evaluation.metrics) == ("label", ("accuracy", "macro_f1"))
    assert recipe.data.instruction is not None
    assert recipe.data.instruction.endswith(": label_0, label_1, label_2")
    assert _systems(recipe)["zero_shot"]["variants"] == ()


def test_many_labels_are_left_to_the_baseline(tmp_path: Path) -> None:
    recipe = _init(tmp_path, _label_rows(900, labels=300))
    assert recipe.data.instruction == "Classify the text. Answer with its label and nothing else."
    (variant,) = _systems(recipe)["zero_shot"]["variants"]
    assert "label_299" in variant


def test_rows_with_tools_get_a_template_that_keeps_them(tmp_path: Path) -> None:
    recipe = _init(tmp_path, _tool_rows(50))
    assert recipe.model.template == "chatml_tools"
    assert (recipe.evaluation.task, recipe.evaluation.primary_metric) == ("tool_calls", "tool_calls")
    other = _init(tmp_path, _tool_rows(50), "--force", "--model", "qwen2.5-coder-0.5b-instruct")
    assert (other.model.name, other.model.template) == ("qwen2.5-coder-0.5b-instruct", "model")


def test_pairs_get_dpo_and_its_learning_rate(tmp_path: Path) -> None:
    recipe = _init(tmp_path, _pairs(200))
    dumped = recipe.dump()
    assert (dumped["objective"]["type"], recipe.data.format) == ("dpo", "preference")
    assert (recipe.evaluation.task, recipe.evaluation.metrics) == ("pairs", ("pair_accuracy", "perplexity"))
    assert set(recipe.evaluation.systems) == {"zero_shot", "fine_tuned"}
    assert 5e-6 <= dumped["optimizer"]["learning_rate"] <= 5e-5
    assert recipe.training.epochs <= 3
    large = _init(tmp_path, _pairs(200), "--force", "--model", "someone/Big-7B-chat").dump()
    assert large["optimizer"]["learning_rate"] == 1e-5


def test_raw_text_is_measured_by_bits_per_byte(tmp_path: Path) -> None:
    recipe = _init(tmp_path, [{"text": f"Paragraph {i}. " * 20} for i in range(60)])
    assert (recipe.evaluation.task, recipe.evaluation.primary_metric) == ("language", "bits_per_byte")
    assert recipe.evaluation.metrics == ("bits_per_byte", "perplexity", "token_accuracy")
    assert set(recipe.evaluation.systems) == {"zero_shot", "fine_tuned"}


def test_of_many_long_texts_only_some_are_scored(tmp_path: Path) -> None:
    rows = [{"text": f"Paragraph {i}. " + "word " * 2000} for i in range(30)]
    test = _write(tmp_path / "test.jsonl", [{"text": f"Held out {i}. " + "word " * 2000} for i in range(300)])
    assert _init(tmp_path, rows, "--test", str(test)).evaluation.max_rows == 200
    assert _init(tmp_path, rows, "--force").evaluation.max_rows is None
    fewer = _write(tmp_path / "test.jsonl", [{"text": f"Held out {i}. " + "word " * 2500} for i in range(200)])
    assert _init(tmp_path, rows, "--force", "--test", str(fewer)).evaluation.max_rows is None, "they are no more"


def test_a_first_look_takes_a_part_of_the_steps(tmp_path: Path) -> None:
    _init(tmp_path, [{"text": f"Paragraph {i}. " + "word " * 4000} for i in range(300)])
    note = (tmp_path / "recipe.toml").read_text(encoding="utf-8")
    (steps,), (few,) = re.findall(r"About ([\d,]+) steps", note), re.findall(r"training\.steps=(\d+)", note)
    assert 0 < int(few) < int(steps.replace(",", "")) / 5


def test_paths_are_relative_to_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "recipes").mkdir()
    train = _write(tmp_path / "data" / "train.jsonl", _texts(60))
    files = {name: _write(tmp_path / "data" / f"{name}.jsonl", _texts(20)) for name in ("test", "validation")}
    output = tmp_path / "recipes" / "r.toml"
    options = [option for name, path in files.items() for option in (f"--{name}", str(path))]
    assert main(["init", str(train), *options, "-o", str(output)]) == 0
    tree = tomllib.loads(output.read_text(encoding="utf-8"))
    assert tree["data"]["train"] == "../data/train.jsonl"
    assert "test_share" not in tree["data"]
    assert "validation_share" not in tree["data"]
    recipe = load(output)
    for name, given_path in {"train": train, **files}.items():
        assert Path(recipe.data.model_dump()[name]).resolve() == given_path


def test_repeats_are_dropped_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = _init(tmp_path, [*_texts(40), *_texts(10)])
    assert recipe.data.duplicates == "drop"
    assert "10 of 50 rows (20.0%)" in capsys.readouterr().out


def test_nothing_is_overwritten_without_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, output = _write(tmp_path / "train.jsonl", _texts(20)), tmp_path / "recipe.toml"
    output.write_text("mine")
    assert main(["init", str(train), "-o", str(output)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert output.read_text() == "mine"
    assert main(["init", str(train), "-o", str(output), "--force"]) == 0
    assert load(output).data.train == str(train)
    assert main(["init", str(train), "-o", str(tmp_path)]) == 2
    assert "is a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "the file has no rows"),
        ('{"text": "a", "label": "b"}\n' * 6 + '{"text": \n', "line 7: broken JSON"),
        ('{"question": "a"}\n', "no known format"),
    ],
)
def test_data_that_cannot_be_read_is_exit_code_2_and_no_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, said: str
) -> None:
    train, output = tmp_path / "train.jsonl", tmp_path / "recipe.toml"
    train.write_text(content)
    assert main(["init", str(train), "-o", str(output)]) == 2
    assert said in capsys.readouterr().err
    assert not output.exists()


def test_files_that_do_not_fit_together_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, test = _write(tmp_path / "train.jsonl", _texts(20)), _write(tmp_path / "test.jsonl", _pairs(20))
    assert main(["init", str(train), "--test", str(test), "-o", str(tmp_path / "r.toml")]) == 2
    assert f"{test}: the rows are preference pairs, but {train} has conversations" in capsys.readouterr().err


def test_files_in_different_formats_are_sniffed_one_by_one(tmp_path: Path) -> None:
    test = _write(tmp_path / "test.jsonl", [{"prompt": "a", "completion": f"b{i}"} for i in range(9)])
    assert _init(tmp_path, _texts(60), "--test", str(test)).data.format == "auto"


def test_few_rows_are_seen_more_often_and_the_work_is_bounded(tmp_path: Path) -> None:
    epochs = [_init(tmp_path, _texts(count), "--force").training.epochs for count in (40, 400, 4000, 10_000)]
    assert epochs == sorted(epochs, reverse=True)
    assert (epochs[0], epochs[-1]) == (10.0, 1.0)
    recipe = _init(tmp_path, _texts(1000), "--force")
    steps = 1000 * (1 - recipe.data.test_share - recipe.data.validation_share) * recipe.training.epochs / 8
    assert recipe.training.rows_per_step == 8
    assert 150 <= steps <= 500


def test_long_rows_get_room_up_to_the_context(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = _init(tmp_path, _texts(30)).training.max_tokens
    words = " ".join(random.Random(0).choices(["alpha", "beta", "gamma", "42"], k=600))
    long = _init(tmp_path, [*_texts(30), _chat(words, "ok")], "--force").training.max_tokens
    assert short == 128
    assert long % 64 == 0
    assert estimate_tokens(words) < long < 2 * estimate_tokens(words)
    capsys.readouterr()
    assert _init(tmp_path, [*_texts(30), _chat(words * 20, "ok")], "--force").training.max_tokens == LARGEST_CONTEXT
    assert "which rows would be cut" in capsys.readouterr().out


def test_labels_that_only_the_test_has_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    test = _write(tmp_path / "test.jsonl", _label_rows(30, labels=5))
    _init(tmp_path, _label_rows(60, labels=3), "--test", str(test))
    assert "2 labels of" in capsys.readouterr().out


def test_a_strange_file_name_cannot_write_into_the_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = _write(tmp_path / 'it\'s "x"\nseed = 5\n.jsonl', _texts(20))
    output = tmp_path / "my recipe.toml"
    assert main(["init", str(train), "-o", str(output)]) == 0
    recipe = load(output)
    assert (recipe.seed, recipe.data.train) == (0, str(train))
    assert f"luthier run '{output}'" in capsys.readouterr().out


def test_the_size_of_a_model_is_read_off_its_name() -> None:
    assert parameters_of("smollm2-135m-instruct") == 134515008
    assert parameters_of("meta/Llama-3.2-1B-Instruct") == 1e9
    assert parameters_of("qwen2.5-0.5b") == 0.5e9
    assert parameters_of("models/mine") == float("inf")


def test_no_torch_is_loaded(tmp_path: Path) -> None:
    train = _write(tmp_path / "train.jsonl", _json_rows(20))
    program = (
        "import sys; from luthier.cli.main import main\n"
        "assert main(['init', sys.argv[1], '-o', sys.argv[2]]) == 0\n"
        "print(sorted({'torch', 'transformers', 'scipy', 'pyarrow'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", program, str(train), str(tmp_path / "r.toml")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


# what a profile says


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        (_texts(30), "text"),
        (_json_rows(30), "json"),
        ([*_json_rows(38), *_texts(1)], "json"),
        ([*_json_rows(30), *_texts(10)], "text"),
        (_label_rows(30), "label"),
        ([_chat(f"q{i}", "yes" if i % 2 else "no") for i in range(30)], "label"),
        ([_chat(f"q{i}", str(i)) for i in range(30)], "text"),
        ([_chat(f"q{i}", "always the same") for i in range(30)], "text"),
        (_tool_rows(30), "tool_calls"),
        (_pairs(30), "preference"),
        ([{"text": f"paragraph {i}"} for i in range(30)], "text"),
    ],
    ids=str,
)
def test_the_kind_of_task_is_told_from_the_replies(tmp_path: Path, rows: list[dict[str, Any]], kind: str) -> None:
    assert profile(_write(tmp_path / "a.jsonl", rows)).kind == kind


def test_a_profile_counts_what_is_there(tmp_path: Path) -> None:
    rows = [_chat("x" * i, "yes" if i % 2 else "no", id=str(i)) for i in range(1, 101)]
    rows += [_chat("x", "yes", id="again")]
    found = profile(_write(tmp_path / "a.jsonl", rows))
    assert (found.rows, found.looked_at, found.repeats) == (101, 101, 1)
    assert found.repeat_share == pytest.approx(1 / 101)
    assert found.labels == ("no", "yes")
    assert found.prompt_characters == Lengths(50, 95, 100)
    assert (found.has_tools, found.has_system) == (False, False)
    few = profile(_write(tmp_path / "a.jsonl", rows), limit=10)
    assert (few.rows, few.looked_at, few.prompt_characters.longest) == (101, 10, 100)


def test_the_estimate_of_tokens_counts_digits_and_other_scripts_in_full() -> None:
    assert estimate_tokens("") == 0
    assert estimate_tokens("word " * 7) == pytest.approx(10)
    assert estimate_tokens("123456") == 6
    assert estimate_tokens("你好") == pytest.approx(4)


SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared development data is not beside this checkout")
@pytest.mark.parametrize(
    ("name", "task", "objective"),
    [
        ("json_extraction", "json", "sft"),
        ("intents", "label", "classify"),
        ("toolcalls", "tool_calls", "sft"),
        ("preference", "pairs", "dpo"),
        ("gsm8k", "text", "sft"),
        ("summarize", "text", "sft"),
    ],
)
def test_real_data_gives_recipes_that_load_and_finish_in_minutes(
    tmp_path: Path, name: str, task: str, objective: str
) -> None:
    folder, output = SHARED / name, tmp_path / "recipe.toml"
    assert main(["init", str(folder / "train.jsonl"), "--test", str(folder / "test.jsonl"), "-o", str(output)]) == 0
    recipe = load(output)
    assert (recipe.evaluation.task, recipe.dump()["objective"]["type"]) == (task, objective)
    assert Path(recipe.data.train).resolve() == (folder / "train.jsonl").resolve()
    rows = sum(1 for _ in (folder / "train.jsonl").open()) * (1 - recipe.data.validation_share)
    assert 130 <= rows * recipe.training.epochs / recipe.training.rows_per_step <= 500


# retrieval


def _questions(count: int) -> list[dict[str, Any]]:
    return [{"id": f"q{i}", "question": f"Who is number {i}?", "answers": [f"Anna {i}"]} for i in range(count)]


def test_a_corpus_sets_the_whole_ladder_up(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"text": "Anna 1 is number 1."}\n', encoding="utf-8")
    plain, full = _init(tmp_path, _questions(300)), _init(tmp_path, _questions(300), "--corpus", str(corpus), "--force")
    assert plain.retrieval is None and list(_systems(plain)) == [
        "zero_shot",
        "few_shot",
        "fine_tuned",
        "fine_tuned_few_shot",
    ]
    assert full.retrieval is not None and full.retrieval.corpus == str(corpus) and full.retrieval.top_k == 3
    assert list(_systems(full)) == [*list(_systems(plain))[:2], "rag", *list(_systems(plain))[2:], "fine_tuned_rag"]
    assert full.training.epochs < plain.training.epochs, "rows with passages are longer, and are seen less often"


@pytest.mark.parametrize(
    ("rows", "corpus", "said"),
    [
        (_questions(60), "nowhere.jsonl", "no such file or folder"),
        (_questions(60), "corpus.pdf", "expected one of .txt, .md"),
        ([{"text": f"Raw text number {i}."} for i in range(60)], "train.jsonl", "ask nothing"),
    ],
)
def test_a_corpus_that_cannot_help_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: list[dict[str, Any]], corpus: str, said: str
) -> None:
    train = tmp_path / "train.jsonl"
    train.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "corpus.pdf").write_bytes(b"%PDF")
    output = tmp_path / "recipe.toml"
    assert main(["init", str(train), "--corpus", str(tmp_path / corpus), "-o", str(output)]) == 2
    assert said in capsys.readouterr().err and not output.exists()


@pytest.mark.parametrize("kind", ["text", "json"])
def test_what_is_offered_as_a_comment_is_a_recipe_without_it(tmp_path: Path, kind: str) -> None:
    rows = _json_rows(60) if kind == "json" else _texts(60)
    _init(tmp_path, rows)
    path = tmp_path / "recipe.toml"
    before, offered = path.read_text().split(OFFER)
    path.write_text(before + "\n".join(line.removeprefix("#").removeprefix(" ") for line in offered.splitlines()))
    recipe = load(path)
    added = set(recipe.evaluation.systems) - set(_systems_before(before, tmp_path))
    assert added == {"optimized_prompt", "larger", "hosted", "program"}
    assert (recipe.evaluation.style.judge is not None) == (kind == "text")


def _systems_before(text: str, folder: Path) -> dict[str, Any]:
    (folder / "before.toml").write_text(text)
    return _systems(load(folder / "before.toml"))


def test_judged_steps_are_for_a_process_reward(tmp_path: Path) -> None:
    row = {"prompt": "Add 2 and 3.", "completions": ["It is 5.", "So 6."], "labels": [True, False]}
    (tmp_path / "rows.jsonl").write_text((json.dumps(row) + "\n") * 60, encoding="utf-8")
    assert main(["init", str(tmp_path / "rows.jsonl"), "-o", str(tmp_path / "recipe.toml")]) == 0
    recipe = load(tmp_path / "recipe.toml")
    assert dump_part(recipe.objective)["type"] == "process_reward"
    assert recipe.evaluation.task == "steps" and recipe.evaluation.metrics == ("step_accuracy",)
    assert set(recipe.evaluation.systems) == {"zero_shot", "fine_tuned"}
