"""What training leaves behind: verified when it is opened, found again when a checkpoint is lost, opened by others."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.integration.test_run import RECIPE, write_rows

from luthier.assemble import open_trained
from luthier.cli.main import main
from luthier.errors import ModelError

WEIGHTS = "adapter/adapter_model.safetensors"
# a learning rate at which the best validation is not the last; the tests that need it say so
UNSTEADY = (
    *("optimizer.learning_rate=0.5", "schedule.type=constant"),
    *("training.validate_every=1", "training.patience=false"),
)


def write_recipe(folder: Path, model: Path) -> Path:
    write_rows(folder / "rows.jsonl")
    path = folder / "recipe.toml"
    path.write_text(RECIPE.format(model=model, steps=6), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    return write_recipe(tmp_path_factory.mktemp("artifact"), tiny_model_folder)


def train(recipe: Path, out: Path, *assignments: str) -> int:
    return main(["train", str(recipe), "--out", str(out), *(word for a in assignments for word in ("--set", a))])


@pytest.fixture(scope="module")
def trained(recipe: Path) -> Path:
    out = recipe.parent / "trained"
    assert train(recipe, out) == 0
    return out


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(trained, tmp_path / "run")


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def flip(path: Path) -> None:
    """Change one bit at the end of a file; safetensors reads on without a word."""
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def test_the_artifact_opens_and_says_the_digest_of_every_file(run: Path) -> None:
    assert open_trained(run).injected.trainable
    written = load(run / "adapter/run.json")["files"]
    assert written.keys() == {p.name for p in (run / "adapter").iterdir()} - {"run.json"}


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", "template.jinja"])
def test_a_file_that_was_changed_is_refused_by_name(name: str, run: Path) -> None:
    path = run / "adapter" / name
    if name == "adapter_config.json":
        path.write_text(path.read_text().replace('"lora_alpha": 32', '"lora_alpha": 99'))
        assert "99" in path.read_text()
    else:
        flip(path)
    with pytest.raises(ModelError, match=f"{name} was changed, added or removed"):
        open_trained(run)
    assert main(["evaluate", str(run)]) == 2


@pytest.mark.parametrize("change", ["added", "removed", "record"])
def test_a_file_too_many_or_too_few_is_refused(change: str, run: Path) -> None:
    if change == "added":
        (run / "adapter/extra.bin").write_bytes(b"x")
    elif change == "removed":
        (run / "adapter/template.jinja").unlink()
    else:
        (run / "adapter/run.json").write_text("{}")
    with pytest.raises(ModelError, match=r"extra.bin|template.jinja|run.json is damaged"):
        open_trained(run)


def best_folder(run: Path) -> Path:
    return run / "checkpoints" / f"step-{load(run / 'training.json')['best_step']:06d}"


@pytest.fixture(scope="module")
def unsteady(recipe: Path) -> Path:
    out = recipe.parent / "unsteady"
    assert train(recipe, out, *UNSTEADY) == 0
    return out


def test_a_lost_best_checkpoint_is_replaced_by_the_whole_artifact(
    recipe: Path, unsteady: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(unsteady, tmp_path / "run")
    before, summary = (run / WEIGHTS).read_bytes(), load(run / "training.json")
    flip(best_folder(run) / "trainable.safetensors")
    assert train(recipe, run, *UNSTEADY) == 0
    assert "the best checkpoint is damaged, but" in capsys.readouterr().err
    assert (run / WEIGHTS).read_bytes() == before
    assert load(run / "training.json")["best_step"] == summary["best_step"]


def test_without_either_the_newest_whole_checkpoint_is_taken_aloud(
    recipe: Path, unsteady: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(unsteady, tmp_path / "run")
    summary = load(run / "training.json")
    assert summary["best_step"] < summary["steps"], "the best must not be the newest"
    flip(best_folder(run) / "trainable.safetensors")
    flip(run / WEIGHTS)
    assert train(recipe, run, *UNSTEADY) == 0
    assert "The newest whole one is used instead" in capsys.readouterr().err
    after = load(run / "training.json")
    assert after["best_step"] == summary["steps"]
    assert after["best_validation_loss"] > summary["best_validation_loss"]
    assert open_trained(run).injected.trainable


def test_auto_precision_is_decided_once(recipe: Path, run: Path) -> None:
    """A loaded machine may measure another speed at the next start; the run, its evaluation and its server may not."""
    assert load(run / "recipe.json")["model"]["precision"] == "auto"
    manifest = load(run / "manifest.json")
    now = manifest["held"]["precision"]
    earlier = "float32" if now == "bfloat16" else "bfloat16"  # what an earlier start might have found
    manifest["held"]["precision"] = earlier
    (run / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    shutil.rmtree(run / "checkpoints")
    shutil.rmtree(run / "adapter")
    assert train(recipe, run) == 0
    assert load(run / "manifest.json")["held"]["precision"] == earlier
    assert str(open_trained(run).loaded.dtype) == f"torch.{earlier}"


def test_a_fully_trained_model_is_one_that_anyone_can_open(recipe: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = tmp_path / "run"
    assert train(recipe, run, "adapter.type=full", "optimizer.learning_rate=1e-3", "model.precision=bfloat16") == 0
    trained = open_trained(run)
    model = AutoModelForCausalLM.from_pretrained(run / "adapter")
    tokenizer = AutoTokenizer.from_pretrained(run / "adapter")
    assert model.dtype == torch.float32
    assert model.generation_config.eos_token_id == trained.loaded.model.generation_config.eos_token_id  # type: ignore[union-attr]
    messages = [{"role": "user", "content": "9 Main Street"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    from luthier.examples import Message

    assert list(ids) == trained.template.prompt_ids([Message("user", "9 Main Street")])
    with torch.no_grad():
        inputs = torch.tensor([ids])
        assert torch.equal(model(inputs).logits, trained.loaded.model(inputs).logits)


def test_merged_runs_open_as_one_and_compute_the_mean_of_their_updates(recipe: Path, tmp_path: Path) -> None:
    first, other, out = (tmp_path / name for name in ("first", "other", "merged"))
    assert train(recipe, first, "model.precision=float32") == 0
    assert train(recipe, other, "model.precision=float32", "adapter.init=pissa", "adapter.rank=4") == 0
    assert main(["merge", str(first), f"{other}=0.25", "--out", str(out)]) == 0
    found = open_trained(out)
    ids = torch.arange(5, 25)[None]
    found.injected.merge()
    wanted = open_trained(first)
    plain = {name: p.detach().clone() for name, p in found.loaded.model.named_parameters()}
    with wanted.injected.disabled():
        base = {n.replace(".base.", "."): p.detach().clone() for n, p in wanted.loaded.model.named_parameters()}
    opened = [wanted, open_trained(other)]
    for run in opened:
        run.injected.merge()
    merged = [dict(run.loaded.model.named_parameters()) for run in opened]
    for name, weight in plain.items():
        expected = base[name] + 0.5 * (merged[0][name] - base[name]) + 0.25 * (merged[1][name] - base[name])
        torch.testing.assert_close(weight, expected, atol=1e-5, rtol=0)
    with torch.no_grad():
        logits = [run.loaded.model(ids).logits for run in (found, *opened)]
    assert not torch.allclose(logits[0], logits[1], atol=1e-3)
    record = load(out / "adapter/run.json")["merged"]
    assert main(["evaluate", str(out)]) == 0
    measured = load(out / "evaluation.json")["systems"]
    assert {"zero_shot", "fine_tuned"} <= {system["name"] for system in measured}
    assert record["method"] == "linear" and [part["weight"] for part in record["of"]] == [0.5, 0.25]


def test_merging_refuses_what_does_not_belong_together(
    recipe: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = tmp_path / "full"
    assert train(recipe, full, "adapter.type=full") == 0
    capsys.readouterr()
    for runs, wanted in (
        ([str(full)], "adapter_config.json"),
        ([str(tmp_path / "nothing")], "adapter"),
        ([f"{trained}=much"], "expected RUN=WEIGHT with a number"),
    ):
        assert main(["merge", *runs, "--out", str(tmp_path / "out")]) == 2
        assert wanted in capsys.readouterr().err
    assert main(["merge", f"{trained}=0.5", "--out", str(trained)]) == 2
    assert "merge into another folder" in capsys.readouterr().err
    assert main(["merge", str(trained), "--method", "ties", "--set", "density=2", "--out", str(tmp_path / "o")]) == 2
    assert "density = 2" in capsys.readouterr().err
