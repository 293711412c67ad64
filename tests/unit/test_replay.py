"""Rows of other work that are mixed into training, and nowhere else."""

import json
from pathlib import Path

import pytest

from luthier.cli.main import main
from luthier.data.formats.base import read_examples
from luthier.data.replay import build_pool, wanted
from luthier.data_stage import divide, prepare_data
from luthier.errors import DataError
from luthier.evaluate import question_of
from luthier.examples import Conversation, Example, Message
from luthier.progress import Silent
from luthier.recipe import load
from luthier.run_folder import RunFolder
from luthier.stages import Opened, open_run

WORDS = ("river", "tower", "garden", "window")


def chat(question: str, answer: str) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def recipe(tmp_path: Path, tiny_model_folder: Path) -> Path:
    task = [chat(f"What is {n * 37 % 101} and {WORDS[n % 4]} {n * 7 % 83}?", f"{WORDS[n % 4]} {n}") for n in range(40)]
    write(tmp_path / "rows.jsonl", task)
    other = [chat(f"Say {WORDS[n % 4]} backwards, number {n * 13 % 97}.", WORDS[n % 4][::-1]) for n in range(30)]
    write(tmp_path / "other.jsonl", [*other, chat("Tell me all about it.", "word " * 3000), other[0]])
    path = tmp_path / "recipe.toml"
    path.write_text(
        f'[model]\nname = "{tiny_model_folder}"\n[data]\ntrain = "rows.jsonl"\nreplay = "other.jsonl"\n'
        "[training]\nsteps = 6\nrows_per_step = 4\nmax_tokens = 128\n",
        encoding="utf-8",
    )
    return path


def opened(path: Path, out: Path, *settings: str) -> tuple[RunFolder, Opened]:
    recipe, folder = load(path, settings), RunFolder(out)
    folder.open(recipe, path)
    return folder, open_run(recipe, folder, prepare_data(recipe, folder, Silent()), Silent())


def test_replay_is_trained_on_and_stands_in_no_split(recipe: Path, tmp_path: Path) -> None:
    folder, run = opened(recipe, tmp_path / "out", "data.replay_share=0.3")
    data = run.data
    rows = wanted(0.3, len(data.train))
    assert len(run.units["train"]) == len(data.train) + rows and len(run.units["validation"]) == len(data.validation)
    assert rows / len(run.units["train"]) == pytest.approx(0.3, abs=0.02)
    for examples in data.named().values():
        assert not any("backwards" in example.prompt[0].content for example in examples)
    asked = question_of(run)
    assert not any("backwards" in row.prompt[0].content for row in (*asked.train, *asked.validation))
    counts = folder.read("data/split.json")
    assert counts["train"] == len(data.train)
    assert counts["replay"] == {
        "available": 31,
        "repeats": 1,
        "leaks": 0,
        "wanted": rows,
        "trained": rows,
        "share": pytest.approx(0.3, abs=0.02),
    }
    assert folder.read("manifest.json")["data"]["replay"]["sha256"]


def test_the_checks_say_the_same_of_the_task_with_and_without_replay(recipe: Path) -> None:
    _, counts, findings = divide(load(recipe, []))
    plain = load(recipe, [])
    plain = plain.model_copy(update={"data": plain.data.model_copy(update={"replay": None})})
    _, without, same = divide(plain)
    assert [f.to_dict() for f in findings] == [f.to_dict() for f in same]
    assert {k: v for k, v in counts.items() if k != "replay"} == without


def test_a_larger_share_takes_more_of_the_same_and_too_long_rows_are_passed_over(recipe: Path, tmp_path: Path) -> None:
    few, many = (
        [
            row.ids
            for unit in opened(recipe, tmp_path / share, f"data.replay_share={share}")[1].units["train"]
            for row in unit
        ]
        for share in ("0.1", "0.9")
    )
    task = 40 - 4 - 4
    assert many[: len(few)] == few and len(many) > len(few)
    counts = json.loads((tmp_path / "0.9/data/split.json").read_text())
    assert counts["replay"]["trained"] == 30 < counts["replay"]["wanted"], "the one of 3,000 words does not fit"
    assert abs(counts["train"] - task) < 10


def test_replay_decides_the_fingerprint_and_its_seed_the_rows(recipe: Path, tmp_path: Path) -> None:
    from luthier.assemble import fingerprint_of

    found: list[str] = []
    for share in ("0.1", "0.2", "0.1"):
        _, run = opened(recipe, tmp_path / f"out{len(found)}", f"data.replay_share={share}")
        found.append(fingerprint_of(run.recipe, run.loaded, run.template, run.units))
    assert found[0] == found[2] != found[1]
    rows = list(read_examples(tmp_path / "other.jsonl"))
    orders = [[row.where.line for row in build_pool(rows, {}, seed).rows] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


def test_a_row_that_is_added_moves_no_other(recipe: Path, tmp_path: Path) -> None:
    rows = list(read_examples(tmp_path / "other.jsonl"))
    whole = [row.where.line for row in build_pool(rows, {}, 0).rows]
    assert [line for line in whole if line != 5] == [r.where.line for r in build_pool(rows[:4] + rows[5:], {}, 0).rows]


def test_rows_that_ask_what_is_held_out_are_left_out_and_found(recipe: Path, tmp_path: Path) -> None:
    test = write(tmp_path / "test.jsonl", [chat("SAY  river backwards, number 0?!", "x"), chat("Else?", "y")])
    data, counts, findings = divide(load(recipe, [f"data.test={test}"]))
    assert counts["replay"]["leaks"] == 1 and len(data.replay) == 30
    assert [(f.check, f.severity, f.count) for f in findings if f.check == "replay"] == [("replay", "warning", 1)]
    held = [Conversation((Message("user", "Which?"), Message("assistant", "a")))]
    chats: list[Example] = [
        Conversation(
            (Message("user", q), Message("assistant", "b"), Message("user", "Why?"), Message("assistant", "c"))
        )
        for q in ("Which?", "What?")
    ]
    assert build_pool(chats, {"test": held}, 0).rows == (chats[1],), "an earlier turn that is trained on counts, too"


def test_a_pool_of_nothing_but_leaks_is_refused(recipe: Path, tmp_path: Path) -> None:
    pool = write(tmp_path / "one.jsonl", [chat("Else?", "y")])
    test = write(tmp_path / "test.jsonl", [chat("Else?", "y"), chat("And?", "z")])
    with pytest.raises(DataError, match="can be replayed"):
        divide(load(recipe, [f"data.replay={pool}", f"data.test={test}"]))


def test_pairs_cannot_be_replayed_into_sft(recipe: Path, tmp_path: Path) -> None:
    pairs: list[dict[str, object]] = [{"prompt": f"Which {n}?", "chosen": "a", "rejected": "b"} for n in range(9)]
    with pytest.raises(DataError, match="this row is a preference pair"):
        opened(recipe, tmp_path / "out", f"data.replay={write(tmp_path / 'pairs.jsonl', pairs)}")


def test_raw_text_can_be(recipe: Path, tmp_path: Path) -> None:
    texts: list[dict[str, object]] = [{"text": f"The {WORDS[n % 4]} of {n} stands by the road."} for n in range(9)]
    _, run = opened(recipe, tmp_path / "out", f"data.replay={write(tmp_path / 'texts.jsonl', texts)}")
    assert len(run.units["train"]) == len(run.data.train) + wanted(0.1, len(run.data.train))


def test_a_run_that_goes_on_replays_the_same(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert main(["train", str(recipe), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().err
    assert said.count("replay: ") == 2 and "going on after step 6" in said
