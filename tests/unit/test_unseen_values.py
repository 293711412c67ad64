"""Values of JSON answers that held-out rows want and training never shows."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from luthier.data.checks.base import Finding, run_checks
from luthier.examples import Conversation, Message, Where


def row(number: int, answer: Mapping[str, Any] | str, target: bool = False) -> Conversation:
    text = answer if isinstance(answer, str) else json.dumps(answer)
    said = (Message("user", f"Case {number}"), Message("assistant", text))
    return Conversation(said, where=Where("rows.jsonl", number + 1), target=answer if target else None)


def found(train: Iterable[Any], test: Iterable[Any], target: bool = False) -> list[Finding]:
    splits = {
        name: [row(at, answer, target) for at, answer in enumerate(answers)]
        for name, answers in (("train", train), ("test", test))
    }
    return run_checks(splits, ["unseen_values"])


@pytest.mark.parametrize("target", [False, True])
def test_values_that_training_never_shows_are_told_with_those_that_it_does(target: bool) -> None:
    train = [{"kind": "cafe", "name": f"Place {n}"} for n in range(100)]
    test = [{"kind": "pub" if n % 2 else "cafe", "name": f"House {n}"} for n in range(60)]
    (finding,) = found(train, test, target)
    assert (finding.severity, finding.count) == ("warning", 30)
    assert finding.message == (
        "30 rows of test (50 %) or more want a value that train never shows in that field: kind in 30 rows ('pub'; "
        "there it is 'cafe')"
    )


def test_a_field_that_training_never_has_is_told_too() -> None:
    (finding,) = found([{"a": 1}] * 50, [{"a": 1, "urgent": True}] * 50)
    assert "urgent in 50 rows ('true')" in finding.message


def test_the_field_that_most_rows_want_stands_first() -> None:
    test = [{"a": "x" if n < 10 else "seen", "b": "y"} for n in range(50)]
    (finding,) = found([{"a": "seen", "b": "seen"}] * 50, test)
    assert finding.count == 50
    assert finding.message.index("b in 50 rows") < finding.message.index("a in 10 rows")


@pytest.mark.parametrize(("unseen", "expected"), [(1, 0), (2, 1)])
def test_a_fiftieth_of_the_held_out_rows_is_enough(unseen: int, expected: int) -> None:
    test = [{"kind": "pub" if n < unseen else "cafe"} for n in range(100)]
    assert len(found([{"kind": "cafe"}] * 100, test)) == expected


@pytest.mark.parametrize(
    "answers",
    [
        [{"name": f"House {n}"} for n in range(60)],  # differs from row to row
        [{"n": float(n % 3)} for n in range(60)],
        [{"list": [n % 2]} for n in range(60)],
        [{"text": "x" * 65 + str(n % 2)} for n in range(60)],
        ["no object"] * 60,
        ["{broken"] * 60,
        ["{" * 100_000] * 2,
        [],
    ],
)
def test_what_is_no_choice_is_let_be(answers: list[Any]) -> None:
    train = [{"name": "Cafe", "n": 9.0, "list": [5], "text": "y"}] * 60
    assert found(train, answers) == []


def test_a_number_is_not_its_text() -> None:
    (finding,) = found([{"n": 3}] * 50, [{"n": "3"}] * 50)
    assert "n in 50 rows ('3'; there it is '3 as a number')" in finding.message


def test_training_without_objects_is_not_compared() -> None:
    assert found(["a text"] * 50, [{"kind": "cafe"}] * 50) == []


def test_many_values_and_many_fields_take_no_memory() -> None:
    many = [{f"field{n}": n % 2, "id": f"r{n}"} for n in range(5000)]
    assert found(many, many) == []


def test_secrets_among_values_are_not_printed() -> None:
    secret = "sk-" + "ant-api03-" + "Qm9vS2V5Rm9yVGVzdHM0MkFiQ2RFZg"
    (finding,) = found([{"key": "none"}] * 50, [{"key": secret}] * 50)
    assert secret not in finding.message
