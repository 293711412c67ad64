"""Features of how a text is written, distances from wanted replies, and pairs asked in both orders."""

import math

import numpy as np
import pytest

from luthier.evaluation.style.distance import distance_to
from luthier.evaluation.style.features import FEATURES, measure_style
from luthier.evaluation.style.pairs import Judged, Pair, questions, read_choice, read_replies

NAMES = list(FEATURES)


def feature(name: str, text: str) -> float:
    return float(measure_style([text])[0, NAMES.index(name)])


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("length", "one two three", math.log(4)),
        ("length", "", 0),
        ("sentence_words", "One two three. Four!\nFive six", 2),
        ("word_letters", "ab abcd", 3),
        ("list_items", "Buy:\n- milk\n2. bread\n\nDone", 0.5),
        ("headings", "# Title\ntext\n#tag\nmore", 0.25),
        ("emphasis", "**one** two three four five six seven eight nine ten", 10),
        ("code", "run `ls` or `pwd` and look well now", 100 * 2 / 6),
        ("emoji", "good 🎉 day", 50),
        ("exclamations", "Hi! Yes!", 100),
        ("questions", "Why? No.", 50),
        ("first_person", "I’m here with my dog", 40),
        ("second_person", "You and your dog ate", 40),
        ("contractions", "It's fine, don't go now", 40),
        ("hedges", "Perhaps it seems so today", 40),
        ("politeness", "Sorry, thank you all so", 40),
        ("disclaimers", "As an AI language model, I cannot say that", 100 / 9),
        ("said_again", "a b c d a b c d", 1 / 5),
    ],
)
def test_a_feature_counts_what_its_name_says(name: str, text: str, value: float) -> None:
    assert feature(name, text) == pytest.approx(value)


def test_code_is_not_prose() -> None:
    text = "See:\n```\nif you! you? I'm\n```\nend"
    assert feature("second_person", text) == feature("exclamations", text) == feature("contractions", text) == 0


def test_every_feature_of_an_empty_text_is_zero() -> None:
    assert not measure_style(["", " \n"]).any()
    assert measure_style([]).shape == (0, len(FEATURES))


def texts(rng: np.random.Generator, shift: float, rows: int = 200) -> np.ndarray:
    drawn: np.ndarray = rng.normal(shift, 1.0, (rows, len(FEATURES)))
    return drawn


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_the_distance_is_the_share_of_pairs_with_more_minus_those_with_less(shift: float) -> None:
    rng = np.random.default_rng(0)
    answers, wanted = texts(rng, shift), texts(rng, 0.0)
    found = distance_to(answers, wanted, np.arange(200))
    assert found is not None
    for at, one in enumerate(found.features.values()):
        pairs = np.sign(answers[:, None, at] - wanted[None, :, at])
        assert one.value == pytest.approx(pairs.mean(), abs=1e-12)
    if shift:
        true = math.erf(shift / 2)  # of two normal variables half a standard deviation apart
        assert found.distance.value == pytest.approx(true, abs=0.03)
        assert found.distance.low > found.by_chance
        covering = [one.low <= true <= one.high for one in found.features.values()]
        assert sum(covering) >= 15
    else:
        assert found.distance.value < 0.07
        assert 0.03 < found.by_chance < 0.07


def test_the_interval_of_a_feature_covers_what_is_true() -> None:
    """1,000 intervals, of answers 1.5 standard deviations off: 0.95 of them cover it, give or take 0.02."""
    rng, true, covering, widest = np.random.default_rng(4), math.erf(0.75), 0, 0.0
    for seed in range(60):
        found = distance_to(texts(rng, 1.5, 60), texts(rng, 0, 60), np.arange(60), seed=seed)
        assert found is not None
        covering += sum(one.low <= true <= one.high for one in found.features.values())
        widest = max(widest, *(one.high - one.low for one in found.features.values()))
    assert 0.93 <= covering / 60 / len(FEATURES) <= 0.98
    assert widest < 0.4


