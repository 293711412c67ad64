"""Numbers, dates and names of a text in one form for all their spellings."""

import pytest

from luthier.data.facts import stem, tokens_of


def keys(text: str, kind: str) -> list[str]:
    return [token.key for token in tokens_of(text) if token.kind == kind]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("3,500 and 3500 and 3500.0", ["3500", "3500", "3500"]),
        ("three thousand five hundred", ["3500"]),
        ("two hundred and five dogs, two or three cats", ["205", "2", "3"]),
        ("twenty-one, twenty one, the 21st, the twenty-first", ["21", "21", "21", "21"]),
        ("1.5 million, 1,500,000, $4.2bn", ["1500000", "1500000", "4200000000"]),
        ("6½ sacks", ["6.5"]),
        ("the 1850s", ["1850"]),
        ("a dozen eggs", ["12"]),
        ("It was one of the first, a second too late.", []),
    ],
)
def test_a_number_is_the_same_however_it_is_written(text: str, numbers: list[str]) -> None:
    assert keys(text, "number") == numbers


@pytest.mark.parametrize("text", ["7 February 2016", "Feb. 7, 2016", "February 7th, 2016", "2016-02-07"])
def test_a_date_has_the_same_month_day_and_year_however_it_is_written(text: str) -> None:
    assert keys(text, "month") == ["2"]
    assert sorted(keys(text, "number")) == ["2016", "7"]


def test_may_and_march_are_months_only_where_they_can_be() -> None:
    assert keys("May I go? They march on.", "month") == []
    assert keys("in May 2019, on 3 March", "month") == ["5", "3"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("He met Nikola Tesla's friends.", ["nikola", "tesla"]),
        ("The Panthers' defense", ["panther"]),
        ("Nobody knows. Everyone asks. I'm here; we think I'll go.", []),
        ("- Engaging with people\n- Thinking", []),
        ("1. First thing\n2. Second thing", []),
        ("Then NASA said so.", ["nasa"]),
        ("Dr. King spoke with Mr. Lee.", ["king", "mr", "lee"]),
    ],
)
def test_a_name_is_a_capital_that_no_sentence_needs(text: str, names: list[str]) -> None:
    assert keys(text, "name") == names


@pytest.mark.parametrize(
    ("one", "other"), [("cities", "city"), ("stopped", "stop"), ("houses", "house"), ("played", "playing")]
)
def test_forms_of_a_word_have_one_stem(one: str, other: str) -> None:
    assert stem(one) == stem(other)


def test_different_words_keep_different_stems() -> None:
    assert len({stem(word) for word in ("bus", "bath", "glass", "thing", "king", "red", "sing", "basis")}) == 8
