"""What keeps a system from being chosen, and what another assumption would lead to."""

from dataclasses import replace
from typing import Any

import pytest
from tests.ladders import LADDER, RETRIEVED, N, facts, failing, system

from luthier.recipe import DecisionSettings
from luthier.report.assumptions import sensitivity
from luthier.report.ladder import Facts
from luthier.report.schema import (
    Change,
    Forgetting,
    Interval,
    Measure,
)
from luthier.report.verdict import decide


def assuming(ladder: Facts, **assumed: Any) -> Facts:
    return replace(ladder, assumptions=DecisionSettings(**assumed))


@pytest.mark.parametrize(
    ("pace", "expected"),
    [("unknown", "fine_tune"), ("yearly", "fine_tune"), ("quarterly", "fine_tune"), ("monthly", "not_yet")],
)
def test_what_was_taught_facts_that_change_faster_than_it_is_trained_again_is_not_chosen(
    pace: str, expected: str
) -> None:
    ladder = facts({"zero_shot": 0.3, "few_shot": 0.9, "fine_tuned": 0.95})
    assert decide(assuming(ladder, facts_change=pace)).recommendation == expected


def test_facts_that_change_leave_retrieval_or_nothing() -> None:
    with_retrieval = facts({**RETRIEVED, "fine_tuned": 0.95, "fine_tuned_rag": 0.7})
    assert decide(with_retrieval).recommendation == "fine_tune"
    verdict = decide(assuming(with_retrieval, facts_change="daily"))
    assert verdict.recommendation == "rag"
    assert "was taught its facts, which change daily" in verdict.sentence
    alone = decide(assuming(facts({"zero_shot": 0.2, "fine_tuned": 0.9}), facts_change="daily"))
    assert (alone.recommendation, alone.rule) == ("not_yet", "stale")
    assert alone.would_change[0].startswith("Measure retrieval")
    no_gain = decide(assuming(facts({"zero_shot": 0.9, "fine_tuned": 0.9}), facts_change="daily"))
    assert (no_gain.recommendation, no_gain.rule) == ("prompt", "cheaper_rung")


@pytest.mark.parametrize(("limit", "expected"), [(0.11, "fine_tune"), (0.09, "few_shot"), (None, "fine_tune")])
def test_a_system_that_is_too_slow_is_not_chosen(limit: float | None, expected: str) -> None:
    slow = tuple(
        system(name, value, seconds=N * 0.1 if name == "fine_tuned" else 1.0) for name, value in LADDER.items()
    )
    verdict = decide(assuming(facts(LADDER, systems=slow), most_seconds=limit))
    assert verdict.recommendation == expected
    assert ("takes 0.10 s for an answer" in verdict.sentence) == (expected == "few_shot")


@pytest.mark.parametrize(("limit", "expected"), [(0.21, "fine_tune"), (0.19, "few_shot"), (None, "fine_tune")])
def test_a_model_that_forgot_too_much_is_not_chosen(limit: float | None, expected: str) -> None:
    change = Change(value=-0.1, low=-0.12, high=-0.08)
    lost = Measure(name="choice", before=Interval(value=0.5), after=Interval(value=0.4), difference=change)
    ladder = facts(LADDER, forgetting=Forgetting(verdict="clear", measures=(lost,)))
    assert decide(assuming(ladder, most_forgetting=limit)).recommendation == expected


def test_what_the_second_training_forgot_stands_against_the_second_training_alone() -> None:
    change = Change(value=-0.1, low=-0.12, high=-0.08)
    lost = Measure(name="choice", before=Interval(value=0.5), after=Interval(value=0.4), difference=change)
    forgot = Forgetting(verdict="clear", measures=(lost,))
    ladder = facts(RETRIEVED)
    first, second = replace(ladder, forgetting=forgot), replace(ladder, forgetting_with_passages=forgot)
    found = [decide(assuming(facts, most_forgetting=0.1)).recommendation for facts in (first, second)]
    assert found == ["fine_tune+rag", "rag"]


def test_nothing_that_is_fit_for_use_is_not_yet_and_each_obstacle_is_told() -> None:
    slow = tuple(system(name, value, seconds=N * 2.0) for name, value in LADDER.items())
    verdict = decide(assuming(facts(LADDER, systems=slow), most_seconds=1))
    assert (verdict.recommendation, verdict.rule) == ("not_yet", "unfit")
    assert verdict.sentence.count("takes 2.00 s for an answer") == 3 and "faster machine" in verdict.would_change[0]


@pytest.mark.parametrize(("smallest", "expected"), [(0.04, "fine_tune"), (0.06, "few_shot")])
def test_what_is_worth_acting_on_is_the_users_to_say(smallest: float, expected: str) -> None:
    ladder = facts({"zero_shot": 0.3, "few_shot": 0.80, "fine_tuned": 0.85}, half=0.01)
    assert decide(assuming(ladder, smallest_gain=smallest)).recommendation == expected


