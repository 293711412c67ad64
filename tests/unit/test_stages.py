"""What a stage does with what an earlier process left."""

import json
from pathlib import Path

import pytest

from luthier import registry
from luthier.cli.main import main
from luthier.data_stage import prepare_data
from luthier.engine.log import mend_log
from luthier.engine.run import State
from luthier.errors import DataError
from luthier.examples import Conversation, Message
from luthier.preflight.base import GATES
from luthier.progress import Silent
from luthier.recipe import load
from luthier.run_folder import RunFolder


def write(path: Path, steps: list[int], tail: str = "") -> None:
    path.write_text("".join(json.dumps({"step": s, "loss": 1.0}) + "\n" for s in steps) + tail)


def steps_of(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


LAST: dict[str, float] = {"step": 3, "loss": 0.5}


def test_steps_that_will_be_done_again_and_a_cut_line_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, [1, 2, 3, 4, 5], '{"step": 6, "lo')
    mend_log(path, State(step=3, last=LAST))
    assert steps_of(path) == [1, 2, 3]


def test_a_line_that_the_kill_came_before_is_written_from_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, [1, 2])
    mend_log(path, State(step=3, last=LAST))
    assert steps_of(path) == [1, 2, 3]
    assert json.loads(path.read_text().splitlines()[-1]) == LAST


def test_a_run_that_begins_has_an_empty_log(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, [1, 2])
    mend_log(path, State())
    assert steps_of(path) == []


def test_what_a_killed_process_was_writing_is_gone_once_another_works_there(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", listed=False)
    left = [folder / name for name in (".report.json.0a.tmp", "data/.train.jsonl.0b.tmp", "records/.a.jsonl.0c.tmp")]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    (folder / ".adapter.tmp").mkdir()
    with folder.locked():
        assert not any(path.exists() for path in left) and (folder / ".adapter.tmp").is_dir()


RECIPE = """
[model]
name = "{model}"
[data]
train = "rows.jsonl"
[training]
steps = 6
rows_per_step = 4
[evaluation.systems.zero_shot]
tune_rows = 0
[evaluation.systems.fine_tuned]
"""


@pytest.fixture
def recipe(tmp_path: Path, tiny_model_folder: Path) -> Path:
    """A recipe of six steps over 40 rows that differ."""
    words = ("river", "tower", "garden", "window")
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"What is {n * 37 % 101} and {words[n % 4]} {n * 7 % 83}?"},
                {"role": "assistant", "content": f"{words[n % 4]} {n}"},
            ]
        }
        for n in range(40)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.format(model=tiny_model_folder), encoding="utf-8")
    return path


def results(out: Path) -> dict[str, bool]:
    return {gate["gate"]: gate["passed"] for gate in json.loads((out / "preflight.json").read_text())}


def test_what_was_refused_after_three_steps_is_refused_again(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    settings = ["--set", "optimizer.learning_rate=1e-30", "--set", "training.save_every=1"]
    for _ in range(2):
        assert main(["train", str(recipe), "--out", str(out), *settings]) == 2
        assert "tensors_moved" in capsys.readouterr().err
        assert (out / "checkpoints/step-000003").is_dir(), "it is there, and must not be gone on from"
        assert results(out)["tensors_moved"] is False
        assert not (out / "adapter").exists()


def test_a_finished_run_that_is_repeated_keeps_the_results_of_every_gate(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["train", str(recipe), "--out", str(out)]) == 0
    assert set(results(out)) == set(registry.names(GATES)) and all(results(out).values())
    before = (out / "preflight.json").read_text(), (out / "metrics.jsonl").read_text()
    assert main(["train", str(recipe), "--out", str(out)]) == 0
    assert ((out / "preflight.json").read_text(), (out / "metrics.jsonl").read_text()) == before


def test_an_adapter_that_does_not_fit_is_told_before_the_baselines(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(recipe), "--out", str(tmp_path / "out"), "--set", "adapter.targets=['query']"]) == 2
    error = capsys.readouterr().err
    assert "q_proj" in error and "test rows" not in error
    assert not (tmp_path / "out/records").exists()


