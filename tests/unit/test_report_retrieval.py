"""Retrieval in a report: its table, and the ways to ask that show passages."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.report import build_report
from luthier.report.page import competitions, render_page

FIXTURE = Path(__file__).parents[1] / "fixtures" / "run"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURE, tmp_path / "demo"))


def change(path: Path, edit: Callable[[Any], Any]) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    edit(value)
    path.write_text(json.dumps(value), encoding="utf-8")


def test_retrieval_by_itself_is_a_table_and_says_how_it_was_judged(run: Path) -> None:
    page = render_page(build_report(run))
    assert "58 questions, 50 by the passages that their rows name, 8 by whether a passage holds the answer" in page
    assert "2 more left out" in page and "1,240 passages of 900 texts" in page
    row = re.search(r"<tr><th>hybrid<small>used</small></th>.*?</tr>", page, re.DOTALL)
    assert row and "0.860" in row.group() and "recall@5" in page


def test_retrieval_that_was_not_asked_for_is_not_missing(run: Path) -> None:
    (run / "retrieval.json").unlink()
    change(run / "recipe.json", lambda r: r.pop("retrieval"))
    report = build_report(run)
    assert not report.missing and report.retrieval is None
    assert "Retrieval by itself" not in render_page(report)


def test_ways_to_ask_with_passages_are_told_apart_by_their_number(run: Path) -> None:
    def edit(evaluation: Any) -> None:
        (system,) = (s for s in evaluation["systems"] if s["name"] == "few_shot")
        trial = {"addition": "", "place": "system", "rows": 20}
        system["details"] = {
            **trial,
            "passages": 1,
            "mean_passages": 1.0,
            "tried": [trial | {"passages": n, "validation_score": 0.5 / n} for n in (5, 1)],
        }

    change(run / "evaluation.json", edit)
    (found,) = (c for c in competitions(build_report(run).systems) if c.system == "few_shot")
    assert [won for _, won in found.trials] == [False, True] and found.mean_passages == 1
    assert "with 1.0 passages a question" in render_page(build_report(run))


def test_what_a_trained_embedder_gains_stands_below(run: Path) -> None:
    def edit(retrieval: Any) -> None:
        dense = next(one for one in retrieval["retrievers"] if one["name"] == "dense")
        before = {**dense, "name": "dense_before"}
        dense |= {
            "against": "dense_before",
            "gains": {m: {"value": 0.04, "low": 0.01, "high": 0.07} for m in dense["metrics"]},
        }
        retrieval["retrievers"].append(before)

    page = render_page(build_report(run))
    assert "what it began as" not in page
    change(run / "retrieval.json", edit)
    page = render_page(build_report(run))
    assert "what it began as" in page and "[0.01, 0.07]" in page
