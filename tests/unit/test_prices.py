"""The price book: what ships is whole, a user's own goes before it, and what is wrong is named with its place."""

import re
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from luthier.config import build
from luthier.errors import RecipeError
from luthier.prices.book import OWN_HOSTED, SHIPPED, Book, Price, hosted_names, open_book, read_book, require_prices
from luthier.prices.machine import own_machine
from luthier.recipe import HOURS_PER_MONTH, CostSettings, Recipe, load

TODAY = date(2026, 11, 27)
ENTRY = """
[[prices]]
provider = "acme"
model = "small-1"
usd_per_million_tokens = { training = 4.0, input = 0.5 }
read = 2026-10-01
source = "https://acme.example/pricing"
"""


def settings(**values: Any) -> CostSettings:
    return build(CostSettings, values, ["cost"])


def written(folder: Path, text: str) -> Path:
    path = folder / "prices.toml"
    path.write_text(text, encoding="utf-8")
    return path


# What ships


def test_every_shipped_price_has_a_day_that_has_passed_and_a_source() -> None:
    prices = read_book(SHIPPED)
    assert len(prices) > 40
    for price in prices.values():
        assert price.read is not None and price.read <= date.today()
        assert re.search(r"https://|EIA", price.source), price


def test_the_defaults_of_the_recipe_are_in_the_book() -> None:
    require_prices(CostSettings())
    book = open_book(CostSettings())
    for name in CostSettings().hosted:
        assert {"training", "input", "output", "tuned_input", "tuned_output"} <= set(book.of(name))


def test_prices_of_one_entry_may_be_of_different_days() -> None:
    book = open_book(CostSettings())
    tuned, base = book.find("openai/gpt-4o-mini", "tuned_input"), book.find("openai/gpt-4o-mini", "input")
    assert tuned and base and tuned.usd == 2 * base.usd and tuned.read != base.read


# Age


@pytest.mark.parametrize(
    ("read", "age", "old"),
    [
        (date(2026, 11, 27), "read 2026-11, this month", False),
        (date(2026, 10, 27), "read 2026-10, a month old", False),
        (date(2026, 10, 28), "read 2026-10, this month", False),
        (date(2026, 5, 4), "read 2026-05, 6 months old", False),
        (date(2025, 11, 27), "read 2025-11, 12 months old", False),  # a year to the day
        (date(2025, 11, 26), "read 2025-11, 12 months old", True),
        (None, "undated: from the recipe", False),
    ],
)
def test_a_price_shows_its_age_and_is_old_beyond_a_year(read: date | None, age: str, old: bool) -> None:
    price = Price("a/b", "input", 1.0, read, "x")
    assert (price.age(TODAY), price.is_old(TODAY)) == (age, old)


# A user's own book


