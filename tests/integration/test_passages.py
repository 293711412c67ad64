"""A run with a corpus: retrieval is measured, and a second training reads passages. Tiny random model, words alone."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from luthier.cli.main import main
from luthier.data.templates import build_template
from luthier.examples import Conversation, Message
from luthier.models.load import LoadedModel
from luthier.passages import FOLDER, Reader
from luthier.rag.prompt import last_question
from luthier.rag.retriever import Retriever, build_retriever
from luthier.recipe import RetrievalSettings
from luthier.report import build_report
from luthier.report.page import render_page

RECIPE = """
[model]
name = "{model}"
[data]
train = "rows.jsonl"
[optimizer]
learning_rate = 4e-3
[training]
steps = 4
rows_per_step = 4
[retrieval]
corpus = "corpus.jsonl"
retriever = "bm25"
top_k = 2
[evaluation]
max_new_tokens = 4
max_rows = 6
[evaluation.systems.rag]
tune_rows = 2
[evaluation.systems.fine_tuned]
[evaluation.systems.fine_tuned_rag]
[evaluation.forgetting]
max_rows = 20
max_tokens = 512
"""
NAMES = ["Anna", "Boris", "Clara", "David", "Elena", "Frank", "Greta", "Hugo", "Irene", "Jonas"]


def write_task(folder: Path, model: Path, recipe: str = RECIPE) -> Path:
    towns = ["Arden", "Belmont", "Corby", "Dover", "Epsom"]
    rows, corpus = [], []
    for index in range(50):
        who, town = f"{NAMES[index % 10]} {index}", f"{towns[index % 5]} {index}"
        corpus.append({"id": f"p{index}", "title": who, "text": f"{who} lives in {town} and likes it."})
        question = f"Where does {who} live?"
        rows.append({"id": f"q{index}", "question": question, "answers": [town], "gold_passage_ids": [f"p{index}"]})
    for name, values in (("rows.jsonl", rows), ("corpus.jsonl", corpus)):
        (folder / name).write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    path = folder / "recipe.toml"
    path.write_text(recipe.format(model=model), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    return write_task(tmp_path_factory.mktemp("passages"), tiny_model_folder)


@pytest.fixture(scope="module")
def finished(recipe: Path) -> Path:
    out = recipe.parent / "finished"
    assert main(["run", str(recipe), "--out", str(out)]) == 0
    return out


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_run_with_a_corpus_climbs_the_whole_ladder(finished: Path) -> None:
    report = load(finished / "report.json")
    rungs = {system["name"]: system["rung"] for system in report["systems"]}
    assert rungs == {"rag": "rag", "fine_tuned": "fine_tune", "fine_tuned_rag": "fine_tune+rag"}
    assert {s["name"] for s in report["systems"] if s["baseline"]} == {"rag"}
    pairs = {(d["a"], d["b"]) for d in report["differences"]}
    assert pairs == {("fine_tuned", "rag"), ("fine_tuned_rag", "rag"), ("fine_tuned_rag", "fine_tuned")}
    assert load(finished / FOLDER / "forgetting.json")["measures"]
    assert "training with passages" in load(finished / "manifest.json")["stages"]


def test_the_second_training_reads_passages_as_it_will_be_asked(finished: Path) -> None:
    for row in lines(finished / FOLDER / "data/train.jsonl"):
        (user,) = [m for m in row["messages"] if m["role"] == "user"]
        assert user["content"].startswith("Passages:\n\n[1] ") and "[2] " in user["content"]
    trained = {row["id"]: row["messages"][:-1] for row in lines(finished / FOLDER / "data/test.jsonl")}
    asked = {record["id"]: record["prompt"] for record in lines(finished / "records/fine_tuned_rag.jsonl")}
    assert asked and all(trained[name] == prompt for name, prompt in asked.items())
    assert all(gate["passed"] for gate in load(finished / FOLDER / "preflight.json"))


def test_the_two_trainings_end_with_different_weights_and_each_is_used(finished: Path) -> None:
    first, second = (finished / part / "adapter/adapter_model.safetensors" for part in (".", FOLDER))
    assert first.read_bytes() != second.read_bytes()
    fine_tuned = lines(finished / "records/fine_tuned.jsonl")
    assert all("Passages:" not in message["content"] for record in fine_tuned for message in record["prompt"])


def test_running_and_evaluating_again_does_nothing_twice(finished: Path, recipe: Path) -> None:
    kept = [*(finished / FOLDER / "checkpoints").rglob("*"), finished / "records/fine_tuned_rag.jsonl"]
    written, table = [path.stat().st_mtime_ns for path in kept], load(finished / "evaluation.json")
    assert main(["run", str(recipe), "--out", str(finished)]) == 0
    assert main(["evaluate", str(finished)]) == 0
    assert [path.stat().st_mtime_ns for path in kept] == written
    assert load(finished / "evaluation.json") == table


def test_the_second_training_replays_too(tmp_path: Path, tiny_model_folder: Path) -> None:
    path = write_task(tmp_path, tiny_model_folder)
    other = [{"id": f"o{n}", "question": f"How much is {n} and 1?", "answers": [str(n + 1)]} for n in range(30)]
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in other), encoding="utf-8")
    out, replay = tmp_path / "out", f"data.replay={tmp_path / 'other.jsonl'}"
    assert main(["train", str(path), "--out", str(out), "--set", replay]) == 0
    trained = [load(out / at / "data/split.json")["replay"]["trained"] for at in (".", FOLDER)]
    assert trained[0] == trained[1] > 0


def test_another_corpus_is_refused_once_it_was_trained_on(
    finished: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = recipe.parent / "corpus.jsonl"
    before = corpus.read_text(encoding="utf-8")
    corpus.write_text(before.replace("likes it", "hates it"), encoding="utf-8")
    try:
        assert main(["train", str(recipe), "--out", str(finished)]) == 2
    finally:
        corpus.write_text(before, encoding="utf-8")
    assert "training on other passages" in capsys.readouterr().err


def test_a_corpus_that_holds_the_questions_of_the_test_stops_the_run(
    tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_task(tmp_path, tiny_model_folder)
    rows = lines(tmp_path / "rows.jsonl")
    for row in rows:  # long enough not to stand there by chance
        row["question"] = f"{row['question'][:-1]} with the whole family since they left the old house by the sea?"
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with (tmp_path / "corpus.jsonl").open("a", encoding="utf-8") as corpus:
        for row in rows:
            text = f"{row['question']} {row['answers'][0]}"
            corpus.write(json.dumps({"id": f"copy {row['id']}", "text": text}) + "\n")
    assert main(["run", str(path), "--out", str(tmp_path / "out")]) == 2
    assert "corpus_leaks" in capsys.readouterr().err


# how rows are read


@pytest.fixture(scope="module")
def retriever(recipe: Path) -> Retriever:
    corpus = str(recipe.parent / "corpus.jsonl")
    return build_retriever(RetrievalSettings(corpus=corpus, retriever="bm25", top_k=3))


def read(reader: Reader, *rows: Conversation, helped: bool = True) -> list[Conversation]:
    return [row for row in reader.read(rows, helped) if isinstance(row, Conversation)]


def ask(question: str, gold: str) -> Conversation:
    messages = (Message("user", question), Message("assistant", "Somewhere."))
    return Conversation(messages, id=question, extra={"gold_passage_ids": [gold]})


def shown(row: Any) -> str:
    return last_question(row.prompt)


def test_the_right_passage_takes_the_last_place_where_it_was_not_found(
    retriever: Retriever, tiny_loaded: LoadedModel
) -> None:
    reader = Reader(retriever, build_template(tiny_loaded, "model"), 4096)
    found, missed = read(reader, *(ask("Where does Anna 20 live?", gold) for gold in ("p20", "p33")))
    assert "Anna 20 lives in" in shown(found) and "David 33 lives in" not in shown(found)
    assert "[3] David 33\n" in shown(missed) and "[1] Anna 20\n" in shown(missed)
    (alone,) = read(reader, ask("Where does Anna 20 live?", "p33"), helped=False)
    assert "David 33" not in shown(alone), "what is validated on is read as it will be asked"
    assert found.messages[-1] == missed.messages[-1] == Message("assistant", "Somewhere.")


def test_passages_are_left_out_from_the_last_where_a_row_would_be_too_long(
    retriever: Retriever, tiny_loaded: LoadedModel
) -> None:
    template, row = build_template(tiny_loaded, "model"), ask("Where does Anna 20 live?", "p20")
    (whole,) = read(Reader(retriever, template, 4096), row)
    length = len(template.rows(whole)[0].ids)
    (fewer,) = read(Reader(retriever, template, length - 1), row)
    assert "[3]" in shown(whole) and "[3]" not in shown(fewer) and "[2]" in shown(fewer)
    (none,) = read(Reader(retriever, template, 8), row)
    assert none == replace(row)


def cut_retriever(folder: Path, *texts: str) -> Retriever:
    """Passages of three words, two of which stand in a prompt."""
    rows = [{"id": f"s{number}", "text": text} for number, text in enumerate(texts)]
    (folder / "cut.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = dict(corpus=str(folder / "cut.jsonl"), retriever="bm25", top_k=2, chunk_words=3, overlap_words=0)
    return build_retriever(RetrievalSettings.model_validate(settings))


def test_of_a_source_the_passage_with_the_answer_is_right(tmp_path: Path, tiny_loaded: LoadedModel) -> None:
    retriever = cut_retriever(
        tmp_path, "Somewhere else entirely. Arden is here. Anna lives Somewhere.", "Anna Anna Anna."
    )
    template = build_template(tiny_loaded, "model")
    row = ask("Arden Arden? Anna", "s0")  # finds another passage of the source first
    (made,) = read(Reader(retriever, template, 4096), row)
    assert "Somewhere" in shown(made)
    vague = replace(row, messages=(row.messages[0], Message("assistant", "Nobody knows.")))
    (made,) = read(
        Reader(retriever, template, 4096), replace(vague, messages=(Message("user", "Anna?"), vague.messages[1]))
    )
    assert "Anna lives Somewhere." in shown(made), "no passage holds the answer: the one that is found first"


def test_the_right_passage_is_the_last_to_be_left_out(retriever: Retriever, tiny_loaded: LoadedModel) -> None:
    template, row = build_template(tiny_loaded, "model"), ask("Where does Anna 20 live?", "p33")
    (whole,) = read(Reader(retriever, template, 4096), row)
    (fewer,) = read(Reader(retriever, template, len(template.rows(whole)[0].ids) - 1), row)
    assert "[3]" not in shown(fewer) and "[1] Anna 20\n" in shown(fewer) and "[2] David 33\n" in shown(fewer)
    (one,) = read(Reader(retriever, template, len(template.rows(fewer)[0].ids) - 1), row)
    assert "[1] David 33\n" in shown(one) and "[2]" not in shown(one)


def test_gold_that_the_corpus_lacks_stops_before_the_first_training(
    tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_task(tmp_path, tiny_model_folder)
    rows = [{**row, "gold_passage_ids": ["gone"]} for row in lines(tmp_path / "rows.jsonl")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    test = [{"id": f"t{n}", "question": f"Who is {n}?", "answers": ["Anna"]} for n in range(6)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in test), encoding="utf-8")
    out = tmp_path / "out"
    assert main(["run", str(path), "--out", str(out), "--set", f"data.test={tmp_path / 'test.jsonl'}"]) == 2
    assert "names 'gone'" in capsys.readouterr().err and not (out / "adapter").exists()


def test_a_run_goes_on_where_recall_cannot_be_judged(
    tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = RECIPE.replace("[evaluation.systems.fine_tuned_rag]\n", "")
    path = write_task(tmp_path, tiny_model_folder, recipe)
    reply = "Nobody knows where that is, and nobody has ever asked before"
    asked = [
        [{"role": "user", "content": f"Who is {n}?"}, {"role": "assistant", "content": f"{reply} {n}"}]
        for n in range(50)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"messages": m}) + "\n" for m in asked), encoding="utf-8")
    assert main(["run", str(path), "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out/retrieval.json").read_text(encoding="utf-8"))
    assert (found["n"], found["not_judged"], found["retrievers"]) == (0, 6, [])
    report = build_report(tmp_path / "out")
    assert "retrieval.json" not in [one.part for one in report.missing]
    assert "Not measured: none of 6 test rows names its passages" in render_page(report)
    assert "retrieval is not measured" in "".join(capsys.readouterr())
    assert main(["retrieve", str(path)]) == 2


def test_a_right_passage_that_is_not_there_is_told_before_the_first_training(
    tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, rows = write_task(tmp_path, tiny_model_folder), tmp_path / "rows.jsonl"
    named = [{**json.loads(line), "gold_passage_ids": ["gone"]} for line in rows.read_text().splitlines()]
    rows.write_text("".join(json.dumps(row) + "\n" for row in named), encoding="utf-8")
    assert main(["train", str(recipe), "--out", str(tmp_path / "out")]) == 2
    assert "gold_passage_ids names 'gone'" in capsys.readouterr().err
    assert not (tmp_path / "out/adapter").exists()
