"""Every recipe that ships runs to its verdict, shrunk to a few steps, on the real model."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.small_encoders import write_encoder

from luthier.cli.main import main
from luthier.errors import DataError

pytestmark = pytest.mark.slow
RECIPES = Path(__file__).parents[2] / "recipes"


def ran(recipe: str, out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The report of a run of the recipe with other settings."""
    assignments = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    assert main(["run", str(RECIPES / recipe), "--out", str(out), *assignments]) == 0
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    return report


def test_each_has_its_test() -> None:
    tested = {"addresses", "bake", "classify", "constitution", "distill", "embedder"}
    tested |= {"feedback", "reinforcement", "reranker", "toolcalls"}
    assert {path.stem for path in RECIPES.glob("*.toml")} == tested


@pytest.mark.parametrize("name", ["embedder", "reranker"])
def test_retrievers_run_to_their_end(name: str, tmp_path: Path) -> None:
    """On a random encoder, since it is the settings that are looked at."""
    write_encoder(tmp_path / "base")
    rows, corpus = [], []
    for number in range(40):
        text = f"the {number} bridge"
        corpus.append({"id": f"p{number}", "title": f"{number}", "text": text})
        rows.append({"question": f"where is {number}?", "answers": ["-"], "gold_passage_ids": [f"p{number}"]})
    for file, values in (("rows.jsonl", rows), ("corpus.jsonl", corpus)):
        (tmp_path / file).write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    settings = {
        "model.name": str(tmp_path / "base"),
        "data.train": str(tmp_path / "rows.jsonl"),
        "retrieval.corpus": str(tmp_path / "corpus.jsonl"),
        "retrieval.embedder": str(tmp_path / "base"),
        "training.steps": 3,
    }
    assignments = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    assert main(["run", str(RECIPES / f"{name}.toml"), "--out", str(tmp_path / "run"), *assignments]) == 0
    assert (tmp_path / "run/adapter/run.json").is_file() and (tmp_path / "run/retrieval.json").is_file()


def test_reinforcement_can_be_read_and_fits_the_run_that_it_starts_from() -> None:
    from luthier.assemble import adapter_of, objective_of
    from luthier.recipe import load

    recipe, start = load(RECIPES / "reinforcement.toml"), load(RECIPES / "addresses.toml")
    assert objective_of(recipe).model_dump()["loss_type"] == "dapo"
    adapter = adapter_of(recipe).model_dump()
    assert adapter.pop("start_from").endswith("runs/demo") and adapter.items() <= adapter_of(start).model_dump().items()
    assert recipe.data.train == start.data.train and recipe.data.test_share == start.data.test_share


def test_constitution_can_be_read_and_its_parts_fit() -> None:
    """All stages run in test_constitution.py, with a tiny model."""
    from luthier.constitution import require_fit
    from luthier.recipe import load

    recipe = load(RECIPES / "constitution.toml")
    settings = require_fit(recipe)
    assert settings.rounds == 2 and settings.harmless.endswith("harmless.jsonl") and recipe.data.test_share == 0.2


def test_addresses(tmp_path: Path, tiny_model_folder: Path) -> None:
    """`make demo` runs it with its own model, whose gates are a test of their own."""
    from luthier.cli.commands.data import find_example, load_importer

    try:
        load_importer(find_example("addresses"))(tmp_path)
    except DataError as error:
        pytest.skip(f"the data of the recipe cannot be obtained here: {error}")
    settings = {
        "data.train": str(tmp_path / "addresses.jsonl"),
        "model.name": str(tiny_model_folder),
        "evaluation.json_schema": str(tmp_path / "schema.json"),
        "evaluation.max_rows": 3,
        "evaluation.max_new_tokens": 24,
        "evaluation.systems.zero_shot.tune_rows": 0,
        "evaluation.systems.few_shot.tune_rows": 0,
        "evaluation.forgetting.max_rows": 20,
        "evaluation.forgetting.max_tokens": 512,
        "training.steps": 2,
        "data.validation_share": 0.01,
    }
    report = ran("addresses.toml", tmp_path / "out", settings)
    wanted = {"zero_shot", "few_shot", "fine_tuned", "usaddress", "usaddress_retrained"}
    assert {system["name"] for system in report["systems"]} == wanted
    assert report["verdict"]["recommendation"] == "not_yet"  # three rows can tell nothing apart, and it says so


