"""`luthier run` on free text: how answers are written, and what a judge prefers, before and after training."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from luthier.cli.main import main
from luthier.errors import EvaluationError, RecipeError
from luthier.report import build_report
from luthier.report.page import render_page

JUDGE = """
import json, pathlib, re, sys
rows = [json.loads(line) for line in sys.stdin]
asked = pathlib.Path("asked.txt")
asked.write_text(str(len(rows) + int(asked.read_text() if asked.exists() else 0)))
for row in rows:
    text = row["messages"][-1]["content"]
    pattern = r"\\[Answer A\\]\\n(.*)\\n\\n\\[Answer B\\]\\n(.*)\\n\\nWhich answer"
    first, second = re.search(pattern, text, re.S).groups()
    names = {"longer": "A" if len(first) > len(second) else "B", "place": "A"}
    print(json.dumps({"id": row["id"], "output": names[sys.argv[1]]}))
"""
SETTINGS = (
    "evaluation.forgetting.multiple_choice=none",
    "evaluation.forgetting.text=none",
    "evaluation.task=text",
    "training.steps=2",
    "training.rows_per_step=4",
    "evaluation.max_rows=12",
    "evaluation.systems.few_shot.shots=1",
)


def row(number: int) -> dict[str, Any]:
    answer = f"House {number} is old and {'large' if number % 2 else 'small'}!" + " It stands alone." * (number % 3)
    return {"id": f"r{number}", "prompt": f"Tell me about house {number * 37 % 991}.", "completion": answer}


def run(folder: Path, model: Path, verb: str, *settings: str, code: int = 0) -> Path:
    recipe, out = folder / "recipe.toml", folder / "out"
    if not recipe.exists():
        (folder / "judge.py").write_text(JUDGE, encoding="utf-8")
        text = "".join(json.dumps(row(number)) + "\n" for number in range(120))
        (folder / "rows.jsonl").write_text(text, encoding="utf-8")
        assert main(["init", str(folder / "rows.jsonl"), "--model", str(model), "-o", str(recipe)]) == 0
        recipe.write_text(recipe.read_text(encoding="utf-8") + judged("longer"), encoding="utf-8")
    given = [part for setting in (*SETTINGS, *settings) for part in ("--set", setting)]
    assert main([verb, str(recipe), "--out", str(out), *given] if verb == "run" else [verb, str(out)]) == code
    return out


def judged(way: str) -> str:
    command = json.dumps([sys.executable, "judge.py", way])
    return f'\n[evaluation.style]\ncriterion = "long"\njudge = {{ type = "command", command = {command} }}\n'


def test_features_and_preferences_stand_in_the_folder_and_in_the_report(
    tmp_path: Path, tiny_model_folder: Path
) -> None:
    out = run(tmp_path, tiny_model_folder, "run")
    style = json.loads((out / "style.json").read_text(encoding="utf-8"))
    names = ["zero_shot", "few_shot", "fine_tuned", "fine_tuned_few_shot"]
    assert style["rows"] == 12
    assert [system["system"] for system in style["systems"]] == names
    assert style["wanted"]["exclamations"] > 0
    for system in style["systems"]:
        assert system["distance"]["low"] <= system["distance"]["value"] <= system["distance"]["high"]
    preference = style["preference"]
    assert preference["against"] in ("zero_shot", "few_shot"), "the best that was not trained"
    assert [pair["a"] for pair in preference["pairs"]] == [name for name in names if name != preference["against"]]
    for pair in preference["pairs"]:
        answers = {
            name: [json.loads(line)["output"] for line in (out / f"records/{name}.jsonl").read_text().splitlines()]
            for name in (pair["a"], pair["b"])
        }
        longer = [len(x.strip()) > len(y.strip()) for x, y in zip(*answers.values(), strict=True)]
        shorter = [len(x.strip()) < len(y.strip()) for x, y in zip(*answers.values(), strict=True)]
        assert (pair["wins"], pair["losses"]) == (sum(longer), sum(shorter))
        assert pair["wins"] + pair["losses"] + pair["ties"] == pair["n"] == 12
        assert pair["net"]["value"] == pytest.approx((pair["wins"] - pair["losses"]) / 12)
    page = render_page(build_report(out))
    assert "How answers are written" in page and "Preferred by a judge" in page

    asked = (tmp_path / "asked.txt").read_text()
    run(tmp_path, tiny_model_folder, "evaluate")
    assert (tmp_path / "asked.txt").read_text() == asked, "what was judged and is still true is not judged again"


def test_a_judge_that_names_a_place_prefers_nothing(tmp_path: Path, tiny_model_folder: Path) -> None:
    place = json.dumps([sys.executable, "judge.py", "place"])
    out = run(tmp_path, tiny_model_folder, "run", f"evaluation.style.judge.command={place}", "evaluation.max_rows=6")
    pair = json.loads((out / "style.json").read_text(encoding="utf-8"))["preference"]["pairs"][0]
    assert (pair["wins"], pair["losses"]) == (0, 0)
    assert pair["first_place"]["value"] == 1
    assert pair["net"]["value"] == 0


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ('evaluation.style.judge={type="zero_shot"}', "a judge is another model than those whose answers it compares"),
        ("evaluation.style.judge.note=x", "evaluation.style.judge.note changes nothing"),
        ("evaluation.style.against=few_shots", "no such system; did you mean 'few_shot'"),
    ],
)
def test_a_judge_of_itself_and_an_unknown_rival_are_refused(
    tmp_path: Path, tiny_model_folder: Path, setting: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run(tmp_path, tiny_model_folder, "run", setting, code=RecipeError.exit_code)
    assert message in capsys.readouterr().err
    assert not (out / "records").exists()


def test_a_judge_where_no_free_text_is_written_is_refused(
    tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run(tmp_path, tiny_model_folder, "run", "evaluation.task=label", code=EvaluationError.exit_code)
    assert "these answers are of the task 'label'" in capsys.readouterr().err
    assert not (out / "records").exists()
