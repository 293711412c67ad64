"""When a rebase says "move": every row of the table in docs/runs.md."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from luthier.cli.show_runs import comparison_text
from luthier.comparison import Comparison, Cost, Outcome, Paired, Side, compare_runs, read_side
from luthier.rebase import choose
from luthier.report.frontier_parts import Candidate, Frontier
from luthier.report.schema import Difference, Failures, Interval, System


@pytest.fixture
def side(repository: Path) -> Side:
    return read_side(repository / "tests/fixtures/run")


def make_side(side: Side, parameters: int | None) -> Side:
    manifest: dict[str, Any] = {"model": {"parameters": parameters}}
    return Side(side.folder, {"model": {"name": "some-base"}}, manifest, side.report, side.rows)


def system(failing: float = 0.0) -> System:
    failures = {"json_valid": Failures(count=1, per_million=failing * 1e6, per_million_high=1e6)}
    return System(name="fine_tuned", type="fine_tuned", n=100, failures=failures)


def paired(better: Outcome) -> Paired:
    d = Difference(a="second", b="first", metric="field_f1", difference=0.01, low=-0.02, high=0.04)
    return Paired("fine_tuned", "fine_tuned", (Interval(value=0.7), Interval(value=0.71)), d, better)


COMPARISON = Comparison("a", "b", {}, {}, "field_f1", 100, 100, (), (Cost(60.0, 0.01, {}), Cost(60.0, 0.01, {})))


@pytest.mark.parametrize(
    ("better", "failing", "sizes", "decision", "reason"),
    [
        ("second", (0.0, 0.06), (1000, 100), "keep", "fails the wanted format"),
        ("second", (0.0, 0.0), (1000, 9000), "move", "clearly better"),
        ("first", (0.0, 0.0), (1000, 100), "keep", "clearly worse"),
        ("first", (0.5, 0.0), (1000, 100), "keep", "clearly worse"),
        ("tie", (0.06, 0.0), (1000, 2000), "move", "fails the wanted format too often"),
        ("unknown", (0.06, 0.0), (1000, 2000), "move", "fails the wanted format too often"),
        ("unknown", (0.0, 0.0), (1000, 100), "keep", "cannot tell"),
        ("tie", (0.0, 0.0), (1000, 800), "move", "tie"),
        ("tie", (0.0, 0.0), (1000, 801), "keep", "tie"),
        ("tie", (0.0, 0.0), (None, 100), "keep", "no reason to move"),
    ],
)
def test_each_rule_decides_as_it_is_written_down(
    better: Outcome,
    failing: tuple[float, float],
    sizes: tuple[int | None, int | None],
    decision: str,
    reason: str,
    side: Side,
) -> None:
    tuned = system(failing[0]), system(failing[1])
    found, text = choose(make_side(side, sizes[0]), make_side(side, sizes[1]), tuned, paired(better), COMPARISON)
    assert found == decision and reason in text


def test_a_run_whose_test_rows_are_gone_is_not_compared(side: Side) -> None:
    found = compare_runs(side, side)
    assert not found.settings and not found.systems
    assert "nobody knows which rows were asked" in found.left_out[0]


def test_how_many_failures_are_too_many_is_what_the_recipe_says(side: Side) -> None:
    new = make_side(side, 100)
    strict = replace(new, recipe={**new.recipe, "decision": {"most_failures": 0.01}})
    tuned = system(), system(0.03)
    assert choose(make_side(side, 100), new, tuned, paired("second"), COMPARISON)[0] == "move"
    assert choose(make_side(side, 100), strict, tuned, paired("second"), COMPARISON)[0] == "keep"


def test_a_remedy_in_place_is_told(side: Side) -> None:
    tried = [Candidate(name="plain", remedy="plain"), Candidate(name="kl-1", remedy="kl", settings=("a=1", "b=2"))]
    found = []
    for chosen in ("plain", "kl-1"):
        candidates = tuple(one.model_copy(update={"chosen": one.name == chosen}) for one in tried)
        frontier = Frontier(metric="field_f1", chosen=chosen, candidates=candidates)
        found.append(replace(side, report=side.report.model_copy(update={"frontier": frontier})))
    comparison = compare_runs(*found)
    assert comparison.remedies == (None, "kl-1 (a=1, b=2)")
    assert "in place in the second: kl-1 (a=1, b=2)" in comparison_text(comparison)
    assert "in place in the first" not in comparison_text(comparison)