def test_classify(tmp_path: Path, tiny_model_folder: Path) -> None:
    """Its own ladder, with a small encoder for the probe."""
    words = ("river", "engine", "soup", "bread")
    rows = [{"text": f"Where is the {words[n % 4]} {n * 37 % 991}?", "label": words[n % 4]} for n in range(200)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "data.train": str(tmp_path / "texts.jsonl"),
        "model.name": str(tiny_model_folder),
        "training.steps": 6,
        "evaluation.max_rows": 8,
        "evaluation.max_new_tokens": 8,
        "evaluation.systems.zero_shot.tune_rows": 2,
        "evaluation.systems.few_shot.tune_rows": 2,
        "evaluation.systems.linear_probe.embedder": str(write_encoder(tmp_path / "encoder")),
    }
    report = ran("classify.toml", tmp_path / "out", settings)
    sure = {one["name"]: one["metrics"]["calibration_error"] for one in report["systems"] if len(one["metrics"]) > 3}
    assert set(sure) == {"label_likelihood", "linear_probe", "fine_tuned"}
    assert {one["system"] for one in report["abstention"]["systems"]} == set(sure)


def test_feedback(tmp_path: Path, tiny_model_folder: Path) -> None:
    """Sums with a right or a wrong answer: the reference's file is there, and good replies are what is tested."""
    rows = [
        {"prompt": f"What is {n} plus {n % 7}?", "completion": f"It is {n + n % 7 + wrong}.", "label": not wrong}
        for n in range(10, 70)
        for wrong in (n % 3 == 0,)
    ]
    (tmp_path / "feedback.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "data.train": str(tmp_path / "feedback.jsonl"),
        "model.name": str(tiny_model_folder),
        "training.steps": 4,
        "training.rows_per_step": 16,
        "training.validate_every": 4,
        "evaluation.max_rows": 4,
        "evaluation.max_new_tokens": 8,
        "evaluation.systems.zero_shot.tune_rows": 0,
        "evaluation.forgetting.max_rows": 20,
        "evaluation.forgetting.max_tokens": 512,
    }
    report = ran("feedback.toml", tmp_path / "out", settings)
    assert "zero_shot" in {system["name"] for system in report["systems"]}  # so few steps may keep none of them
    assert (tmp_path / "out/reference.safetensors").is_file()
    lines = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert lines[0]["loss"] == pytest.approx(0.5, abs=1e-3) and "validation_kl" in lines[-1]
    asked = [json.loads(line) for line in (tmp_path / "out/records/zero_shot.jsonl").read_text().splitlines()]
    right = {row["prompt"]: row["completion"] for row in rows if row["label"]}
    assert asked and all(right[record["prompt"][-1]["content"]] == record["target"] for record in asked)


PLACES = [
    {
        "prompt": f"Where is number {n * 37 % 991}?",
        "completion": f"Number {n * 37 % 991} is in Main Street.",
    }
    for n in range(60)
]
SMALL = {
    "training.steps": 3,
    "evaluation.max_rows": 4,
    "evaluation.max_new_tokens": 8,
    "evaluation.forgetting.multiple_choice": "none",
    "evaluation.forgetting.text": "none",
}


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_distill(tmp_path: Path, tiny_model_folder: Path) -> None:
    """The teacher is the same model, so there is nothing to learn of it and the rows teach the rest."""
    settings = {
        **SMALL,
        "data.train": written(tmp_path / "rows.jsonl", PLACES),
        "model.name": str(tiny_model_folder),
        "teacher": json.dumps({"model": str(tiny_model_folder)}).replace('":', '" ='),
        "evaluation.systems": "{ fine_tuned = {} }",
    }
    report = ran("distill.toml", tmp_path / "out", settings)
    assert {system["name"] for system in report["systems"]} == {"fine_tuned"} and report["baking"] is None
    lines = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert lines[0]["divergence"] == pytest.approx(0, abs=1e-6)
    assert lines[0]["loss"] == pytest.approx(0.5 * lines[0]["cross_entropy"], abs=1e-6) and lines[0]["loss"] > 1


def test_bake(tmp_path: Path, tiny_model_folder: Path) -> None:
    (tmp_path / "prompt.txt").write_text("Read the number and say where it is. " * 4, encoding="utf-8")
    settings = {
        **SMALL,
        "data.train": written(tmp_path / "questions.jsonl", PLACES[:40]),
        "data.test": written(tmp_path / "test.jsonl", PLACES[40:52]),
        "model.name": str(tiny_model_folder),
        "teacher.prompt": str(tmp_path / "prompt.txt"),
        "teacher.examples": written(tmp_path / "examples.jsonl", PLACES[52:54]),
        "teacher.replies": "rows",  # an untrained model's do not end
        "teacher.max_new_tokens": 256,
    }
    report = ran("bake.toml", tmp_path / "out", settings)
    assert {system["name"] for system in report["systems"]} == {"prompted", "zero_shot", "fine_tuned"}
    assert report["baking"]["prompt_tokens"] - report["baking"]["tokens_without"] > 60
