"""The arithmetic of cost, each formula against numbers worked out by hand."""

import pytest

from luthier.recipe import CostSettings
from luthier.report.cost import break_even, build_cost, hosted_training, run_expenses, system_cost
from luthier.report.schema import Cost, System, Tokens, Training

PRICES = CostSettings(
    machine_usd_per_hour=3.6,  # a tenth of a cent a second
    hosted_training_usd_per_million_tokens=5.0,
    hosted_input_usd_per_million_tokens=2.0,
    hosted_output_usd_per_million_tokens=10.0,
    answers_per_month=1000,
)
TUNED = System(name="fine_tuned", type="fine_tuned", n=100, tokens=Tokens(prompt=5_000, completion=2_000), seconds=50)
FEW = System(
    name="few_shot", type="few_shot", baseline=True, n=100, tokens=Tokens(prompt=25_000, completion=2_000), seconds=150
)
PROGRAM = System(name="crf", type="command", n=100, seconds=1)
TRAINING = Training(seconds=600, tokens=2_000_000)


def build(training: Training | None = TRAINING, stages: dict[str, float] | None = None) -> Cost:
    return build_cost(PRICES, (FEW, TUNED, PROGRAM), training, stages or {}, ("fine_tuned", "few_shot"))


def test_a_run_is_its_seconds_times_the_machine() -> None:
    cost = build(stages={"check": 20.0, "train": 700.0, "evaluate:few_shot": 160.0})
    amounts = {e.name: e.usd for e in cost.run}
    assert amounts == pytest.approx(
        {
            "Training": 0.7,  # the stage's 700 s, in which the 600 s of steps are
            "Evaluating few_shot": 0.16,  # the stage's 160 s, not the system's 150 s
            "Evaluating fine_tuned": 0.05,
            "Evaluating crf": 0.001,
            "Everything else (check)": 0.02,
        }
    )
    assert cost.run_usd == pytest.approx(sum(amounts.values()))


@pytest.mark.parametrize(
    ("steps", "stage", "billed"), [(600, 700.0, 700), (600, 500.0, 600), (None, 100.0, 100), (600, None, 600)]
)
def test_training_is_billed_by_the_longer_of_its_two_times(
    steps: float | None, stage: float | None, billed: float
) -> None:
    expenses = run_expenses(PRICES, (), Training(seconds=steps), {} if stage is None else {"train": stage})
    assert [e.usd for e in expenses] == pytest.approx([billed / 1000])


def test_what_the_seconds_of_a_program_hold_is_said() -> None:
    few, program = (system_cost(PRICES, s) for s in (FEW, PROGRAM))
    assert few.seconds_include is None
    assert program.seconds_include is not None and "training" in program.seconds_include
    assert system_cost(PRICES, PROGRAM.model_copy(update={"seconds": None})).seconds_include is None


def test_one_stage_for_all_evaluation_is_not_counted_twice() -> None:
    expenses = run_expenses(PRICES, (FEW, TUNED), None, {"evaluate": 230.0})
    assert [e.name for e in expenses] == ["Everything else (evaluate)"]
    assert expenses[0].usd == pytest.approx(0.23)


def test_nothing_measured_costs_nothing_known() -> None:
    cost = build_cost(PRICES, (), None, {}, (None, None))
    assert (cost.run, cost.run_usd, cost.hosted_training, cost.break_even, cost.quarterly) == ((), None, None, (), ())


def test_hosted_training_bills_all_tokens() -> None:
    expense = hosted_training(PRICES, TRAINING)
    assert expense is not None and expense.usd == pytest.approx(10.0)
    assert expense.formula == "2,000,000 tokens × $5.00 a million"
    assert hosted_training(PRICES, Training(seconds=5)) is None


def test_answers_cost_seconds_here_and_tokens_hosted() -> None:
    few, tuned, program = (system_cost(PRICES, s) for s in (FEW, TUNED, PROGRAM))
    assert few.here_usd_per_thousand == pytest.approx(1.5)  # 1.5 s each
    assert few.hosted_usd_per_thousand == pytest.approx((250 * 2 + 20 * 10) / 1000)  # the longer prompt is paid for
    assert tuned.here_usd_per_thousand == pytest.approx(0.5)
    assert tuned.hosted_usd_per_thousand == pytest.approx((50 * 2 + 20 * 10) / 1000)
    assert program.here_usd_per_thousand == pytest.approx(0.01)
    assert program.hosted_usd_per_thousand is None
    assert few.here_usd_per_month == pytest.approx(1.5)


def test_a_system_without_rows_or_seconds_has_no_price() -> None:
    empty = system_cost(
        PRICES, System(name="x", type="zero_shot", n=0, tokens=Tokens(prompt=1, completion=1), seconds=4)
    )
    assert (empty.here_usd_per_thousand, empty.hosted_usd_per_thousand, empty.here_usd_per_month) == (None, None, None)


def test_break_even_three_ways() -> None:
    cost = build()
    here, hosted, moved = cost.break_even
    assert cost.run_usd == pytest.approx(0.6 + 0.15 + 0.05 + 0.001)
    assert here.answers == 801  # 0.801 / (0.0015 - 0.0005)
    assert here.months == pytest.approx(0.801)
    assert hosted.answers == 25_000  # 10 / (0.0007 - 0.0003)
    assert moved.answers == 4005  # 0.801 / (0.0007 - 0.0005)
    assert "24.4 days at 1,000 a month" in here.explanation


@pytest.mark.parametrize(("mine", "theirs", "expected"), [(1.0, 1.0, None), (1.0, 0.5, None), (0.5, 1.0, 20_000)])
def test_break_even_from_both_sides(mine: float, theirs: float, expected: int | None) -> None:
    found = break_even("x", 10.0, mine, theirs, 1000)
    assert found.answers == expected
    assert found.explanation.startswith("never" if expected is None else "after 20,000 answers")
    assert (found.months is None) == (expected is None)


def test_doing_it_again_each_quarter_is_four_runs() -> None:
    here, hosted = build().quarterly
    assert here.usd == pytest.approx(4 * 0.801)
    assert hosted.usd == pytest.approx(40.0)


def test_free_machine_costs_nothing_and_breaks_even_never() -> None:
    free = PRICES.model_copy(update={"machine_usd_per_hour": 0.0})
    cost = build_cost(free, (FEW, TUNED), TRAINING, {}, ("fine_tuned", "few_shot"))
    assert cost.run_usd == 0
    assert cost.break_even[0].explanation.startswith("never on cost alone")


def test_no_break_even_without_both_sides() -> None:
    assert build_cost(PRICES, (FEW, PROGRAM), TRAINING, {}, (None, "few_shot")).break_even == ()
