"""`luthier run` on rows that carry passages: answers before and after training are judged beside them."""

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.cli.main import main
from luthier.errors import EvaluationError
from luthier.evaluation.grounding.item import VERDICTS
from luthier.report import build_report
from luthier.report.page import render_page

SHORT = (
    "evaluation.forgetting.multiple_choice=none",
    "evaluation.forgetting.text=none",
    "optimizer.learning_rate=1e-2",
    "training.steps=60",
    "training.rows_per_step=16",
)
PEOPLE = ("Anna", "Boris", "Clara", "David")


def row(number: int, field: str | None) -> dict[str, Any]:
    """A question; its passage in a field that no format claims, and in the prompt."""
    name, street = PEOPLE[number % 4], f"{number * 37 % 991}"
    passage = f"{name} lives in house {street}. The house is old."
    asked = f"{passage} Where does {name} live?"
    answer = "I do not know." if number % 8 == 7 else f"{name} lives in house {street}."
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return {"id": f"r{number}", "messages": messages} | ({field: [passage]} if field else {})


def run(folder: Path, model: Path, field: str | None, *settings: str, code: int = 0) -> Path:
    text = "".join(json.dumps(row(number, field)) + "\n" for number in range(160))
    (folder / "rows.jsonl").write_text(text, encoding="utf-8")
    recipe, out = folder / "recipe.toml", folder / "out"
    assert main(["init", str(folder / "rows.jsonl"), "--model", str(model), "-o", str(recipe)]) == 0
    options = [part for setting in (*SHORT, *settings) for part in ("--set", setting)]
    assert main(["run", str(recipe), "--out", str(out), *options]) == code
    return out


def test_shares_before_and_after_training_stand_in_the_folder_and_in_the_report(
    tmp_path: Path, tiny_model_folder: Path
) -> None:
    out = run(tmp_path, tiny_model_folder, "passages")
    grounding = json.loads((out / "grounding.json").read_text(encoding="utf-8"))
    systems = {system["system"]: system for system in grounding["systems"]}
    assert list(systems) == ["zero_shot", "few_shot", "fine_tuned", "fine_tuned_few_shot"]
    for name, system in systems.items():
        records = (out / f"records/{name}.jsonl").read_text(encoding="utf-8").splitlines()
        assert system["n"] == len(records) == len(grounding["verdicts"][name])
        assert sum(system["shares"][verdict]["counted"]["value"] for verdict in VERDICTS) == pytest.approx(1)
        for verdict in VERDICTS:
            corrected = system["shares"][verdict]["corrected"]
            assert 0 <= corrected["low"] <= corrected["value"] <= corrected["high"] <= 1
    before, after = (systems[name]["shares"]["unsupported"]["counted"]["value"] for name in ("zero_shot", "fine_tuned"))
    assert before > 0.9  # random weights say nothing that a passage says
    (change,) = (
        d
        for d in grounding["differences"]
        if (d["a"], d["b"], d["verdict"]) == ("fine_tuned", "zero_shot", "unsupported")
    )
    assert change["counted"]["value"] == pytest.approx(after - before)
    report = build_report(out)
    assert report.grounding is not None
    assert [system.system for system in report.grounding.systems] == list(systems)
    page = render_page(report)
    assert "Answers beside their passages" in page
    assert systems["zero_shot"]["examples"][0]["id"] in page


def test_rows_without_passages_make_no_such_file(tmp_path: Path, tiny_model_folder: Path) -> None:
    out = run(tmp_path, tiny_model_folder, None, "training.steps=2", "evaluation.max_rows=4")
    assert not (out / "grounding.json").exists()
    report = build_report(out)
    assert report.grounding is None
    assert "Answers beside their passages" not in render_page(report)
    assert not [missing for missing in report.missing if missing.part == "grounding.json"]


def test_an_unknown_judge_is_refused_before_anything_is_answered(
    tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run(
        tmp_path, tiny_model_folder, "passages", "evaluation.grounding.judge=tiny", code=EvaluationError.exit_code
    )
    assert "evaluation.grounding.judge = 'tiny': it was not calibrated" in capsys.readouterr().err
    assert not (out / "records").exists()
