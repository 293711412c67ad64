"""The arithmetic of cost, each formula against numbers worked out by hand."""

from dataclasses import replace
from datetime import date
from typing import Any

import pytest

from luthier.config import build
from luthier.errors import RecipeError
from luthier.prices import Book, Price, open_book
from luthier.recipe import HOURS_PER_MONTH, CostSettings
from luthier.report.cost import build_cost
from luthier.report.cost_schema import BreakEven, Cost, SystemCost
from luthier.report.ladder import Facts
from luthier.report.schema import Evaluation, Interval, Run, System, Tokens, Training

TODAY = date(2026, 11, 27)
OWN: dict[str, Any] = {
    "machine_usd_per_hour": 3.6,  # a tenth of a cent a second
    "machine": {"hours_per_month": 0},
    "hosted": (),
    "hosted_training_usd_per_million_tokens": 5.0,
    "hosted_input_usd_per_million_tokens": 2.0,
    "hosted_output_usd_per_million_tokens": 10.0,
    "answers_per_month": 1000,
}


def system(name: str, value: float, prompt: int, seconds: float, **more: Any) -> System:
    """100 answers of 20 tokens each."""
    score = Interval(value=value, low=value - 0.01, high=value + 0.01)
    kind = more.pop("type", name)
    return System(
        name=name, type=kind, n=100, metrics={"f1": score}, tokens=Tokens(prompt=prompt, completion=2_000),
        seconds=seconds, **more,
    )  # fmt: skip


ZERO = system("zero_shot", 0.30, 7_000, 80, baseline=True)
FEW = system("few_shot", 0.60, 25_000, 150, baseline=True)
TUNED = system("fine_tuned", 0.90, 5_000, 50)
PROGRAM = System(name="crf", type="command", n=100, seconds=1, metrics={"f1": Interval(value=0.5)})
TRAINING = Training(seconds=600, tokens=2_000_000)
FACTS = Facts(
    evaluation=Evaluation(task="json", primary_metric="f1", n=100, bounds={"f1": (0.0, 1.0)}),
    systems=(FEW, TUNED, PROGRAM),
    training=TRAINING,
)


def settings(**changed: Any) -> CostSettings:
    return build(CostSettings, {**OWN, **changed}, ["cost"])


def cost_of(facts: Facts = FACTS, run: Run | None = None, book: Book | None = None, **changed: Any) -> Cost:
    given = settings(**changed)
    return build_cost(given, book or open_book(given), facts, run or Run(name="x"), TODAY)


def by_system(cost: Cost) -> dict[str, SystemCost]:
    return {paid.system: paid for paid in cost.systems}


def break_evens(cost: Cost) -> dict[str, BreakEven]:
    return {b.name: b for b in cost.break_even}


# The run


def test_a_run_is_its_seconds_times_the_machine() -> None:
    cost = cost_of(run=Run(name="x", stages={"check": 20.0, "train": 700.0, "evaluate:few_shot": 160.0}))
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
    run = Run(name="x", stages={} if stage is None else {"train": stage})
    cost = cost_of(Facts(training=Training(seconds=steps)), run)
    assert [e.usd for e in cost.run] == pytest.approx([billed / 1000])


def test_one_stage_for_all_evaluation_is_not_counted_twice() -> None:
    cost = cost_of(replace(FACTS, training=None), Run(name="x", stages={"evaluate": 230.0}))
    assert {e.name: e.usd for e in cost.run} == pytest.approx({"Everything else (evaluate)": 0.23})


def test_nothing_measured_costs_nothing_known() -> None:
    cost = cost_of(Facts())
    assert (cost.run, cost.run_usd, cost.energy) == ((), None, None)
    assert (cost.hosted_training, cost.break_even, cost.quarterly, cost.choices) == ((), (), (), ())


def test_hosted_training_bills_all_tokens_at_every_place_that_trains() -> None:
    cost = cost_of(hosted=["tinker/qwen3-8b", "mistral/ministral-8b", "runpod/l40s"])
    assert {e.name: e.usd for e in cost.hosted_training} == pytest.approx(
        {"The same training at tinker/qwen3-8b": 0.88, "The same training at recipe": 10.0}
    )
    assert cost.hosted_training[1].formula == "2,000,000 tokens × $5.00 a million"
    assert cost_of(replace(FACTS, training=Training(seconds=5))).hosted_training == ()


# Energy