def test_the_report_tells_which_assumption_would_tip_the_verdict() -> None:
    close = facts({"zero_shot": 0.3, "few_shot": 0.80, "fine_tuned": 0.83}, half=0.01)
    tipping = {(s.assumption, s.other): s.recommendation for s in sensitivity(close) if s.changes}
    assert tipping == {("smallest_gain", 0.04): "few_shot", ("facts_change", "monthly"): "not_yet"}
    clear = sensitivity(facts({"zero_shot": 0.3, "few_shot": 0.9, "fine_tuned": 0.3}, half=0.01))
    assert clear and not any(s.changes for s in clear)
    assert decide(facts(LADDER)).assumptions == DecisionSettings().model_dump()


def test_a_limit_that_would_exclude_the_choice_is_tried() -> None:
    slow = tuple(system(name, value, seconds=N * 0.5) for name, value in LADDER.items())
    tried = [s for s in sensitivity(facts(LADDER, systems=slow)) if s.assumption == "most_seconds"]
    assert [(s.now, s.other, s.recommendation) for s in tried] == [(None, 0.25, "not_yet"), (None, 0.5, "fine_tune")]


@pytest.mark.parametrize(("limit", "expected"), [(0.4, "fine_tune"), (0.6, "few_shot")])
def test_what_is_too_slow_is_no_rival_of_a_training(limit: float, expected: str) -> None:
    """Examples score as well as training and are too slow: the prompt that is left is what it must beat."""
    values = {"zero_shot": 0.5, "few_shot": 0.9, "fine_tuned": 0.9}
    systems = tuple(
        system(name, value, seconds=N * (0.5 if name == "few_shot" else 0.1)) for name, value in values.items()
    )
    verdict = decide(assuming(facts(values, systems=systems), most_seconds=limit))
    assert verdict.recommendation == expected
    if expected == "fine_tune":
        assert (
            "the best without training that is fit for use: few-shot prompting takes 0.50 s for an answer"
            in verdict.sentence
        )


def test_a_slow_rival_does_not_come_back_when_nothing_else_is_left() -> None:
    """With and without a hopeless prompt beside them, the verdict is the same."""
    for values in ({"few_shot": 0.8, "fine_tuned": 0.79}, {"zero_shot": 0.05, "few_shot": 0.8, "fine_tuned": 0.79}):
        systems = tuple(
            system(name, value, seconds=N * (9.0 if name == "few_shot" else 0.1)) for name, value in values.items()
        )
        assert decide(assuming(facts(values, systems=systems), most_seconds=2)).recommendation == "fine_tune"


def test_the_bar_that_a_training_must_pass_is_a_prompt_that_may_be_chosen() -> None:
    values = {"zero_shot": 0.4, "few_shot": 0.8, "fine_tuned": 0.41}
    systems = tuple(
        system(name, value, seconds=N * (9.0 if name == "few_shot" else 0.1)) for name, value in values.items()
    )
    verdict = decide(assuming(facts(values, systems=systems), most_seconds=2))
    assert verdict.recommendation == "prompt"
    assert any("better than the plain prompt" in text for text in verdict.would_change)
    assert not any("better than few-shot" in text for text in verdict.would_change)


def test_an_answer_that_lacks_the_form_is_not_mended_by_retrieval() -> None:
    values = {"zero_shot": 0.3, "few_shot": 0.78, "fine_tuned": 0.85}
    systems = tuple(
        system(name, value, failures=failing(0.47 if name == "fine_tuned" else 0)) for name, value in values.items()
    )
    found = [decide(assuming(facts(values, systems=systems), facts_change=pace)) for pace in ("unknown", "monthly")]
    assert [verdict.recommendation for verdict in found] == ["few_shot", "few_shot"]


def test_advice_is_for_the_obstacles_that_there_are() -> None:
    systems = tuple(system(name, value, failures=failing(0.2), seconds=1.0) for name, value in LADDER.items())
    verdict = decide(assuming(facts(LADDER, systems=systems), most_seconds=100))
    assert verdict.rule == "unfit" and not any("faster machine" in text for text in verdict.would_change)


@pytest.mark.parametrize(("cheap", "expected"), [(1.0, "prompt"), (50.0, "fine_tune")])
def test_a_cheaper_other_model_that_ties_is_not_passed_over(cheap: float, expected: str) -> None:
    values = {"zero_shot": 0.5, "other": 0.905, "other_too": 0.9, "fine_tuned": 0.9}
    usd = {"other": 100.0, "other_too": cheap, "fine_tuned": 10.0, "zero_shot": 1.0}
    assert decide(replace(facts(values), monthly_usd=usd)).recommendation == expected


def test_the_training_that_is_recommended_is_the_one_whose_forgetting_is_told() -> None:
    change = Change(value=-0.1, low=-0.12, high=-0.08)
    lost = Measure(name="choice", before=Interval(value=0.5), after=Interval(value=0.4), difference=change)
    forgot, kept = Forgetting(verdict="clear", measures=(lost,)), Forgetting(verdict="none measured")
    first = decide(facts(RETRIEVED, forgetting=forgot, forgetting_with_passages=kept))
    second = decide(facts(RETRIEVED, forgetting=kept, forgetting_with_passages=forgot))
    assert (first.recommendation, second.recommendation) == ("fine_tune+rag", "fine_tune+rag")
    assert not first.warnings and "General ability fell" in second.warnings[0]
    assert {e.source for e in second.evidence} >= {"with_passages/forgetting.json"}