def test_an_own_book_adds_entries_and_replaces_single_prices(tmp_path: Path) -> None:
    own = ENTRY + (
        '[[prices]]\nprovider = "openai"\nmodel = "gpt-4o-mini"\nusd_per_million_tokens = { input = 0.11 }\n'
        'read = 2026-11-01\nsource = "our contract"\n'
    )
    book = open_book(settings(prices=str(written(tmp_path, own))))
    added, replaced = book.find("acme/small-1", "training"), book.find("openai/gpt-4o-mini", "input")
    assert added and added.usd == 4.0
    assert replaced and (replaced.usd, replaced.source) == (0.11, "our contract")
    kept = book.find("openai/gpt-4o-mini", "output")
    assert kept and kept.usd == 0.60
    assert book.find("acme/small-1", "output") is None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            ("input = 0.5", "inptu = 0.5"),
            r"entry 1 \(acme/small-1\)\.usd_per_million_tokens\.inptu'; did you mean 'input'",
        ),
        (
            ("input = 0.5", "input = -0.5"),
            r"entry 1 \(acme/small-1\)\.usd_per_million_tokens\.input = -0\.5: .*greater",
        ),
        (("input = 0.5", 'input = "0.5"'), r"entry 1 \(acme/small-1\)\.usd_per_million_tokens\.input = '0\.5'"),
        (("2026-10-01", "2026-11-28"), r"entry 1 \(acme/small-1\): read = 2026-11-28 lies in the future"),
        (("2026-10-01", '"yesterday"'), r"entry 1 \(acme/small-1\)\.read = 'yesterday'"),
        (('source = "https://acme.example/pricing"', ""), r"entry 1 \(acme/small-1\)\.source' is missing"),
        (("read = 2026-10-01", ""), r"entry 1 \(acme/small-1\)\.read' is missing"),
        (('provider = "acme"', ""), r"entry 1 \(\?/small-1\)\.provider' is missing"),
        (('provider = "acme"', 'provider = "Acme Inc"'), r"provider = 'Acme Inc'"),
        (
            ("usd_per_million_tokens = { training = 4.0, input = 0.5 }", ""),
            r"entry 1 \(acme/small-1\): nothing is priced",
        ),
        (("[[prices]]", "[[price]]"), r"a list of \[\[prices\]\] and nothing else; other keys found: 'price'"),
        (("[[prices]]", "[prices]"), r"a list of \[\[prices\]\]"),
        (("model =", "model "), r"not a readable TOML file.*line 4"),
    ],
)
def test_what_is_wrong_in_a_book_is_told_with_file_entry_and_key(
    change: tuple[str, str], expected: str, tmp_path: Path
) -> None:
    path = written(tmp_path, ENTRY.replace(*change))
    with pytest.raises(RecipeError, match=expected) as error:
        read_book(path, TODAY)
    assert str(path) in str(error.value)


def test_today_is_not_the_future(tmp_path: Path) -> None:
    assert read_book(written(tmp_path, ENTRY.replace("2026-10-01", "2026-11-27")), TODAY)


def test_a_price_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, ENTRY + ENTRY.replace("training = 4.0, ", ""))
    with pytest.raises(RecipeError, match=r"entry 2 \(acme/small-1\): the price for input stands in this book twice"):
        read_book(path, TODAY)


def test_a_book_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"nowhere\.toml: no such file"):
        open_book(settings(prices=str(tmp_path / "nowhere.toml")))


def test_the_path_of_a_book_is_relative_to_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text('[data]\ntrain = "rows.jsonl"\n[cost]\nprices = "prices.toml"\n')
    assert load(tmp_path / "recipe.toml").cost.prices == str(tmp_path / "prices.toml")


# What a recipe names


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"hosted": ["opnai/gpt-4o-mini"]}, r"cost\.hosted = 'opnai/gpt-4o-mini': no such entry.*'openai/gpt-4o-mini'"),
        ({"hosted": ["eia/us-commercial"]}, r"cost\.hosted = 'eia/us-commercial': expected .* it has kwh"),
        (
            {"machine": {"energy": "runpod/l40s"}},
            r"cost\.machine\.energy = 'runpod/l40s': expected .* kwh; it has hour",
        ),
        ({"machine": {"price": "mistral/ministral-8b"}}, r"cost\.machine\.price .* hour; it has input, output"),
        ({"rented_speed": {"runpod/l40s": 20}}, r"cost\.rented_speed\.'runpod/l40s': it is not listed in cost\.hosted"),
        ({"hosted": ["tinker/qwen3-8b"], "rented_speed": {"tinker/qwen3-8b": 2}}, r"cost\.rented_speed .* for hour"),
    ],
)
def test_an_entry_that_is_not_in_the_book_is_told_before_anything_long(values: dict[str, Any], expected: str) -> None:
    with pytest.raises(RecipeError, match=expected):
        require_prices(settings(**values))