@pytest.mark.parametrize(
    ("joules", "watts", "kwh", "words"),
    [
        ({"train": 3.6e6, "check": 1.8e6}, 500.0, 1.5, "1.5 kWh measured over 2 of 2 stages"),
        ({"train": 3.6e6}, None, 1.0, "1 kWh measured over 1 of 2 stages"),
        ({}, 360.0, 0.36, "360 W (cost.machine.watts, not measured) × 1 h 0 min"),
    ],
)
def test_energy_is_measured_else_from_the_recipe_and_says_which(
    joules: dict[str, float], watts: float | None, kwh: float, words: str
) -> None:
    machine = {"hours_per_month": 0} | ({} if watts is None else {"watts": watts})
    run = Run(name="x", stages={"train": 3000.0, "check": 600.0}, joules=joules)
    energy = cost_of(Facts(), run, machine=machine).energy
    assert energy is not None and energy.kwh == pytest.approx(kwh)
    assert energy.usd == pytest.approx(kwh * 0.146) and energy.formula.startswith(words)


def test_energy_that_nobody_knows_is_not_told() -> None:
    assert cost_of().energy is None


def test_what_rapl_does_not_see_goes_by_the_watts_of_the_recipe() -> None:
    own = {"purchase_usd": 0, "lifetime_years": 1, "watts": 1000, "hours_per_month": 0}
    run = {"name": "x", "stages": {"train": 100.0}, "joules": {"train": 5_000.0}}
    bare = cost_of(run=Run(**run), machine_usd_per_hour=None, machine=own).machine
    with_gpu = cost_of(run=Run(**run, machine={"gpu": "H100"}), machine_usd_per_hour=None, machine=own).machine
    assert bare.watts == pytest.approx(50) and bare.usd_per_hour == pytest.approx(0.05 * 0.146)
    assert with_gpu.watts == 1000 and with_gpu.usd_per_hour == pytest.approx(0.146)


# Answers


def test_answers_cost_seconds_here_and_tokens_hosted() -> None:
    paid = by_system(cost_of())
    few, tuned, program = paid["few_shot"], paid["fine_tuned"], paid["crf"]
    assert few.here_usd_per_thousand == pytest.approx(1.5)  # 1.5 s each
    assert few.hosted[0].usd_per_thousand == pytest.approx((250 * 2 + 20 * 10) / 1000)  # the longer prompt is paid
    assert tuned.here_usd_per_thousand == pytest.approx(0.5)
    assert tuned.hosted[0].usd_per_thousand == pytest.approx((50 * 2 + 20 * 10) / 1000)
    assert program.here_usd_per_thousand == pytest.approx(0.01)
    assert program.hosted[0].usd_per_thousand is None and "not hosted" in program.hosted[0].note
    assert few.here_usd_per_month == pytest.approx(1.5) and few.hours_per_month == pytest.approx(1500 / 3600)


def test_what_the_seconds_of_a_program_hold_is_said() -> None:
    paid = by_system(cost_of())
    assert paid["few_shot"].seconds_include is None
    assert paid["crf"].seconds_include is not None and "training" in paid["crf"].seconds_include
    silent = replace(FACTS, systems=(PROGRAM.model_copy(update={"seconds": None}),))
    assert by_system(cost_of(silent))["crf"].seconds_include is None


def test_a_system_without_rows_or_seconds_has_no_price() -> None:
    empty = System(name="x", type="zero_shot", n=0, tokens=Tokens(prompt=1, completion=1), seconds=4)
    paid = by_system(cost_of(replace(FACTS, systems=(empty,))))["x"]
    assert (paid.here_usd_per_thousand, paid.here_usd_per_month, paid.hosted[0].usd_per_thousand) == (None, None, None)


@pytest.mark.parametrize(
    ("kept", "volume", "hours"),
    [
        (0, 1000, 1500 / 3600),  # an idle hour is paid by other work
        (100, 1000, 100),  # it answers for 25 minutes and waits for the rest, which is paid too
        (100, 240_000, 100),  # exactly full
        (100, 480_000, 200),  # busy longer than it is kept
        (None, 1000, HOURS_PER_MONTH),  # always on
    ],
)
def test_a_machine_is_paid_while_it_waits(kept: float | None, volume: int, hours: float) -> None:
    machine = {} if kept is None else {"hours_per_month": kept}
    few = by_system(cost_of(machine=machine, answers_per_month=volume))["few_shot"]
    assert few.here_usd_per_month == pytest.approx(3.6 * hours)
    assert few.here_usd_per_thousand == pytest.approx(3.6 * hours / volume * 1000)
    assert few.busy_usd_per_thousand == pytest.approx(1.5)  # whatever it waits


