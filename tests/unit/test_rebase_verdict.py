"""When a rebase says "move": every row of the table in docs/runs.md."""

from pathlib import Path
from typing import Any

import pytest

from luthier.comparison import Comparison, Cost, Outcome, Paired, Side, compare_runs, read_side
from luthier.rebase import choose
from luthier.report.schema import Difference, Failures, Interval, System

MACHINE = {"cpu": "some", "cores": 2}


@pytest.fixture
def side(repository: Path) -> Side:
    return read_side(repository / "tests/fixtures/run")


def make_side(side: Side, machine: Any = MACHINE) -> Side:
    return Side(side.folder, {"model": {"name": "some-base"}}, {"machine": machine}, side.report, side.rows)


def system(failing: float = 0.0) -> System:
    failures = {"json_valid": Failures(count=1, per_million=failing * 1e6, per_million_high=1e6)}
    return System(name="fine_tuned", type="fine_tuned", n=100, failures=failures)


def paired(better: Outcome) -> Paired:
    d = Difference(a="second", b="first", metric="field_f1", difference=0.01, low=-0.02, high=0.04)
    return Paired("fine_tuned", "fine_tuned", (Interval(value=0.7), Interval(value=0.71)), d, better)


def comparison(first: float | None, second: float | None) -> Comparison:
    costs = tuple(Cost(60.0, 0.01, {"fine_tuned": usd}) for usd in (first, second))
    return Comparison("a", "b", {}, {}, "field_f1", 100, 100, (), (costs[0], costs[1]))


@pytest.mark.parametrize(
    ("better", "failing", "usd", "decision", "reason"),
    [
        ("second", (0.0, 0.06), (1.0, 0.1), "keep", "fails the wanted format"),
        ("second", (0.0, 0.0), (1.0, 9.0), "move", "clearly better"),
        ("first", (0.0, 0.0), (1.0, 0.1), "keep", "clearly worse"),
        ("first", (0.5, 0.0), (1.0, 0.1), "keep", "clearly worse"),
        ("tie", (0.06, 0.0), (1.0, 2.0), "move", "fails the wanted format too often"),
        ("unknown", (0.06, 0.0), (1.0, 2.0), "move", "fails the wanted format too often"),
        ("unknown", (0.0, 0.0), (1.0, 0.1), "keep", "cannot tell"),
        ("tie", (0.0, 0.0), (1.0, 0.8), "move", "tie"),
        ("tie", (0.0, 0.0), (1.0, 0.81), "keep", "tie"),
        ("tie", (0.0, 0.0), (None, 0.1), "keep", "no reason to move"),
    ],
)
def test_each_rule_decides_as_it_is_written_down(
    better: Outcome,
    failing: tuple[float, float],
    usd: tuple[float | None, float | None],
    decision: str,
    reason: str,
    side: Side,
) -> None:
    tuned = system(failing[0]), system(failing[1])
    found, text = choose(make_side(side), make_side(side), tuned, paired(better), comparison(*usd))
    assert found == decision and reason in text


def test_prices_of_two_machines_decide_nothing(side: Side) -> None:
    sides = make_side(side), make_side(side, {"cpu": "other"})
    assert choose(*sides, (system(), system()), paired("tie"), comparison(1.0, 0.1))[0] == "keep"


def test_a_run_whose_test_rows_are_gone_is_not_compared(side: Side) -> None:
    found = compare_runs(side, side)
    assert not found.settings and not found.systems
    assert "nobody knows which rows were asked" in found.left_out[0]
