"""Every recipe that ships runs to its verdict, shrunk to two steps, on the real model and the real data."""

import json
from pathlib import Path

import pytest

from luthier.cli.main import main
from luthier.errors import DataError

pytestmark = pytest.mark.slow
FOLDER = Path(__file__).parents[2] / "recipes"
GOES_ON = FOLDER / "reinforcement.toml"
"""Starts from what another recipe trained."""
RECIPES = sorted(set(FOLDER.glob("*.toml")) - {GOES_ON})


def test_one_that_goes_on_can_be_read_and_fits_the_run_that_it_starts_from() -> None:
    from luthier.assemble import adapter_of, objective_of
    from luthier.recipe import load

    recipe, start = load(GOES_ON), load(FOLDER / "addresses.toml")
    assert objective_of(recipe).model_dump()["loss_type"] == "dapo"
    adapter = adapter_of(recipe).model_dump()
    assert adapter.pop("start_from").endswith("runs/demo") and adapter.items() <= adapter_of(start).model_dump().items()
    assert recipe.data.train == start.data.train and recipe.data.test_share == start.data.test_share


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_it_runs_to_a_verdict(recipe: Path, tmp_path: Path, real_model_folder: Path) -> None:
    from luthier.cli.commands.data import find_example, load_importer

    try:
        load_importer(find_example(recipe.stem))(tmp_path)
    except DataError as error:
        pytest.skip(f"the data of {recipe.stem} cannot be obtained here: {error}")
    settings = {
        "data.train": str(tmp_path / "addresses.jsonl"),
        "evaluation.json_schema": str(tmp_path / "schema.json"),
        "evaluation.max_rows": 6,
        "evaluation.max_new_tokens": 48,
        "evaluation.systems.zero_shot.tune_rows": 0,
        "evaluation.systems.few_shot.tune_rows": 0,
        "evaluation.forgetting.max_rows": 20,
        "evaluation.forgetting.max_tokens": 512,
        "training.steps": 2,
        "data.validation_share": 0.01,
    }
    assignments = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    assert main(["run", str(recipe), "--out", str(tmp_path / "out"), *assignments]) == 0
    report = json.loads((tmp_path / "out/report.json").read_text())
    wanted = {"zero_shot", "few_shot", "fine_tuned", "usaddress", "usaddress_retrained"}
    assert {system["name"] for system in report["systems"]} == wanted
    assert report["verdict"]["recommendation"] == "not_yet"  # six rows can tell nothing apart, and it says so
