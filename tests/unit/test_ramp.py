"""Costs by volume: where one overtakes another, solved by hand, and against a search over a grid."""

import math

import pytest
from hypothesis import given, strategies as st

from luthier.prices.ramp import Ramp, Switch, cheapest, crossings, first_above, switch


def test_a_kept_machine_costs_its_floor_until_it_is_busy_longer() -> None:
    month = Ramp(floor=73.0, rate=0.001, fixed=2.0)
    assert month.kink == pytest.approx(73_000)
    assert [month.usd(x) for x in (0, 73_000, 146_000)] == pytest.approx([75, 75, 148])
    assert Ramp(5.0, 0.0).kink == math.inf and Ramp(0.0, 2.0).kink == 0


def test_crossings_of_two_lines_and_of_a_floor() -> None:
    assert crossings(Ramp(0, 2.0), Ramp(0, 1.0, fixed=10.0)) == pytest.approx([10])  # 2x = x + 10
    assert crossings(Ramp(0, 1.0), Ramp(30.0, 0.5)) == pytest.approx([30])  # x = 30, while 0.5x is below the floor
    assert crossings(Ramp(0, 0.4), Ramp(30.0, 0.5)) == pytest.approx([])  # 0.4x is 24 where the floor ends, and stays
    assert crossings(Ramp(0, 1.0), Ramp(0, 1.0)) == []


def test_a_machine_that_is_full_can_fall_behind_again() -> None:
    hosted, here = Ramp(0.0, 0.9), Ramp(10.0, 1.0, fixed=-2.0)
    assert crossings(hosted, here) == pytest.approx([8 / 0.9, 20])  # 0.9x = 8; 0.9x = x - 2
    assert first_above(hosted, here, 0.0) == pytest.approx(8 / 0.9)
    assert first_above(hosted, here, 0.9) == pytest.approx(8.9 / 0.9)
    assert first_above(hosted, here, 1.5) is None  # at most 9 - 8 = 1 more, at x = 10


@pytest.mark.parametrize(("by", "expected"), [(1.0, 500), (0.0, 0.0), (1e9, 5e11)])
def test_volume_that_pays_for_an_amount(by: float, expected: float) -> None:
    assert first_above(Ramp(0, 0.005), Ramp(0, 0.003), by) == pytest.approx(expected)


@pytest.mark.parametrize("by", [0.0, 1.0])
def test_no_volume_pays_for_what_costs_as_much_or_more(by: float) -> None:
    assert first_above(Ramp(0, 0.003), Ramp(0, 0.003), by) is None
    assert first_above(Ramp(0, 0.003), Ramp(0, 0.004), by) is None


def test_a_floor_that_is_high_enough_pays_from_the_first_answer() -> None:
    assert first_above(Ramp(73, 0.001), Ramp(0, 0.0001), 5.0) == 0.0


def test_a_switch_is_found_on_either_side_and_a_tie_is_none() -> None:
    costs = [Ramp(0, 2.0), Ramp(0, 0.0, fixed=6.0), Ramp(0, 1.0, fixed=1.5)]
    assert cheapest(costs, 1.0) == 0
    assert switch(costs, upward=True) == Switch(1.5, 2)
    assert switch(costs, upward=False) is None
    assert switch([Ramp(0, 1.0), Ramp(0, 1.0)], upward=True) is None
    both_idle = [Ramp(5.0, 2.0), Ramp(5.0, 1.0)]
    assert cheapest(both_idle, 1.0) == 0
    assert switch(both_idle, upward=True) == Switch(2.5, 1)  # beyond 2.5 the first is no longer idle


RAMPS = st.builds(
    Ramp,
    floor=st.sampled_from([0.0, 1.0, 3.0, 50.0]),
    rate=st.sampled_from([0.0, 0.1, 1.0, 2.5, 7.0]),
    fixed=st.sampled_from([0.0, 0.5, 4.0]),
)


@given(st.lists(RAMPS, min_size=2, max_size=5), st.booleans())
def test_nothing_is_cheaper_before_the_switch_and_something_is_behind_it(costs: list[Ramp], upward: bool) -> None:
    now, found = cheapest(costs, 1.0), switch(costs, upward=upward)
    limit = found.factor if found else (1000.0 if upward else 0.0)
    for step in range(1, 40):
        x = 1.0 + (limit - 1.0) * step / 40
        assert costs[now].usd(x) <= min(cost.usd(x) for cost in costs) * (1 + 1e-6) + 1e-9
    if found:
        beyond = found.factor * (1 + 1e-4 if upward else 1 - 1e-4)
        assert costs[found.cheapest].usd(beyond) < costs[now].usd(beyond)


@given(RAMPS, RAMPS, st.sampled_from([0.0, 0.2, 2.0]))
def test_the_first_volume_is_the_first(a: Ramp, b: Ramp, by: float) -> None:
    found = first_above(a, b, by)
    for x in (step / 3 for step in range(1, 150)):
        if found is None or x < found * (1 - 1e-9):
            assert a.usd(x) - b.usd(x) <= by + 1e-9
    if found is not None:
        assert a.usd(found + 1e-3) - b.usd(found + 1e-3) >= by - 1e-9
