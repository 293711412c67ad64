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
    assert (
        found["prompted"] == "prompted"
        and found["baked"] == "fine_tuned"
        and found["n"] == report["evaluation"]["n"] > 0
    )
    saved = found["prompt_tokens"] - found["tokens_without"]
    assert 60 < saved == pytest.approx(saved_by_template(baked))
    d = found["difference"]
    assert d["value"] == pytest.approx(found["without"]["value"] - found["with_prompt"]["value"])
    both = {"prompted", "fine_tuned"}
    pairs = [one for one in report["differences"] if {one["a"], one["b"]} == both]
    (paired,) = [one for one in pairs if one["metric"] == found["metric"]]
    assert {paired["low"], paired["high"]} == {d["low"], d["high"]} and found["p_value"] == paired["p_value"]
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
    tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, run = write(tmp_path, tiny_model_folder, 'prompt = "prompt.txt"', steps=4), tmp_path / "run"
    part = run / "teacher/part-000001.safetensors"

    def trained() -> tuple[bytes, str]:
        for name in ("adapter", "checkpoints"):
            shutil.rmtree(run / name, ignore_errors=True)
        assert main(["train", str(recipe), "--out", str(run)]) == 0
        return (run / "adapter/adapter_model.safetensors").read_bytes(), capsys.readouterr().err

    weights, said = trained()
    words = part.read_bytes()
    assert "is asked of 57 rows once" in said
    again, said = trained()
    assert again == weights and part.read_bytes() == words and "is asked of" not in said
    part.write_bytes(words[:-10])
    again, said = trained()
    assert again == weights and part.read_bytes() == words and "is asked of" in said
    (tmp_path / "prompt.txt").write_text("Another prompt.", encoding="utf-8")
    again, said = trained()
    assert again != weights and part.read_bytes() != words and "is asked of" in said


def test_rows_without_replies_are_answered_by_the_teacher_and_one_cut_off_is_left_out(
    tmp_path: Path, tiny_model_folder: Path, baked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = f'run = "{answering_run(tmp_path, tiny_model_folder)}"\nreplies = "teacher"\nmax_new_tokens = 24'
    recipe = write(tmp_path, tiny_model_folder, teacher, steps=4, systems="fine_tuned = {}")
    recipe.write_text(recipe.read_text().replace("[evaluation]\nmax_new_tokens = 16\n", ""))  # the teacher's will do
    asked = [{"messages": [{"role": "user", "content": row["prompt"]}]} for row in ROWS]
    answered = [{**row, "prompt": f"Where is number {number}, please?"} for number, row in enumerate(ROWS[:4])]
    for name, rows in (("rows", asked), ("test", answered)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    told = ["--out", str(tmp_path / "run"), "--set", f"data.test={tmp_path / 'test.jsonl'}"]
    assert main(["run", str(recipe), *told]) == 0
    assert read(tmp_path / "run/evaluation.json")["task"] == "text"
    (place,) = (tmp_path / "run/teacher").glob("replies-*")
    kept = sorted(place.iterdir())
    replies = [json.loads(line) for path in kept for line in path.read_text().splitlines()]
    assert [path.name for path in kept] == ["train-000001.jsonl", "validation-000001.jsonl"]
    whole = [row for row in replies if not row["extra"]["cut_off"]]
    assert len(replies) == 60 and len(whole) > 30
    said = capsys.readouterr().err
    assert f"is asked of {len(whole)} rows once" in said
    kept[1].unlink()
    shutil.rmtree(tmp_path / "run/checkpoints")
    assert main(["train", str(recipe), *told]) == 0
    assert [json.loads(line) for path in kept for line in path.read_text().splitlines()] == replies


def answering_run(tmp_path: Path, model: Path) -> Path:
    """A run that learned to answer: its replies end."""
    recipe = write(tmp_path / "taught", model, "", 'type = "sft"', steps=60, systems="fine_tuned = {}")
    recipe.write_text(recipe.read_text().replace("[teacher]\n", ""))
    assert main(["train", str(recipe), "--out", str(tmp_path / "taught/run")]) == 0
    return tmp_path / "taught/run"


def test_on_policy_a_student_comes_nearer_to_its_teacher_on_its_own_replies(
    tmp_path: Path, tiny_model_folder: Path, baked: Path
) -> None:
    recipe = write(
        tmp_path,
        tiny_model_folder,
        f'run = "{baked}"\nprompt = "prompt.txt"',
        'type = "gkd"\ndivergence = "js"',
        systems="fine_tuned = {}",
        more="[rollout]\ngroup_size = 2\nmax_new_tokens = 8\nvalidation_prompts = 8\n",
    )
    assert main(["train", str(recipe), "--out", str(tmp_path / "run")]) == 0
    steps = steps_of(tmp_path / "run")
    assert steps[-1]["validation_divergence"] < 0.7 * read(tmp_path / "run/training.json")["start_validation_loss"]
    assert steps[0]["loss"] == steps[0]["divergence"] and steps[0]["reply_tokens"] > 1


def test_on_policy_the_model_behind_a_prompt_teaches_itself(tmp_path: Path, tiny_model_folder: Path) -> None:
    recipe = write(
        tmp_path,
        tiny_model_folder,
        'prompt = "prompt.txt"',
        'type = "gkd"',
        steps=20,
        systems="fine_tuned = {}",
        more="[rollout]\ngroup_size = 2\nmax_new_tokens = 8\nvalidation_prompts = 8\n",
    )
    assert main(["train", str(recipe), "--out", str(tmp_path / "run")]) == 0
    steps, found = steps_of(tmp_path / "run"), read(tmp_path / "run/training.json")
    assert found["best_validation_loss"] < 0.8 * found["start_validation_loss"]
    assert steps[-1]["divergence"] < steps[0]["divergence"]
    assert not (tmp_path / "run/teacher").exists()


@pytest.mark.parametrize(
    ("teacher", "objective", "message"),
    [
        ("", 'type = "distill"', "neither who teaches nor with which prompt"),
        ('run = "a"\nmodel = "b"', 'type = "distill"', "both say who teaches"),
        ('prompt = "prompt.txt"\nquantize = "nf4"', 'type = "distill"', "changes nothing without teacher.model"),
        ('model = "b"\nquantize = "nf5"', 'type = "distill"', "teacher.quantize: unknown format 'nf5'.*nf4"),
        ('prompt = "prompt.txt"\ntemperature = 0.5', 'type = "distill"', "teacher.replies"),
        ('prompt = "prompt.txt"', 'type = "sft"', "which asks none"),
        ('prompt = "prompt.txt"', 'type = "distill"\nbeta = 0.3', "changes nothing with objective.divergence"),
        ('prompt = "prompt.txt"', 'type = "gkd"', r"write a table \[rollout\]"),
        ('prompt = "nothing.txt"', 'type = "distill"', "cannot be read as the prompt"),
    ],
)
def test_what_does_not_go_together_is_refused(
    teacher: str, objective: str, message: str, tmp_path: Path, tiny_model_folder: Path
) -> None:
    from luthier.assemble import objective_of, open_model
    from luthier.recipe import load
    from luthier.teaching.plan import planned

    path = write(tmp_path, tiny_model_folder, teacher, objective)
    with pytest.raises((RecipeError, DataError), match=message):
        recipe = load(path)
        objective_of(recipe)
        planned(recipe, open_model(recipe))


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
