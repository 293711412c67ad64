"""`luthier run` with a teacher: a prompt that is left out, another run, sampled replies; killed, resumed, refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from luthier.cli.main import main
from luthier.errors import DataError, RecipeError

RECIPE = """
[model]
name = "{model}"
[data]
train = "rows.jsonl"
validation_share = 0.2
test_share = 0.1
[objective]
{objective}
[teacher]
{teacher}
[optimizer]
learning_rate = 5e-3
[training]
steps = {steps}
rows_per_step = 8
[evaluation]
max_new_tokens = 16
[evaluation.systems]
{systems}
[evaluation.forgetting]
multiple_choice = "none"
text = "none"
"""
ROWS = [
    {"prompt": f"Where is number {i * 37 % 991}?", "completion": f"Number {i * 37 % 991} is in Main Street."}
    for i in range(60)
]
PROMPT = "You are a careful assistant. Read the address and return only its parts. " * 6


def write(
    folder: Path,
    model: Path,
    teacher: str,
    objective: str = 'type = "distill"',
    steps: int = 12,
    systems: str = "prompted = {}\nfine_tuned = {}",
    more: str = "",
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    (folder / "prompt.txt").write_text(PROMPT, encoding="utf-8")
    recipe = folder / "recipe.toml"
    text = RECIPE.format(model=model, objective=objective, teacher=teacher, steps=steps, systems=systems)
    recipe.write_text(text + more, encoding="utf-8")
    return recipe


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def steps_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def baked(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("baked")
    recipe = write(folder, tiny_model_folder, 'prompt = "prompt.txt"')
    assert main(["run", str(recipe), "--out", str(folder / "run")]) == 0
    return folder / "run"


def test_a_prompt_is_baked_and_the_report_says_what_it_saves_and_costs(baked: Path) -> None:
    report = read(baked / "report.json")
    found = report["baking"]
    assert found["prompted"] == "prompted" and found["baked"] == "fine_tuned" and found["n"] == report["evaluation"]["n"] > 0
    saved = found["prompt_tokens"] - found["tokens_without"]
    assert 60 < saved == pytest.approx(saved_by_template(baked))
    d = found["difference"]
    assert d["difference"] == pytest.approx(found["without"]["value"] - found["with_prompt"]["value"])
    assert d["low"] <= d["difference"] <= d["high"] and d["test"] != "not paired: from the two intervals"
    page = (baked / "report.html").read_text(encoding="utf-8")
    assert "Without the prompt" in page and f"{saved:,.0f} tokens less" in page
    steps = steps_of(baked)
    assert steps[-1]["validation_divergence"] < 0.7 * read(baked / "training.json")["start_validation_loss"]


def saved_by_template(run: Path) -> float:
    """Tokens of the prompt as the template writes them, counted on a row."""
    from luthier.assemble import open_trained
    from luthier.examples import Message

    template = open_trained(run).template
    asked = Message("user", ROWS[0]["prompt"])
    return len(template.prompt_ids([Message("system", PROMPT.strip()), asked])) - len(template.prompt_ids([asked]))


def test_what_was_said_is_kept_and_asked_again_only_where_it_is_gone(
    baked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(baked.parent, tmp_path, dirs_exist_ok=True)
    part = run / "teacher/part-000001.safetensors"
    before = part.read_bytes()
    for name in ("adapter", "checkpoints"):
        shutil.rmtree(run / name)
    again = ["train", str(tmp_path / "recipe.toml"), "--out", str(run)]
    assert main(again) == 0
    assert "is asked of" not in capsys.readouterr().err and part.read_bytes() == before
    part.unlink()
    for name in ("adapter", "checkpoints"):
        shutil.rmtree(run / name)
    assert main(again) == 0
    assert "is asked of" in capsys.readouterr().err and part.read_bytes() == before
    (tmp_path / "prompt.txt").write_text("Another prompt.", encoding="utf-8")
    with pytest.raises(Exception, match="checkpoint|fingerprint"):
        main([*again])


def test_a_student_of_itself_has_nothing_to_learn_and_one_of_another_run_comes_nearer(
    baked: Path, tmp_path: Path, tiny_model_folder: Path
) -> None:
    itself, systems = f'model = "{tiny_model_folder}"', "fine_tuned = {}"
    alone = write(tmp_path / "same", tiny_model_folder, itself, steps=4, systems=systems)
    assert main(["train", str(alone), "--out", str(tmp_path / "same/run")]) == 0
    assert read(tmp_path / "same/run/training.json")["start_validation_loss"] == pytest.approx(0, abs=1e-6)
    other = write(tmp_path / "other", tiny_model_folder, f'run = "{baked}"', steps=20, systems=systems)
    assert main(["train", str(other), "--out", str(tmp_path / "other/run")]) == 0
    found = read(tmp_path / "other/run/training.json")
    assert found["best_validation_loss"] < 0.5 * found["start_validation_loss"]