def test_a_tuned_model_has_prices_of_its_own() -> None:
    paid = by_system(cost_of(hosted=["openai/gpt-4o-mini"]))
    assert paid["few_shot"].hosted[0].usd_per_thousand == pytest.approx((250 * 0.15 + 20 * 0.60) / 1000)
    assert paid["fine_tuned"].hosted[0].usd_per_thousand == pytest.approx((50 * 0.30 + 20 * 1.20) / 1000)


def test_a_tuned_model_that_needs_an_endpoint_pays_for_every_hour_of_it() -> None:
    paid = by_system(cost_of(hosted=["together/qwen3.5-9b"]))
    assert paid["few_shot"].hosted[0].usd_per_thousand == pytest.approx((250 * 0.10 + 20 * 0.15) / 1000)
    tuned = paid["fine_tuned"].hosted[0]
    assert tuned.usd_per_month == pytest.approx(3.99 * HOURS_PER_MONTH) and "not measured" in tuned.note


def test_time_on_a_rented_gpu_is_not_guessed() -> None:
    rented = by_system(cost_of(hosted=["runpod/l40s"]))["few_shot"].hosted[0]
    assert rented.usd_per_thousand is None and "$1.09 an hour" in rented.note and "not measured" in rented.note
    assumed = cost_of(hosted=["runpod/l40s"], rented_speed={"runpod/l40s": 10.0})
    few = by_system(assumed)["few_shot"].hosted[0]
    assert few.usd_per_thousand == pytest.approx(150 / 3600 * 1.09) and "assumed to be 10 times" in few.note
    # the run takes 801 s here
    assert {e.name: e.usd for e in assumed.quarterly}["Again each quarter, at runpod/l40s"] == pytest.approx(
        4 * 80.1 / 3600 * 1.09
    )


def test_a_rented_gpu_is_always_on_unless_the_recipe_says_less() -> None:
    """The use of a bought machine by other work does not pay for a rented one."""
    own = {"purchase_usd": 876.6, "lifetime_years": 1, "utilization": 0.5}
    rented: dict[str, Any] = {
        "hosted": ["runpod/l40s"],
        "rented_speed": {"runpod/l40s": 10.0},
        "machine_usd_per_hour": None,
    }
    for more, hours in (({}, HOURS_PER_MONTH), ({"hours_per_month": 30}, 30)):
        few = by_system(cost_of(machine={**own, **more}, **rented))["few_shot"]
        assert few.hosted[0].usd_per_month == pytest.approx(1.09 * hours)
        assert few.here_usd_per_month == pytest.approx(0.2 * min(hours, HOURS_PER_MONTH / 2))


def test_a_price_that_is_not_sold_is_null_and_says_why() -> None:
    paid = by_system(cost_of(hosted=["mistral/ministral-8b"]))
    assert paid["few_shot"].hosted[0].usd_per_thousand is not None
    assert (paid["fine_tuned"].hosted[0].usd_per_thousand, paid["fine_tuned"].hosted[0].note) == (
        None,
        "no price for a tuned model",
    )


def test_prompt_tokens_that_are_saved_are_counted_beside_each_longer_prompt() -> None:
    cost = cost_of(replace(FACTS, systems=(ZERO, FEW, TUNED)), answers_per_month=2000)
    assert [(s.baseline, s.tokens_per_answer) for s in cost.savings] == [("few_shot", 200), ("zero_shot", 20)]
    assert [s.usd_per_month for s in cost.savings] == pytest.approx([200 * 2000 * 2 / 1e6, 20 * 2000 * 2 / 1e6])
    as_long = TUNED.model_copy(update={"tokens": FEW.tokens})
    assert cost_of(replace(FACTS, systems=(ZERO, FEW, as_long))).savings == ()


# Break-even


def test_break_even_three_ways() -> None:
    cost = cost_of()
    here, hosted, moved = cost.break_even
    assert cost.run_usd == pytest.approx(0.6 + 0.15 + 0.05 + 0.001)
    assert here.answers == 801  # 0.801 / (0.0015 - 0.0005)
    assert here.months == pytest.approx(0.801)
    assert hosted.answers == 25_000  # 10 / (0.0007 - 0.0003)
    assert moved.answers == 4005  # 0.801 / (0.0007 - 0.0005)
    assert "24.4 days at 1,000 a month" in here.explanation
    assert [b.name for b in cost.break_even] == [
        "fine_tuned here against few_shot here",
        "fine_tuned at recipe against few_shot at recipe",
        "fine_tuned here against few_shot at recipe",
    ]