def test_an_old_recipe_keeps_its_own_hosted_price() -> None:
    old = build(
        Recipe,
        {
            "data": {"train": "x.jsonl"},
            "cost": {
                "machine_usd_per_hour": 0.1,
                "hosted_training_usd_per_million_tokens": 3.0,
                "hosted_input_usd_per_million_tokens": 0.3,
                "hosted_output_usd_per_million_tokens": 1.2,
                "answers_per_month": 5,
            },
        },
    ).cost
    book = open_book(old)
    assert {what: price.usd for what, price in book.of(OWN_HOSTED).items()} == {
        "training": 3.0,
        "input": 0.3,
        "output": 1.2,
        "tuned_input": 0.3,
        "tuned_output": 1.2,
    }
    assert hosted_names(old, book) == (*old.hosted, OWN_HOSTED)
    assert OWN_HOSTED not in hosted_names(CostSettings(), open_book(CostSettings()))


# An hour of the own machine


def book() -> Book:
    return Book({("home/tariff", "kwh"): Price("home/tariff", "kwh", 0.30, TODAY, "bill")}, "a book")


def test_a_bought_machine_is_paid_by_its_hours_of_use_and_its_power() -> None:
    own = {"purchase_usd": 2400, "lifetime_years": 4, "utilization": 0.25, "watts": 500, "energy": "home/tariff"}
    machine = own_machine(settings(machine=own), book())
    # 2400 / (4 * 8766 * 0.25) = 0.27378...; 0.5 kW * 0.30 = 0.15
    assert machine.usd_per_hour == pytest.approx(2400 / 8766 + 0.15)
    assert machine.kept_hours == pytest.approx(730.5 / 4)
    # all of its months together pay for it, once
    assert machine.kept_hours * 12 * 4 * (machine.usd_per_hour - 0.15) == pytest.approx(2400)
    assert "not measured" in machine.watts_from


def test_a_measured_draw_goes_before_the_one_of_the_recipe() -> None:
    own = {"purchase_usd": 0, "lifetime_years": 1, "watts": 500, "energy": "home/tariff"}
    machine = own_machine(settings(machine=own), book(), measured_watts=100.0)
    assert machine.usd_per_hour == pytest.approx(0.03) and machine.watts_from.startswith("measured")


def test_power_that_nobody_knows_is_left_out_and_said() -> None:
    own = {"purchase_usd": 8766, "lifetime_years": 1, "energy": "home/tariff"}
    machine = own_machine(settings(machine=own), book())
    assert machine.usd_per_hour == pytest.approx(1.0) and "power left out" in machine.formula


def test_a_rented_machine_has_the_price_of_its_entry() -> None:
    cost = settings(machine={"price": "runpod/l40s"})
    assert own_machine(cost, open_book(cost)).usd_per_hour == 1.09
    assert own_machine(settings(), open_book(settings())).usd_per_hour == 0.10
    assert own_machine(settings(machine_usd_per_hour=0), book()).usd_per_hour == 0


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"machine": {"purchase_usd": 9.0}}, "purchase_usd and lifetime_years go together"),
        ({"machine": {"lifetime_years": 9.0}}, "purchase_usd and lifetime_years go together"),
        ({"machine": {"price": "a/b", "purchase_usd": 9.0, "lifetime_years": 1}}, "exclude each other"),
        ({"machine_usd_per_hour": 0.2, "machine": {"price": "a/b"}}, r"cost\.machine\.price both price an hour"),
        (
            {"machine_usd_per_hour": 0.2, "machine": {"purchase_usd": 9.0, "lifetime_years": 1}},
            r"cost\.machine\.purchase_usd both price an hour",
        ),
        ({"machine": {"utilization": 0.5}}, "utilization changes nothing without"),
        (
            {"machine": {"purchase_usd": 9, "lifetime_years": 1, "utilization": 0.5, "hours_per_month": 400}},
            r"at most 365\.25 hours a month",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(values: dict[str, Any], expected: str) -> None:
    with pytest.raises(RecipeError, match=expected):
        settings(**values)


def test_a_machine_is_always_on_unless_the_recipe_says_less() -> None:
    assert own_machine(settings(), book()).kept_hours == HOURS_PER_MONTH
    assert own_machine(settings(machine={"hours_per_month": 0}), book()).kept_hours == 0


def test_a_speed_is_above_zero() -> None:
    with pytest.raises(RecipeError, match=r"cost\.rented_speed.*greater than 0"):
        settings(rented_speed={"runpod/l40s": 0})
