"""The whole job on a tiny random model: `luthier run` and its stages, stopped, resumed, and fed with bad input."""

import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.children import Child, luthier

from luthier.cli.main import main

RECIPE = """
[model]
name = "{model}"
[data]
train = "rows.jsonl"
[optimizer]
learning_rate = 4e-3
[training]
steps = {steps}
rows_per_step = 4
[evaluation]
max_new_tokens = 4
[evaluation.systems.zero_shot]
tune_rows = 0
[evaluation.systems.fine_tuned]
[evaluation.forgetting]
max_rows = 20
max_tokens = 512
"""


def write_rows(path: Path, count: int = 60) -> None:
    rows = []
    for index in range(count):
        text = f"{index * 37 % 991} {['Main', 'Oak', 'Lake', 'Hill'][index % 4]} Street, unit {index * 7 % 83}"
        answer = json.dumps({"number": str(index * 37 % 991), "street": text.split()[1]})
        messages = [
            {"role": "system", "content": "Read the address."},
            {"role": "user", "content": text},
            {"role": "assistant", "content": answer},
        ]
        rows.append(json.dumps({"id": f"r{index}", "messages": messages}))
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_rows(folder / "rows.jsonl")
    path = folder / "recipe.toml"
    path.write_text(RECIPE.format(model=tiny_model_folder, steps=6), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished(recipe: Path) -> Path:
    out = recipe.parent / "finished"
    assert main(["run", str(recipe), "--out", str(out)]) == 0
    return out


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def weights(out: Path) -> bytes:
    return (out / "adapter/adapter_model.safetensors").read_bytes()


def test_a_run_leaves_everything_that_it_promises(finished: Path) -> None:
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    wanted = {"step", "seconds", "tokens", "trained_tokens", "loss", "learning_rate", "grad_norm"}
    assert all(wanted <= line.keys() for line in lines) and "validation_loss" in lines[-1]
    assert all(gate["passed"] for gate in load(finished / "preflight.json"))
    assert {"tensors_moved", "forest_equivalence", "serving_prompt"} <= {
        g["gate"] for g in load(finished / "preflight.json")
    }
    report = load(finished / "report.json")
    assert {s["name"] for s in report["systems"]} == {"zero_shot", "fine_tuned"}
    assert report["verdict"]["recommendation"] in ("prompt", "few_shot", "fine_tune", "external", "not_yet")
    assert report["verdict"]["sentence"] and report["forgetting"] and report["cost"] and "findings" in report["data"]
    for system in report["systems"]:
        for metric in system["metrics"].values():
            assert metric["low"] <= metric["value"] <= metric["high"]
    assert (finished / "report.html").stat().st_size > 10_000


def test_records_follow_the_test_file(finished: Path) -> None:
    ids = [json.loads(line)["id"] for line in (finished / "data/test.jsonl").read_text().splitlines()]
    for name in ("zero_shot", "fine_tuned"):
        records = [json.loads(line) for line in (finished / f"records/{name}.jsonl").read_text().splitlines()]
        assert [r["id"] for r in records] == ids
        assert all({"id", "prompt", "output", "target", "scores"} <= r.keys() for r in records)


def test_running_again_does_nothing_twice(finished: Path, recipe: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in (finished / "checkpoints").rglob("*")}
    kept = [finished / name for name in ("records/fine_tuned.jsonl", "forgetting.json", "findings.json")]
    written = [path.stat().st_mtime_ns for path in kept]
    assert main(["run", str(recipe), "--out", str(finished)]) == 0
    assert {p: p.stat().st_mtime_ns for p in (finished / "checkpoints").rglob("*")} == before
    assert [path.stat().st_mtime_ns for path in kept] == written


def test_another_recipe_in_the_same_folder_is_refused(
    finished: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(recipe), "--out", str(finished), "--set", "optimizer.learning_rate=1e-5"]) == 2
    assert "optimizer.learning_rate" in capsys.readouterr().err