def test_every_cheaper_rung_is_compared_the_best_first() -> None:
    cost = cost_of(replace(FACTS, systems=(ZERO, FEW, TUNED, PROGRAM)))
    assert [b.baseline for b in cost.break_even] == ["few_shot"] * 3 + ["zero_shot"] * 3
    # 0.881 / (0.0008 - 0.0005)
    assert break_evens(cost)["fine_tuned here against zero_shot here"].answers == 2937


def test_the_volume_that_pays_for_doing_it_again_each_quarter() -> None:
    plain, with_rows = cost_of().break_even[0], cost_of(refresh_usd=99.199).break_even[0]
    assert plain.again_answers_per_month == 267  # 4 * 0.801 / 12 / 0.001
    assert with_rows.again_answers_per_month == 33_334  # 4 * 100 / 12 / 0.001
    assert with_rows.answers == plain.answers  # the first rows are there
    assert cost_of(repeats_per_year=0).break_even[0].again_answers_per_month == 0


def test_on_a_machine_that_waits_a_faster_answer_saves_nothing() -> None:
    cost = cost_of(machine={"hours_per_month": 100})
    here, _, moved = cost.break_even
    assert here.answers is None
    assert here.explanation == "never at 1,000 a month: both fit into the hours that the machine is paid for."
    # few_shot is busy for longer than 100 hours from 240,000 answers on; then each costs 0.0015
    assert here.again_answers_per_month == 240_178  # 240,000 + 0.267 / 0.0015
    assert moved.answers is None and "more than the baseline's" in moved.explanation
    assert moved.again_answers_per_month == 514_668  # (360 + 0.267) / 0.0007, before fine_tuned is full at 720,000


@pytest.mark.parametrize(("seconds", "answers"), [(150.0, None), (150.1, None), (149.9, 900_900)])
def test_break_even_from_both_sides(seconds: float, answers: int | None) -> None:
    facts = replace(FACTS, systems=(FEW, TUNED.model_copy(update={"seconds": seconds})))
    found = cost_of(facts, Run(name="x", stages={"train": 900.9, "evaluate": 0.0})).break_even[0]
    assert found.answers == answers
    assert found.explanation.startswith("never at" if answers is None else "after 900,900 answers")
    assert (found.months is None) == (answers is None)


def test_doing_it_again_each_quarter_is_four_runs_and_their_rows() -> None:
    here, hosted = cost_of().quarterly
    assert here.usd == pytest.approx(4 * 0.801) and here.name == "Again each quarter, here"
    assert hosted.usd == pytest.approx(40.0)
    twice = cost_of(repeats_per_year=2, refresh_usd=50).quarterly[1]
    assert twice.usd == pytest.approx(2 * 60) and twice.name == "Again 2 times a year, at recipe"
    assert twice.formula == "2 × ($10.00 + $50.00 of new rows) a year"
    assert cost_of(repeats_per_year=0).quarterly == ()


def test_a_free_machine_costs_nothing_and_breaks_even_never() -> None:
    cost = cost_of(machine_usd_per_hour=0.0)
    assert cost.run_usd == 0 and cost.break_even[0].answers is None


def test_no_break_even_without_both_sides() -> None:
    assert cost_of(replace(FACTS, systems=(FEW, PROGRAM))).break_even == ()
    assert cost_of(replace(FACTS, systems=(TUNED, PROGRAM))).break_even == ()
    assert cost_of(replace(FACTS, systems=(TUNED, FEW.model_copy(update={"held_out": False})))).break_even == ()


# Sensitivity


def test_only_systems_that_none_clearly_beats_compete_on_price() -> None:
    clear = cost_of(replace(FACTS, systems=(ZERO, FEW, TUNED, PROGRAM)))
    assert {c.split(":")[0] for c in clear.choices} == {"fine_tuned here", "fine_tuned at recipe"}
    close = FEW.model_copy(update={"metrics": TUNED.metrics})
    assert len(cost_of(replace(FACTS, systems=(close, TUNED))).choices) == 4


