"""A run that continues an earlier one: it begins as that ended, says so, and needs it no longer once it has begun."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.integration.test_artifact import flip, train, write_recipe

from luthier import assemble
from luthier.cli.main import main
from luthier.config import read_toml
from luthier.data_stage import prepare_data
from luthier.engine.loop import Step
from luthier.errors import ModelError, RecipeError
from luthier.examples import Row
from luthier.models.forest import build_batch
from luthier.models.scorer import Scorer
from luthier.progress import Silent
from luthier.rebase import plan_rebase
from luthier.recipe import load
from luthier.run_folder import RunFolder
from luthier.stages import Opened, Prepared, open_run, prepare_training, train_stage

pytestmark = pytest.mark.slow  # each opens a run

WEIGHTS = "adapter/adapter_model.safetensors"
BATCH = build_batch([Row(tuple(range(10, 30)), (0.0,) * 8 + (1.0,) * 12)])


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    return write_recipe(tmp_path_factory.mktemp("starts"), tiny_model_folder)


@pytest.fixture(scope="module")
def first(recipe: Path) -> Path:
    """A trained run; its seed is another one than the default."""
    out = recipe.parent / "first"
    assert train(recipe, out, "seed=5", "training.steps=8") == 0
    return out


@pytest.fixture(scope="module")
def pairs(recipe: Path, first: Path) -> Path:
    """A recipe of preference pairs that continues it."""
    rows = [
        {"prompt": f"Read {n * 37 % 991} Main Street, unit {n}.", "chosen": f"{n * 37 % 991}", "rejected": f"No. {n}"}
        for n in range(40)
    ]
    (recipe.parent / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    path = recipe.parent / "pairs.toml"
    head = recipe.read_text(encoding="utf-8").partition("[optimizer]")[0].replace("rows.jsonl", "pairs.jsonl")
    path.write_text(
        f'{head}[adapter]\nstart_from = "first"\n[objective]\ntype = "dpo"\n'
        "[training]\nsteps = 6\nrows_per_step = 4\nsave_every = 1\n",
        encoding="utf-8",
    )
    return path


def prepared(path: Path, out: Path, *settings: str) -> Prepared:
    return prepare_training(opened_run(path, out, *settings), Silent())


def opened_run(path: Path, out: Path, *settings: str) -> Opened:
    recipe, folder = load(path, settings), RunFolder(out)
    folder.open(recipe, path)
    return open_run(recipe, folder, prepare_data(recipe, folder, Silent()), Silent())


def logprobs(scorer: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = scorer.token_logprobs(BATCH)
        return found


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_before_its_first_step_it_is_the_earlier_runs_model_bit_for_bit(
    recipe: Path, first: Path, tmp_path: Path
) -> None:
    earlier = assemble.open_trained(first)
    ready = prepared(recipe, tmp_path / "second", f"adapter.start_from={first}")
    run, opened = ready.run, ready.opened
    run.model.eval()
    assert torch.equal(logprobs(run.models.policy), logprobs(Scorer(earlier.loaded.model)))
    with run.injected.disabled(), earlier.base():
        base = logprobs(run.models.policy)
        assert torch.equal(base, logprobs(Scorer(earlier.loaded.model)))
    assert not torch.equal(base, logprobs(run.models.policy))
    # where the earlier run lies decides nothing, and what lies there does
    elsewhere = load(recipe, ["adapter.start_from=/elsewhere"])
    parts = opened.loaded, opened.template, opened.units
    assert opened.start is not None
    assert run.fingerprint == assemble.fingerprint_of(elsewhere, *parts, opened.start.files)
    assert run.fingerprint != assemble.fingerprint_of(elsewhere, *parts, {**opened.start.files, WEIGHTS: "0"})


def test_the_reference_of_preferences_is_the_start_and_stays_there(pairs: Path, first: Path, tmp_path: Path) -> None:
    start = logprobs(Scorer(assemble.open_trained(first).loaded.model))
    ready = prepared(pairs, tmp_path / "dpo")
    gates = {gate["gate"]: gate for gate in read(tmp_path / "dpo/preflight.json")}
    assert gates["reference_is_policy"]["details"]["largest_difference"] == 0
    assert gates["adapter_start"]["details"]["off"] == 0
    losses = []
    run = train_stage(ready, Silent(), lambda step: losses.append(step.metrics["loss"]))
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6) and losses[-1] < losses[0]
    assert run.models.reference is not None
    assert torch.equal(logprobs(run.models.reference), start)
    assert not torch.equal(logprobs(run.models.policy), start)


def test_the_reference_has_no_dropout_amid_a_step(pairs: Path, first: Path, tmp_path: Path) -> None:
    start = logprobs(Scorer(assemble.open_trained(first).loaded.model))
    opened = opened_run(pairs, tmp_path / "run", "adapter.dropout=0.5")
    assert opened.start is not None
    models = assemble.make_trainable(opened.recipe, opened.loaded, opened.start.folder).models
    model: Any = opened.loaded.model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    assert torch.equal(logprobs(models.reference), start) and torch.equal(logprobs(models.reference), start)
    assert not torch.equal(logprobs(models.policy), logprobs(models.policy)), "no dropout, so this shows nothing"
    assert [module.training for module in model.modules()] == modes
    model.eval()
    objective, batch = assemble.objective_of(opened.recipe), build_batch(opened.units["train"][0])
    assert float(objective.loss(models, batch).total.detach()) == pytest.approx(math.log(2), abs=1e-6)


def test_record_manifest_and_report_say_what_it_started_from(recipe: Path, first: Path, tmp_path: Path) -> None:
    out = tmp_path / "second"
    command = ["run", str(recipe), "--out", str(out), "--set", f"adapter.start_from={first}"]
    assert main(command) == 0
    files = read(first / "adapter/run.json")["files"]
    manifest, record = read(out / "manifest.json"), read(out / "adapter/run.json")
    assert manifest["started_from"] == record["started_from"]
    assert record["started_from"]["run"] == str(first) and record["started_from"]["files"] == files
    assert record["started_from"]["training"] == read(first / "adapter/run.json")["training"]
    (parent,) = manifest["parents"]
    assert parent["relation"] == "continuation of" and parent["id"] == read(first / "manifest.json")["id"]
    report = read(out / "report.json")
    assert report["run"]["started_from"]["files"][Path(WEIGHTS).name] == files[Path(WEIGHTS).name]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert f"It continues {first.parent.name}/first" in page and files[Path(WEIGHTS).name] in page
    loss = {run: read(run / "training.json") for run in (first, out)}
    assert loss[out]["start_validation_loss"] < loss[first]["start_validation_loss"]
    assert f"{report['training']['start_validation_loss']:.4f} before the first step" in page
    with pytest.raises(RecipeError, match=r"rebase that run first, .* --set adapter.start_from=FOLDER"):
        plan_rebase(out, "another-base")


def test_it_goes_on_without_the_earlier_run_and_ends_with_the_same_bits(
    pairs: Path, first: Path, tmp_path: Path
) -> None:
    gone = shutil.copytree(first, tmp_path / "gone")
    named = f"adapter.start_from={gone}"
    train_stage(prepared(pairs, tmp_path / "whole", named), Silent())

    class Stopped(Exception):
        pass

    def stop(step: Step) -> None:
        if step.number == 4:
            raise Stopped

    with pytest.raises(Stopped):
        train_stage(prepared(pairs, tmp_path / "cut", named), Silent(), stop)
    shutil.rmtree(gone)
    assert train(pairs, tmp_path / "cut", named) == 0
    assert (tmp_path / "cut" / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()
    with pytest.raises(ModelError, match="no trained model here"):
        prepared(pairs, tmp_path / "new", named)


def test_a_changed_file_is_refused_there_and_here(pairs: Path, first: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(first, tmp_path / "broken")
    flip(broken / WEIGHTS)
    with pytest.raises(ModelError, match=r"adapter_model.safetensors was changed"):
        prepared(pairs, tmp_path / "a", f"adapter.start_from={broken}")
    prepared(pairs, tmp_path / "b")
    flip(tmp_path / "b/start" / WEIGHTS)
    with pytest.raises(ModelError, match=r"start/adapter: adapter_model.safetensors was changed"):
        prepared(pairs, tmp_path / "b")
    prepared(pairs, tmp_path / "c")
    manifest = read(tmp_path / "c/manifest.json")
    manifest["started_from"]["files"]["run.json"] = "another"
    (tmp_path / "c/manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(ModelError, match="is not what this run started from"):
        prepared(pairs, tmp_path / "c")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("adapter.rank=8", "adapter.alpha=16"), r"rank is 8 here and was 16 there: write rank = 16\n.*alpha = 32.0"),
        (("adapter.layers=[1]",), r"layers is \[1\] here and was None there: leave layers out"),
        (("adapter.type=dora",), r"type is dora here and was lora there: write type = .lora."),
        (("model.quantize=nf4",), r"quantize is nf4 here and was none there: write quantize = 'none' in \[model\]"),
        (("model.template=chatml_tools",), r"its template was another one .* write template = '.*template.jinja'"),
    ],
)
def test_what_does_not_agree_is_named_with_what_to_write(
    settings: tuple[str, ...], message: str, pairs: Path, first: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=message):
        prepared(pairs, tmp_path / "run", *settings)


def test_another_base_is_named_too(pairs: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(tiny_model_folder, tmp_path / "other")
    flip(other / "model.safetensors")
    with pytest.raises(RecipeError, match=f"its files are not those of .*: write name = '{tiny_model_folder}'"):
        prepared(pairs, tmp_path / "run", f"model.name={other}")


def test_another_number_format_is_named_too(pairs: Path, first: Path, tmp_path: Path) -> None:
    was = read(first / "adapter/run.json")["model"]["precision"]
    other = "float32" if was == "bfloat16" else "bfloat16"
    with pytest.raises(RecipeError, match=f"is {other} here and was {was} there: write precision = '{was}'"):
        prepared(pairs, tmp_path / "run", f"model.precision={other}")


def test_dropout_and_learning_rates_may_change(pairs: Path, tmp_path: Path) -> None:
    changed = ("adapter.loraplus_ratio=4.0", "seed=9", "optimizer.learning_rate=1e-3", "objective.beta=0.3")
    assert prepared(pairs, tmp_path / "run", *changed).run.state.step == 0


def test_a_quantized_base_continues_over_the_same(recipe: Path, tmp_path: Path) -> None:
    assert train(recipe, tmp_path / "first", "model.quantize=nf4") == 0
    run = prepared(recipe, tmp_path / "b", "model.quantize=nf4", f"adapter.start_from={tmp_path / 'first'}").run
    run.model.eval()
    earlier = assemble.open_trained(tmp_path / "first")
    assert torch.equal(logprobs(run.models.policy), logprobs(Scorer(earlier.loaded.model)))


def test_a_whole_model_is_continued_by_naming_it_as_the_base(recipe: Path, tmp_path: Path) -> None:
    full = ("adapter.type=full", "optimizer.learning_rate=1e-3", "model.precision=float32")
    assert train(recipe, tmp_path / "full", *full) == 0
    with pytest.raises(RecipeError, match=r"Name that as the base: model.name = '.*full/adapter'"):
        load(recipe, [*full, f"adapter.start_from={tmp_path / 'full'}"])
    run = prepared(recipe, tmp_path / "next", *full, f"model.name={tmp_path / 'full/adapter'}").run
    run.model.eval()
    earlier = assemble.open_trained(tmp_path / "full")
    assert torch.equal(logprobs(run.models.policy), logprobs(Scorer(earlier.loaded.model)))


def test_a_relative_path_is_read_from_the_recipes_folder(pairs: Path, first: Path) -> None:
    assert read_toml(pairs)["adapter"]["start_from"] == "first"
    assert load(pairs).dump()["adapter"]["start_from"] == str(first)