def test_a_failed_first_attempt_does_not_block_the_folder(recipe: Path, tmp_path: Path) -> None:
    for typo in ("data.train=missing.jsonl", "model.name=no-such-model", "adapter.targets=['query']"):
        assert main(["train", str(recipe), "--out", str(tmp_path / "out"), "--set", typo]) == 2
    assert main(["train", str(recipe), "--out", str(tmp_path / "out"), "--set", "training.steps=3"]) == 0
    assert load(tmp_path / "out/recipe.json")["training"]["steps"] == 3
    assert main(["train", str(recipe), "--out", str(tmp_path / "out"), "--set", "training.steps=4"]) == 2


def test_another_evaluation_after_training_trains_nothing_again(finished: Path, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    trained = {p: p.stat().st_mtime_ns for p in out.rglob("checkpoints/*/*")}
    zero = (out / "records/zero_shot.jsonl").read_bytes()
    added = ["evaluation.systems.examples={type='few_shot'}", "evaluation.confidence=0.9"]
    more = [part for setting in added for part in ("--set", setting)]
    steps = load(out / "manifest.json")["stages"]
    assert main(["run", str(recipe), "--out", str(out), *more]) == 0
    assert {p: p.stat().st_mtime_ns for p in out.rglob("checkpoints/*/*")} == trained
    assert weights(out) == weights(finished)
    assert {s["name"] for s in load(out / "evaluation.json")["systems"]} == {"zero_shot", "fine_tuned", "examples"}
    assert load(out / "recipe.json")["evaluation"]["confidence"] == 0.9
    assert (out / "records/zero_shot.jsonl").read_bytes() == zero
    kept = ("evaluate:zero_shot", "evaluate:fine_tuned")  # measured before and still true: no second was added
    assert all(load(out / "manifest.json")["stages"][name] == steps[name] for name in kept)
    metric = ["--set", "evaluation.metrics=['exact_match']", "--set", "evaluation.primary_metric=exact_match"]
    assert main(["run", str(recipe), "--out", str(out), *more, *metric]) == 0
    assert {p: p.stat().st_mtime_ns for p in out.rglob("checkpoints/*/*")} == trained
    assert weights(out) == weights(finished)
    assert all(s["metrics"].keys() == {"exact_match"} for s in load(out / "evaluation.json")["systems"])
    assert main(["evaluate", str(out)]) == 0


@pytest.mark.parametrize("where", ["afile", "afile/x", "/proc/foo"])
def test_an_impossible_folder_is_one_clear_message(
    where: str, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "afile").write_text("")
    assert main(["run", str(recipe), "--out", str(tmp_path / where)]) == 2
    assert "cannot be a run's folder" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_a_damaged_recipe_in_the_folder_is_one_clear_message(
    content: str, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.json").write_text(content)
    for verb in (["evaluate", str(tmp_path)], ["train", str(recipe), "--out", str(tmp_path)]):
        assert main(verb) == 2
        assert "recipe.json is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["run.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("content", ["", "{}", "[]", '{"files": {}}'])
def test_serving_a_damaged_run_is_one_clear_message(
    name: str, content: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished / "adapter", tmp_path / "adapter")
    (tmp_path / "adapter" / name).write_text(content)
    assert main(["serve", str(tmp_path), "--port", "0"]) == 2
    assert name in capsys.readouterr().err or content == '{"files": {}}'


def test_a_wrong_name_is_told_before_anything_is_written(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for wrong in ("model.name=no-such-model", "model.device=cuda:99", "model.device=gpu"):
        assert main(["run", str(recipe), "--out", str(tmp_path / "out"), "--set", wrong]) == 2
        assert wrong.partition("=")[2] in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_trained_model_opens_and_answers_as_it_did(finished: Path, tiny_model_folder: Path) -> None:
    from luthier.assemble import open_trained
    from luthier.examples import Message
    from luthier.models.generate import generate

    trained = open_trained(finished)
    record = json.loads((finished / "records/fine_tuned.jsonl").read_text().splitlines()[0])
    messages = [Message(m["role"], m["content"]) for m in record["prompt"]]
    ids = trained.template.prompt_ids(messages)
    (answer,) = generate(trained.loaded, [ids], max_new_tokens=4, stop_ids=trained.template.stop_ids)
    assert trained.template.parse_reply(answer.ids).content == record["output"]
    with trained.base(), torch.no_grad():
        plain = trained.loaded.model(torch.tensor([ids])).logits
    with torch.no_grad():
        tuned = trained.loaded.model(torch.tensor([ids])).logits
    assert not torch.equal(plain, tuned)


def test_train_then_evaluate_then_report_as_verbs_of_their_own(finished: Path, recipe: Path) -> None:
    out = recipe.parent / "by-stages"
    assert main(["train", str(recipe), "--out", str(out)]) == 0
    assert weights(out) == weights(finished)
    assert main(["evaluate", str(out)]) == 0
    assert main(["report", str(out)]) == 0
    ours, theirs = (load(o / "evaluation.json")["systems"] for o in (out, finished))
    assert [s["metrics"] for s in ours] == [s["metrics"] for s in theirs]


def start(recipe: Path, out: Path, *more: str) -> Child:
    return luthier("train", recipe, "--out", out, *more)


def wait_for_steps(out: Path, count: int) -> None:
    path = out / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not path.is_file() or len(path.read_text().splitlines()) < count:
        assert time.monotonic() < deadline, "training did not begin"
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)])
def test_a_stopped_training_goes_on_to_the_same_weights(number: signal.Signals, code: int, recipe: Path) -> None:
    long = ["--set", "training.steps=80", "--set", "training.patience=1000", "--set", "training.save_every=5"]
    long += ["--set", "model.precision=float32"]  # `auto` is decided by a measurement, which other work disturbs
    whole, out = recipe.parent / "whole", recipe.parent / f"stopped-{number.name}"
    if not (whole / "adapter").exists():
        assert start(recipe, whole, *long).ended(300)[0] == 0
    child = start(recipe, out, *long)
    wait_for_steps(out, 12)
    child.send(number)
    found, _, error = child.ended(120)
    assert found == code
    if number != signal.SIGKILL:
        assert "everything is saved" in error
        assert load(out / "training.json")["stopped"] == "interrupted"
    assert not (out / "adapter").exists()
    found, _, error = start(recipe, out, *long).ended(300)
    assert found == 0 and "going on after step" in error
    assert weights(out) == weights(whole)
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 81))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "no rows"),
        (
            '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n' * 6
            + "{broken\n",
            "line 7",
        ),
        (
            "".join(f'{{"messages": [{{"role": "user", "content": "{word * 9}"}}]}}\n' for word in "abcdefgh"),
            "assistant",
        ),
    ],
)
def test_bad_rows_are_one_clear_message_and_exit_code_2(
    content: str, says: str, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(recipe, tmp_path / "recipe.toml")
    (tmp_path / "rows.jsonl").write_text(content, encoding="utf-8")
    assert main(["run", str(tmp_path / "recipe.toml"), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert says in error and "rows.jsonl" in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("training.stepz=3", "did you mean 'steps'"),
        ("model.name=no-such-model", "no-such-model"),
        ("data.train=missing.jsonl", "missing.jsonl"),
        ("adapter.type=loar", "did you mean 'lora'"),
        ("evaluation.metrics=['f1_score']", "f1_score"),
        ("adapter.targets=['query']", "q_proj"),
    ],
)
def test_bad_settings_are_one_clear_message_and_exit_code_2(
    setting: str,
    says: str,
    recipe: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["train", str(recipe), "--out", str(tmp_path / "out"), "--set", setting]) == 2
    error = capsys.readouterr().err
    assert says in error and "Traceback" not in error


@pytest.mark.slow
def test_a_full_disk_is_one_clear_message_and_loses_nothing(recipe: Path, tmp_path: Path) -> None:
    """A file size limit makes every write of a checkpoint fail as a full disk does."""
    out = tmp_path / "out"
    program = [
        "import resource, signal, sys",
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)",
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))",
        "from luthier.cli.main import main",
        f"sys.exit(main({['train', str(recipe), '--out', str(out)]!r}))",
    ]
    found, _, error = Child("\n".join(program)).ended(180)
    assert found == 2, error
    assert "checkpoint could not be written" in error and "Traceback" not in error
    assert not list((out / "checkpoints").glob(".*"))
    assert main(["train", str(recipe), "--out", str(out)]) == 0