def test_a_feature_that_wanted_replies_hardly_have_cannot_outweigh_all_others() -> None:
    rng = np.random.default_rng(3)
    answers, wanted = texts(rng, 0), texts(rng, 0)
    wanted[:, 0] = rng.uniform(0, 1e-6, 200)
    answers[:, 0] = 1000
    found = distance_to(answers, wanted, np.arange(200))
    assert found is not None
    assert next(iter(found.features.values())).value == 1
    assert found.distance.value < 2 / len(FEATURES) + found.by_chance


def test_chance_is_exceeded_as_often_as_it_says() -> None:
    rng, rows, exceeded = np.random.default_rng(1), np.arange(40), 0
    for seed in range(60):
        found = distance_to(texts(rng, 0, 40), texts(rng, 0, 40), rows, seed=seed)
        assert found is not None
        exceeded += found.distance.value > found.by_chance
    assert exceeded <= 8, "3 are expected of 60; more than 8 would come once in 200"


def test_rows_of_a_group_are_one_observation() -> None:
    rng = np.random.default_rng(2)
    answers, wanted = (np.repeat(texts(rng, 0.3, 20), 5, axis=0) for _ in range(2))
    wanted = wanted - 0.3
    alone = distance_to(answers, wanted, np.arange(100))
    grouped = distance_to(answers, wanted, np.repeat(np.arange(20), 5))
    assert alone is not None and grouped is not None
    assert grouped.by_chance > 1.5 * alone.by_chance
    assert grouped.distance.high - grouped.distance.low > alone.distance.high - alone.distance.low


def test_features_that_nobody_has_are_left_out() -> None:
    wanted = measure_style(["one two", "one two three"])
    found = distance_to(measure_style(["a b!", "c"]), wanted, np.arange(2))
    assert found is not None
    assert found.features["length"].value == -0.75, "three of four pairs have less, one has as much"
    assert found.features["exclamations"].value == 0.5, "half of the answers have them, no wanted reply has"
    assert "emoji" not in found.features
    same = measure_style(["same", "same"])
    assert distance_to(same, same, np.arange(2)) is None


@pytest.mark.parametrize(
    ("reply", "choice"),
    [
        ("A", "first"),
        ("**B**", "second"),
        ("[[A]]", "first"),
        ("Answer B is better than A.", "second"),
        ("Tie.", "tie"),
        ("It is a tie", "tie"),
        ("TIE", "tie"),
        ("A.", "first"),
        ("a nice day", None),
        ("Both", None),
        ("", None),
    ],
)
def test_a_reply_names_the_first_choice_in_it(reply: str, choice: str | None) -> None:
    assert read_choice(reply) == choice


@pytest.mark.parametrize(
    ("replies", "outcome"),
    [
        (["A", "B"], "a"),
        (["B", "A"], "b"),
        (["A", "A"], "tie"),
        (["B", "B"], "tie"),
        (["A", "tie"], "tie"),
        (["tie", "tie"], "tie"),
        (["A", "what?"], "tie"),
    ],
)
def test_an_answer_wins_only_if_it_is_named_in_both_orders(replies: list[str], outcome: str) -> None:
    (judged,) = read_replies(replies)
    assert judged.outcome == outcome


def test_both_orders_are_asked_with_the_standard_to_go_by() -> None:
    pair = Pair("r1", "Say hello.", "Hello there.", "Hi!")
    ab, ba = questions(pair, "short and warm")
    assert ab.id != ba.id
    assert all("short and warm" in row.prompt[0].content and "Say hello." in row.prompt[0].content for row in (ab, ba))
    assert "[Answer A]\nHello there.\n\n[Answer B]\nHi!" in ab.prompt[0].content
    assert "[Answer A]\nHi!\n\n[Answer B]\nHello there." in ba.prompt[0].content
    assert Judged(("first", "second")).outcome == "a"