def test_rows_that_changed_since_the_training_are_refused_and_nothing_is_written(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, rows = tmp_path / "out", tmp_path / "rows.jsonl"
    assert main(["train", str(recipe), "--out", str(out)]) == 0
    before, kept = rows.read_text(), (out / "data/train.jsonl").read_text()
    rows.write_text(before.replace("river 0", "delta 0"), encoding="utf-8")
    for verb in (["evaluate", str(out)], ["train", str(recipe), "--out", str(out)]):
        assert main(verb) == 2
        assert "rows are not those that" in capsys.readouterr().err
    assert (out / "data/train.jsonl").read_text() == kept
    assert {path.name for path in (out / "data").iterdir()} >= {"train.jsonl"} and not list(out.glob("data/*.now.*"))
    rows.write_text(before, encoding="utf-8")
    assert main(["train", str(recipe), "--out", str(out)]) == 0


def test_passages_that_change_after_the_training_do_not_change_what_was_trained(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "corpus.jsonl").write_text('{"id": "a", "text": "A river."}\n{"id": "b", "text": "A tower."}\n')
    retrieval = '\n[retrieval]\ncorpus = "corpus.jsonl"\nretriever = "bm25"\ntop_k = '
    text = recipe.read_text()
    for top_k in (1, 2):
        recipe.write_text(f"{text}{retrieval}{top_k}\n", encoding="utf-8")
        assert main(["train", str(recipe), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().err
    assert "going on after step 6" in said, "the finished training is opened again"
    assert len((tmp_path / "out/metrics.jsonl").read_text().splitlines()) == 6


@pytest.mark.parametrize("name", ["data/validation.jsonl", "findings.json"])
def test_kept_rows_that_were_changed_are_written_again(name: str, recipe: Path, tmp_path: Path) -> None:
    folder, settings = RunFolder(tmp_path / "out"), load(recipe, [])
    folder.open(settings, recipe)
    data = prepare_data(settings, folder, Silent())
    written = (folder / name).read_text()
    stamp = (folder / "data/split.json").stat().st_mtime_ns
    assert prepare_data(settings, folder, Silent()).validation[0].id == data.validation[0].id
    assert (folder / "data/split.json").stat().st_mtime_ns == stamp, "what is as it was is kept"
    (folder / name).write_text("", encoding="utf-8")
    assert len(prepare_data(settings, folder, Silent()).validation) == len(data.validation)
    assert (folder / name).read_text() == written


def test_rows_that_were_kept_for_a_teacher_to_answer_are_not_learned_without_one(recipe: Path, tmp_path: Path) -> None:
    rows = tmp_path / "questions.jsonl"
    question = {"role": "user", "content": "Where is 1?"}
    asked = [{"messages": [{**question, "content": f"Where is {n * 37 % 991}?"}]} for n in range(60)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in asked), encoding="utf-8")
    folder, data = RunFolder(tmp_path / "out"), f"data.train={rows}"
    settings = load(recipe, [data, "teacher.examples=solved.jsonl", "teacher.replies=teacher"])
    folder.open(settings, recipe)
    (first, *_) = prepare_data(settings, folder, Silent()).train
    assert isinstance(first, Conversation) and first.messages[-1] == Message("assistant")
    with pytest.raises(DataError):
        prepare_data(load(recipe, [data]), folder, Silent())


@pytest.mark.parametrize(
    "limit", [["training.max_tokens=64"], ["training.max_tokens=64", "data.max_truncated_share=1"]]
)
def test_validation_rows_without_their_replies_stop_the_run(
    limit: list[str], recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They would choose the best step by nothing."""
    asked, answer = {"role": "user", "content": "word " * 200}, {"role": "assistant", "content": "Yes"}
    rows = [{"messages": [{**asked, "content": f"{n} {asked['content']}"}, answer]} for n in range(3)]
    (tmp_path / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    given = [part for value in (*limit, "data.validation=validation.jsonl") for part in ("--set", value)]
    assert main(["train", str(recipe), "--out", str(tmp_path / "out"), *given]) == 2
    assert "trained_tokens" in capsys.readouterr().err
    assert not (tmp_path / "out/checkpoints").exists()


def test_an_automatic_micro_batch_is_found_once(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that goes on with less memory takes the number that it began with."""
    from luthier.engine import fit as fitting

    out = tmp_path / "out"
    asked = ["train", str(recipe), "--out", str(out), "--set", "training.micro_batch_tokens=auto"]
    assert main([*asked]) == 0
    found = RunFolder(out).read("manifest.json")["micro_batch"]
    assert found["tokens"] == fitting.MOST_TOKENS["cpu"] and found["fits"]
    assert f"micro-batches of up to {found['tokens']:,} tokens" in capsys.readouterr().err
    monkeypatch.setattr(fitting, "available_bytes", lambda device: 1)
    (out / "adapter" / "run.json").unlink()  # so that training is asked for again
    assert main(asked) == 0
    assert RunFolder(out).read("manifest.json")["micro_batch"] == found
    assert "micro-batches" not in capsys.readouterr().err
    other = tmp_path / "other"
    assert main(["train", str(recipe), "--out", str(other), "--set", "training.micro_batch_tokens=auto"]) == 0
    assert RunFolder(other).read("manifest.json")["micro_batch"]["tokens"] == 64
    assert "that may be more than there is: set training.gradient_checkpointing" in capsys.readouterr().err


def test_a_run_without_test_rows_is_trained_goes_on_and_is_not_evaluated(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    given = ["--set", "data.test_share=0", "--out", str(out)]
    for _ in range(2):
        assert main(["train", str(recipe), *given]) == 0
    split = json.loads((out / "data/split.json").read_text(encoding="utf-8"))
    assert split["test"] == 0 and split["train"] > 0 and split["validation"] > 0
    capsys.readouterr()
    assert main(["run", str(recipe), *given]) == 2
    assert "there are no test rows" in capsys.readouterr().err