def test_two_processes_do_not_share_a_folder(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from luthier.run_folder import RunFolder

    with RunFolder(tmp_path / "out").locked():
        assert main(["train", str(recipe), "--out", str(tmp_path / "out")]) == 2
    assert "another process" in capsys.readouterr().err


PAIRS = {"objective.type": "dpo", "data.train": "pairs.jsonl"}


@pytest.mark.parametrize("tables", [{"adapter.type": "full"}, PAIRS, {**PAIRS, "adapter.type": "full"}])
def test_other_adapters_and_objectives_run_through_the_same_command(
    tables: dict[str, str], recipe: Path, tmp_path: Path
) -> None:
    pairs = []
    for line in (recipe.parent / "rows.jsonl").read_text().splitlines():
        messages = json.loads(line)["messages"]
        rejected = [{"role": "assistant", "content": "I do not know."}]
        pairs.append(json.dumps({"prompt": messages[:2], "chosen": messages[2:], "rejected": rejected}))
    (recipe.parent / "pairs.jsonl").write_text("\n".join(pairs) + "\n")
    settings = [part for key, value in tables.items() for part in ("--set", f"{key}={value}")]
    out = tmp_path / "out"
    assert main(["run", str(recipe), "--out", str(out), "--set", "training.steps=4", *settings]) == 0
    assert load(out / "training.json")["steps"] == 4 and (out / "report.html").is_file()


def test_estimate_tells_memory_time_and_money_and_leaves_nothing(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert main(["estimate", str(recipe)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines][:5] == ["memory", "fits", "time", "tokens", "money"]
    assert {line.split()[0] for line in lines[5:]} == {"hosted"}
    assert "to train on" in lines[3] and "zero_shot about" in lines[3] and "fine_tuned about" in lines[3]
    assert "at $0.10 an hour (the default)" in lines[4]
    offers = [line.split()[1].rstrip(":") for line in lines[5:]]
    assert offers[:2] == ["openai/gpt-4o-mini", "tinker/qwen3-8b"] and "together/qwen3.5-9b" in offers
    assert "runpod/h100-sxm" not in offers  # neither named by the recipe nor a trainer
    assert all("training $" in line and "(read 20" in line for line in lines[5:])
    assert "micro-batches of up to " in lines[1] and "by their shapes, models up to " in lines[1]
    assert "(6 steps of" in lines[2]
    assert float(lines[0].split()[1]) > 0.5  # GiB: the process alone holds more
    assert not list(tmp_path.glob("luthier-estimate-*"))


def test_a_run_without_baselines_ends_too(recipe: Path, tmp_path: Path) -> None:
    lonely = recipe.parent / "lonely.toml"
    lonely.write_text(
        recipe.read_text().replace("[evaluation.systems.zero_shot]\ntune_rows = 0\n", ""), encoding="utf-8"
    )
    assert main(["run", str(lonely), "--out", str(tmp_path / "out"), "--set", "training.steps=3"]) == 0
    assert [s["name"] for s in load(tmp_path / "out/report.json")["systems"]] == ["fine_tuned"]


def test_a_broken_schema_is_told_before_anything_is_measured(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "schema.json").write_text("{broken", encoding="utf-8")
    setting = f"evaluation.json_schema={tmp_path / 'schema.json'}"
    assert main(["run", str(recipe), "--out", str(tmp_path / "out"), "--set", setting]) == 2
    error = capsys.readouterr().err
    assert "schema.json: not a readable JSON file" in error and "test rows" not in error