def test_factors_at_which_another_way_becomes_the_cheapest() -> None:
    """Fine-tuned here against hosted: 0.0005 * v * h + h / 3 * 0.801 against 0.0003 * v * p + p / 3 * 10."""
    facts = replace(FACTS, systems=(TUNED,))
    cost = cost_of(facts, Run(name="x", stages={"train": 801.0, "evaluate": 0.0}))
    # 0.5 + 0.267 = 0.767 here; 0.3 + 3.3333 = 3.6333 hosted
    assert cost.choices == ("fine_tuned here: $0.77 a month", "fine_tuned at recipe: $3.63 a month")
    rows = {(s.assumption, s.factor is not None and s.factor > 1): s for s in cost.sensitivity}
    more = {name: s for (name, up), s in rows.items() if up}
    assert more["answers a month"].factor == pytest.approx((10 / 3 - 0.267) / 0.2)  # 0.0002 more each
    assert more["answers a month"].then == "15,332" and more["answers a month"].cheapest == "fine_tuned at recipe"
    assert more["an hour of this machine"].factor == pytest.approx((0.3 + 10 / 3) / 0.767)
    assert more["seconds an answer here"].factor == pytest.approx((0.3 + 10 / 3 - 0.267) / 0.5)
    less = {name: s for (name, up), s in rows.items() if not up and s.factor is not None}
    assert less["prices of recipe"].factor == pytest.approx(0.767 / (0.3 + 10 / 3))
    assert less["repeats a year"].factor == pytest.approx(0.2 / (10 / 3 - 0.267))  # fewer: training weighs less
    assert "hours a month it is kept" not in {s.assumption for s in cost.sensitivity}  # none is


def test_an_assumption_that_changes_nothing_says_so() -> None:
    facts = replace(FACTS, systems=(TUNED,), training=Training(seconds=600, tokens=0))
    cost = cost_of(facts, machine={"hours_per_month": 500})
    repeats = [s for s in cost.sensitivity if s.assumption == "seconds an answer here"]
    assert [(s.factor, s.then, s.cheapest) for s in repeats] == [(None, None, None)]


def test_a_month_has_no_more_hours_than_it_has() -> None:
    facts = replace(FACTS, systems=(TUNED,), training=Training(seconds=600, tokens=100_000_000))
    cost = cost_of(facts, machine={"hours_per_month": 40}, answers_per_month=10)
    assert cost.choices[0].startswith("fine_tuned here")  # 144 a month; hosted 167
    kept = [s for s in cost.sensitivity if s.assumption == "hours a month it is kept"]
    assert [s.then for s in kept] == ["46.24"]
    dear = cost_of(
        replace(facts, training=Training(seconds=600, tokens=3_000_000_000)), machine={"hours_per_month": 40}
    )
    kept = [s for s in dear.sensitivity if s.assumption == "hours a month it is kept"]
    assert [s.factor for s in kept] == [None]  # 1,389 hours would do it


# Prices


def test_prices_show_their_age_and_old_ones_are_warned_of() -> None:
    days = {"input": date(2025, 11, 26), "output": date(2026, 5, 4), "tuned_input": TODAY, "tuned_output": TODAY}
    book = Book({("a/b", what): Price("a/b", what, 1.0, day, "page") for what, day in days.items()}, "a book")
    cost = cost_of(book=book, hosted=["a/b"])
    assert [(p.what, p.age, p.old) for p in cost.prices] == [
        ("input", "read 2025-11, 12 months old", True),
        ("output", "read 2026-05, 6 months old", False),
        ("tuned_input", "read 2026-11, this month", False),
        ("tuned_output", "read 2026-11, this month", False),
    ]
    assert cost.warnings == ("The prices of a/b were read more than a year ago; look them up again.",)


def test_an_entry_that_is_gone_is_not_priced_and_is_told() -> None:
    cost = cost_of(book=Book({}, "a book"), hosted=["a/b"])
    assert cost.warnings == ("a/b is not in the price book any more, so nothing is priced there.",)
    assert by_system(cost)["few_shot"].hosted[0].note == "not in the price book"
    with pytest.raises(RecipeError, match=r"cost\.machine\.price = 'a/b': no such entry"):
        cost_of(book=Book({}, "a book"), machine_usd_per_hour=None, machine={"price": "a/b"})


@pytest.mark.parametrize(("slow", "warned"), [(0.0, False), (0.9, False), (1800.0, True)])
def test_seconds_that_look_like_a_pause_are_told(slow: float, warned: bool) -> None:
    cost = cost_of(replace(FACTS, training=TRAINING.model_copy(update={"slow_seconds": slow})))
    assert bool(cost.warnings) == warned
    assert cost.run[0].usd == pytest.approx(0.6)  # told, and not taken off: it may have been work
