"""Remedies against forgetting: which are tried, which wins, and what a share of a training is."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine_runs import random_units

from luthier import assemble
from luthier.cli.main import main
from luthier.config import build
from luthier.data_stage import Data
from luthier.evaluate import Question
from luthier.evaluation.forgetting import Items, half_of, worst_loss
from luthier.evaluation.probe import questions
from luthier.evaluation.schema import read_schema
from luthier.evaluation.task import build_metrics
from luthier.examples import Conversation, Message, Where
from luthier.models.forest import build_batch
from luthier.models.scorer import Scorer
from luthier.recipe import Recipe
from luthier.remember.candidates import candidates, recipe_with
from luthier.remember.choice import Point, choose, frontier
from luthier.remember.interpolate import obstacle, write_share
from luthier.remember.measure import Judge
from luthier.run_folder import RunFolder


def names(tables: dict[str, Any], rate: float = 1e-3, steps: int = 100) -> list[str]:
    return [one.name for one in candidates(build(Recipe, {"data": {"train": "x"}, **tables}), rate, steps)]


def test_what_costs_only_measuring_comes_first_and_every_remedy_is_a_recipe() -> None:
    recipe = build(Recipe, {"data": {"train": "x", "replay": "y", "replay_share": 0.0}})
    found = candidates(recipe, 1e-3, 100)
    assert [one.name for one in found] == [
        "plain",
        *("share-0.75", "share-0.5", "share-0.25"),
        *("replay-0.1", "kl-0.3", "pull", "rank-4", "rate", "kl-1", "replay-0.3"),
    ]
    changed = {one.name: recipe_with(recipe, one).dump() for one in found}
    assert changed["plain"] == changed["share-0.5"] == recipe.dump()
    assert changed["replay-0.3"]["data"]["replay_share"] == 0.3
    assert changed["kl-1"]["objective"] == {"type": "sft_kl", "kl_weight": 1.0}
    assert changed["pull"]["optimizer"]["pull_to_start"] == pytest.approx(3 / (1e-3 * 100))
    assert changed["rank-4"]["adapter"]["rank"] == 4
    assert changed["rank-4"]["adapter"]["alpha"] / 4 == recipe.dump()["adapter"]["alpha"] / 16
    assert changed["rate"]["optimizer"]["learning_rate"] == pytest.approx(3.3e-4)


def test_a_remedy_that_the_recipe_has_already_or_cannot_have_is_not_tried() -> None:
    assert not [name for name in names({}) if "replay" in name]
    assert "replay-0.1" not in names({"data": {"train": "x", "replay": "y"}})
    assert "replay-0.3" in names({"data": {"train": "x", "replay": "y"}})
    assert [n for n in names({"objective": {"type": "sft_kl"}}) if n.startswith("kl")] == ["kl-1"]
    assert not [n for n in names({"objective": {"type": "dpo"}}) if n.startswith("kl")]
    assert "pull" not in names({"optimizer": {"type": "adamw", "pull_to_start": 1e6}})
    assert not [n for n in names({"adapter": {"type": "full"}}) if n.startswith("rank")]


@pytest.mark.parametrize(("scaling", "alpha"), [("rank", 4.0), ("sqrt_rank", 20 * 0.2**0.5)])
def test_a_lower_rank_keeps_the_scale_where_four_does_not_divide_it(scaling: str, alpha: float) -> None:
    adapter = {"rank": 10, "alpha": 20, "scaling": scaling}
    recipe = build(Recipe, {"data": {"train": "x"}, "adapter": adapter})
    lower = next(one for one in candidates(recipe, 1e-3, 100) if one.remedy == "rank")
    changed = recipe_with(recipe, lower).dump()["adapter"]
    assert changed["rank"] == 2 and changed["alpha"] == pytest.approx(alpha, rel=1e-5)


def test_what_was_measured_by_another_schema_or_metric_counts_no_more(tmp_path: Path) -> None:
    def judge(schema: Path, metric: str = "schema_valid") -> Judge:
        metrics = build_metrics([metric], str(schema))
        question = Question((), [], [], "json", metrics, metric, read_schema(schema), 8, False)
        rows = [
            Conversation((Message("user", f"say {n}"), Message("assistant", "{}")), where=Where("a", n))
            for n in range(2)
        ]
        return Judge(replace(question, validation=rows), Data((), (), ()), build(Recipe, {"data": {"train": "x"}}))

    schema, folder = tmp_path / "schema.json", RunFolder(tmp_path, listed=False)
    schema.write_text('{"required": ["a"]}')
    folder.write("measured.json", {"key": judge(schema).key(None), "statistics": [[1.0]], "ability": {}})
    assert judge(schema).kept(folder, None) is not None
    assert judge(schema, "json_valid").kept(folder, None) is None
    schema.write_text('{"required": ["b"]}')
    assert judge(schema).kept(folder, None) is None


POINTS = [Point("plain", 0.50, 0.20), Point("half", 0.45, 0.08), Point("kl", 0.49, 0.10), Point("worse", 0.40, 0.15)]


def test_the_frontier_is_what_no_other_one_beats() -> None:
    assert frontier(POINTS) == ["plain", "half", "kl"]
    twins = [Point("a", 0.5, 0.1), Point("b", 0.5, 0.1), Point("c", 0.5, 0.2)]
    assert frontier(twins) == ["a", "b"]


@pytest.mark.parametrize(
    ("limit", "same_gain", "winner"),
    [
        (0.5, 0.0, "plain"),
        (0.12, 0.0, "kl"),
        (0.09, 0.0, "half"),
        (0.01, 0.0, "half"),  # none forgets so little: the nearest
        (None, 0.0, "plain"),
        (None, 0.02, "kl"),
        (None, 0.06, "half"),
    ],
)
def test_the_best_that_forgets_little_enough_wins(limit: float | None, same_gain: float, winner: str) -> None:
    found = choose(POINTS, limit, same_gain)
    assert found.name == winner
    assert ("most_forgetting" in found.reason) and (limit is None) == ("no limit" in found.reason)


def test_the_halves_are_disjoint_whole_and_stay_when_an_item_is_added() -> None:
    windows = tuple((1, *range(n, n + 20)) for n in range(40))
    whole = Items(tuple(questions()[:120]), windows, {"text": "builtin"})
    selection, confirmation = half_of(whole, "selection"), half_of(whole, "confirmation")
    assert set(selection.questions) | set(confirmation.questions) == set(whole.questions)
    assert set(selection.windows) | set(confirmation.windows) == set(windows)
    assert not set(selection.questions) & set(confirmation.questions)
    assert not set(selection.windows) & set(confirmation.windows)
    assert 40 <= len(selection.questions) <= 80 and 12 <= len(selection.windows) <= 28
    fewer = half_of(Items(whole.questions[1:], windows, {}), "selection")
    assert set(fewer.questions) == set(selection.questions) - {whole.questions[0]}
    assert "chosen" in confirmation.sources["text"] != selection.sources["text"]


def measure(name: str, before: float, change: float, better: bool) -> dict[str, Any]:
    difference = {"value": change, "low": change - 0.01, "high": change + 0.01}
    return {"name": name, "before": {"value": before}, "difference": difference, "higher_is_better": better}


def test_the_loss_that_counts_is_the_largest_share_in_either_direction() -> None:
    accuracy = measure("multiple_choice_accuracy", 0.5, -0.05, True)
    text = measure("text_perplexity", 20.0, 4.0, False)
    raw = measure("multiple_choice_accuracy_raw", 0.5, -0.4, True)
    found = worst_loss([accuracy, text, raw])
    assert found is not None and found.measure == "text_perplexity" and found.value == pytest.approx(0.2)
    alone = worst_loss([accuracy])
    assert alone is not None and (alone.low, alone.value, alone.high) == pytest.approx((0.08, 0.1, 0.12))
    gained = worst_loss([measure("text_perplexity", 20.0, -1.0, False)])
    assert gained is not None and gained.value == pytest.approx(-0.05)
    assert worst_loss([]) is None


RECIPE = """
[model]
name = "{model}"
[data]
train = "rows.jsonl"
replay = "other.jsonl"
replay_share = 0
[training]
steps = 8
rows_per_step = 4
max_tokens = 128
[optimizer]
learning_rate = 1e-2
[evaluation]
max_rows = 6
max_new_tokens = 4
primary_metric = "token_accuracy"
metrics = ["token_accuracy"]
[evaluation.systems.fine_tuned]
[evaluation.forgetting]
max_rows = 40
max_tokens = 1024
"""


MADE = ("measured.json", "trained.json", "metrics.jsonl")


def write(path: Path, rows: list[tuple[str, str]]) -> None:
    lines = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in rows]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


@pytest.fixture
def recipe(tmp_path: Path, tiny_model_folder: Path) -> Path:
    words = ("river", "tower", "garden", "window")
    write(
        tmp_path / "rows.jsonl",
        [(f"What is {n * 37 % 101} and {words[n % 4]} {n * 7 % 83}?", f"{words[n % 4]} {n}") for n in range(80)],
    )
    write(tmp_path / "other.jsonl", [(f"Say {words[n % 4]}, number {n * 13 % 97}.", words[n % 4]) for n in range(60)])
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.format(model=tiny_model_folder), encoding="utf-8")
    return path


def train(recipe: Path, out: Path, *settings: str) -> Path:
    assert main(["train", str(recipe), "--out", str(out), *(f"--set={s}" for s in settings)]) == 0
    return out


def logprobs(model: Any) -> torch.Tensor:
    batch = build_batch([row for unit in random_units(3) for row in unit])
    with torch.no_grad():
        return Scorer(model.eval()).token_logprobs(batch)


def test_a_share_of_a_lora_is_its_update_scaled(recipe: Path, tmp_path: Path) -> None:
    artifact = assemble.read_artifact(train(recipe, tmp_path / "out"))
    for share in (0.5, 0.0, 1.0):
        write_share(artifact, share, tmp_path / f"share{share}")
    loaded = artifact.open_base()
    base = logprobs(loaded.model)
    whole = artifact.put_in(loaded.model)
    trained = logprobs(loaded.model)
    for layer in whole.layers.values():  # type: ignore[attr-defined]
        layer.scale *= 0.5
    half = logprobs(loaded.model)
    found = []
    for share in (0.5, 0.0, 1.0):
        other = artifact.open_base()
        assemble.adapter_of(artifact.recipe).restore(other.model, tmp_path / f"share{share}")
        found.append(logprobs(other.model))
    assert (half - base).abs().max() > 1e-3
    for value, expected in zip(found, (half, base, trained), strict=True):
        assert (value - expected).abs().max() < 1e-5
    record = assemble.artifact_record(tmp_path / "share0.5")
    assert record["share"] == 0.5 and record["training"] != artifact.record["training"]


@pytest.mark.parametrize("adapter", ["full", "layer_freeze"])
def test_a_share_of_a_model_that_was_trained_whole_lies_between_it_and_its_base(
    adapter: str, recipe: Path, tmp_path: Path
) -> None:
    out = train(recipe, tmp_path / "out", f"adapter.type={adapter}")
    artifact = assemble.read_artifact(out)
    write_share(artifact, 0.25, tmp_path / "share")
    base = {n: p.detach().float() for n, p in artifact.open_base().model.named_parameters()}
    models = [artifact.open_base().model for _ in range(2)]
    trained = assemble.adapter_of(artifact.recipe).restore(models[0], artifact.folder)
    shared = assemble.adapter_of(artifact.recipe).restore(models[1], tmp_path / "share")
    moved = 0.0
    for name, parameter in shared.trainable.items():
        end = trained.trainable[name].detach()
        moved += float((end - base[name]).abs().max())
        assert (parameter.detach() - (base[name] + 0.25 * (end - base[name]))).abs().max() < 1e-6
    assert moved > 1e-3


@pytest.mark.slow
def test_adapters_that_are_no_sum_with_the_base_have_no_shares(recipe: Path, tmp_path: Path) -> None:
    for number, settings in enumerate((["adapter.type=dora"], ["adapter.type=prompt"], ["adapter.new_tokens=['<a>']"])):
        out = train(recipe, tmp_path / str(number), *settings)
        assert obstacle(assemble.read_artifact(out)), settings
    assert obstacle(assemble.read_artifact(train(recipe, tmp_path / "plain"))) is None


@pytest.mark.slow
def test_remedies_are_tried_kept_and_the_winner_is_what_is_evaluated(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["train", str(recipe), "--out", str(out), "--remember", "--set", "decision.most_forgetting=0.000001"]
    assert main([*command, "--budget", "0"]) == 0
    first = json.loads((out / "remember.json").read_text())
    by_name = {one["name"]: one for one in first["candidates"]}
    assert by_name["plain"]["status"] == "measured" and by_name["share-0.5"]["status"] == "over_budget"
    assert main(command) == 0
    found = json.loads((out / "remember.json").read_text())
    done = {one["name"]: one for one in found["candidates"]}
    assert {one["status"] for one in done.values()} == {"measured"} and len(done) == 11
    chosen = done[found["chosen"]]
    allowed = [one for one in done.values() if one["forgetting"]["value"] <= found["limit"]]
    best = max(allowed, key=lambda one: one["gain"]["value"]) if allowed else None
    assert chosen["chosen"] and chosen["gain"]["value"] == (best or chosen)["gain"]["value"]
    places = out / "adapter", out / f"remember/{chosen['name']}/adapter"
    weights = [assemble.artifact_record(place)["files"] for place in places]
    assert weights[0] == weights[1]
    assert not list(out.glob("remember/*/checkpoints"))

    # what was done is not done again, and the choice is the same
    made = {path: path.stat().st_mtime_ns for path in out.glob("remember/*/*.json*") if path.name in MADE}
    assert main(command) == 0
    assert made == {path: path.stat().st_mtime_ns for path in made} and len(made) > 20
    again = json.loads((out / "remember.json").read_text())
    for one, before in zip(again["candidates"], found["candidates"], strict=True):
        assert {**one, "seconds": 0} == {**before, "seconds": 0}

    # a training that would replace the choice is refused; evaluation goes on from it, on the other half
    assert main(["train", str(recipe), "--out", str(out), "--set", "decision.most_forgetting=0.000001"]) == 2
    assert "luthier evaluate" in capsys.readouterr().err
    assert main(["evaluate", str(out)]) == 0
    forgetting = json.loads((out / "forgetting.json").read_text())
    assert "no remedy was chosen" in forgetting["sources"]["text"]
    for measured in forgetting["measures"]:
        assert measured["n"] + found["items"][measured["name"]] in (40, 8, 9), "the halves make the whole"
    assert main(["report", str(out)]) == 0
    page = (out / "report.html").read_text()
    assert "Remedies that were tried" in page and f"In place is <b>{found['chosen']}</b>" in page
    assert (out / "remember.html").is_file()


FEW = [  # remedies: replay and a lower rate
    *("--set", "adapter.type=ia3", "--set", "objective.type=sft_kl", "--set", "objective.kl_weight=1"),
    *("--set", "optimizer.pull_to_start=1e6"),
]


@pytest.mark.slow
def test_other_rows_to_replay_are_trained_on_anew_and_a_remedy_that_fails_ends_no_search(
    recipe: Path, tmp_path: Path
) -> None:
    out, other = tmp_path / "out", tmp_path / "other.jsonl"
    command = ["train", str(recipe), "--out", str(out), "--remember", *FEW]

    def tried() -> tuple[dict[str, Any], list[str]]:
        assert main(command) == 0
        found = json.loads((out / "remember.json").read_text())
        keys = [
            json.loads((out / f"remember/{name}/trained.json").read_text())["key"] for name in ("replay-0.1", "rate")
        ]
        return {one["name"]: one for one in found["candidates"]}, keys

    first, before = tried()
    assert first["replay-0.1"]["status"] == "measured"
    write(other, [(f"Sing {n * 13 % 97}, will you.", f"song {n}") for n in range(60)])
    _, after = tried()
    assert after[0] != before[0] and after[1] == before[1]
    pair = {"prompt": "Say it.", "chosen": "Yes.", "rejected": "No."}
    other.write_text(json.dumps(pair) + "\n", encoding="utf-8")
    last, _ = tried()
    assert last["replay-0.1"]["status"] == "failed" and "a preference pair" in last["replay-0.1"]["reason"]
    assert last["rate"]["status"] == "measured" and any(one["chosen"] for one in last.values())


def test_without_anything_to_forget_it_is_refused_before_training(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--set", "evaluation.forgetting.text=none", "--set", "evaluation.forgetting.multiple_choice=none"]
    assert main(["train", str(recipe), "--out", str(tmp_path / "out"), "--remember", *settings]) == 2
    assert "evaluation.forgetting" in capsys.readouterr().err and not (tmp_path / "out/checkpoints").exists()
    assert main(["train", str(recipe), "--out", str(tmp_path / "out"), "--budget", "5"]) == 2
    assert "--remember" in capsys.readouterr().err
