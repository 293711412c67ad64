"""Prices in the report of a run: its own book and its age, old recipes, pauses, and what the page says of them."""

import json
import math
import shutil
import statistics
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from luthier.errors import RecipeError
from luthier.report import build_report
from luthier.report.page import ages, render_page

FIXTURE = Path(__file__).parents[1] / "fixtures" / "run"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURE, tmp_path / "demo"))


def change(path: Path, edit: Callable[[Any], None]) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    edit(value)
    path.write_text(json.dumps(value), encoding="utf-8")


BOOK = """
[[prices]]
provider = "acme"
model = "one"
usd_per_million_tokens = { training = 2, input = 1, output = 1, tuned_input = 1.25, tuned_output = 1 }
read = 2025-03-04
source = "https://acme.example/<b>prices</b>"
note = "seen by \\u202e us"
"""


def test_the_report_reads_the_book_that_the_folder_keeps_and_shows_day_age_and_source(run: Path) -> None:
    (run / "prices.toml").write_text(BOOK, encoding="utf-8")
    change(run / "recipe.json", lambda r: r["cost"].update(hosted=["acme/one"], prices="/nowhere/prices.toml"))
    report = build_report(run, date(2026, 11, 27))
    page = render_page(report)
    assert {p.name for p in report.cost.prices} == {"acme/one"} and not report.missing
    assert "acme/one: read 2025-03, 20 months old." in page and "$1.25" in page
    assert "acme.example/&lt;b&gt;prices&lt;/b&gt;" in page and "seen by ⟨U+202E⟩ us" in page
    assert "The prices of acme/one were read more than a year ago" in page
    fresh = build_report(run, date(2025, 12, 1))
    assert not fresh.cost.warnings and "8 months old" in render_page(fresh)


def test_an_entry_is_as_old_as_its_oldest_price(run: Path) -> None:
    report = build_report(run, date(2026, 11, 27))
    assert ages(report.cost) == [
        "openai/gpt-4o-mini: read 2026-05, 6 months old",  # its input; its training was read in August
        "tinker/qwen3-8b: read 2026-10, a month old",
    ]


def test_a_book_that_the_folder_does_not_have_is_told_and_the_shipped_one_counts(run: Path) -> None:
    hosted = ["acme/one", "tinker/qwen3-8b"]
    change(run / "recipe.json", lambda r: r["cost"].update(hosted=hosted, prices="/nowhere/prices.toml"))
    report = build_report(run)
    assert [m.part for m in report.missing] == ["prices.toml"]
    assert "acme/one is not in the price book any more" in report.cost.warnings[0]
    assert {p.name for p in report.cost.prices} == {"tinker/qwen3-8b"}


def test_a_damaged_book_in_the_folder_is_named(run: Path) -> None:
    (run / "prices.toml").write_text(BOOK.replace("input = 1", "input = -1", 1), encoding="utf-8")
    with pytest.raises(RecipeError, match=r"prices\.toml: entry 1 \(acme/one\)\.usd_per_million_tokens\.input = -1"):
        build_report(run)


def test_a_report_of_an_older_run_keeps_its_hosted_price(run: Path) -> None:
    """Its recipe.json has the three prices, and nothing of the book."""
    old = {
        "machine_usd_per_hour": 0.10,
        "hosted_training_usd_per_million_tokens": 3.0,
        "hosted_input_usd_per_million_tokens": 0.30,
        "hosted_output_usd_per_million_tokens": 1.20,
        "answers_per_month": 100_000,
    }
    change(run / "recipe.json", lambda r: r.update(cost=old))
    cost = build_report(run).cost
    own = next(h for h in cost.systems[1].hosted if h.name == "recipe")
    assert own.usd_per_thousand == pytest.approx((131 * 0.30 + 47 * 1.20) / 1000)
    assert "undated: from the recipe" in {p.age for p in cost.prices}


def test_steps_that_took_far_too_long_are_told(run: Path) -> None:
    assert build_report(run).cost.warnings == ()
    lines = (run / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    usual = statistics.median(s["seconds"] for s in steps)
    steps[7]["seconds"] = usual * 9.9  # slow, and no pause
    steps[9]["seconds"] = usual + 3600
    (run / "metrics.jsonl").write_text("".join(json.dumps(s) + "\n" for s in steps))
    report = build_report(run)
    assert report.training is not None and report.training.slow_seconds == pytest.approx(3600, abs=0.5)
    assert "1 h 0 min of the training are steps that took over ten times the usual" in report.cost.warnings[0]


def test_what_would_change_the_cheapest_way_is_in_the_verdict(run: Path) -> None:
    report = build_report(run)
    nearest = min((s for s in report.cost.sensitivity if s.factor), key=lambda s: abs(math.log(s.factor or 1)))
    told = [text for text in report.verdict.would_change if text.startswith("Cost: with")]
    assert len(told) == 1 and nearest.assumption in told[0] and str(nearest.cheapest) in told[0]
