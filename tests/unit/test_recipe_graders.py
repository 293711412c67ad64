"""The graders that recipes have beside OpenAI's: JSON that satisfies a schema, right fields, the last number."""

from typing import Any

import pytest

from luthier.errors import EvaluationError
from luthier.evaluation.graders.base import Host, Sample, build_grader

VALID = {"type": "json_schema", "name": "valid"}


@pytest.mark.parametrize(
    ("schema", "answer", "reward"),
    [
        ({}, "[1]", 1.0),
        ({}, "here: [1]", 0.0),
        ({"type": "object", "required": ["a"]}, '{"a": 1}', 1.0),
        ({"type": "object", "required": ["a"]}, '{"b": 1}', 0.0),
    ],
)
def test_an_answer_satisfies_a_schema_or_not(schema: dict[str, Any], answer: str, reward: float) -> None:
    grader = build_grader({**VALID, "json_schema": schema})
    assert grader.grade(Sample.of(answer), {}, Host()).reward == reward


def test_a_schema_that_is_none_is_refused() -> None:
    with pytest.raises(EvaluationError, match="no JSON Schema"):
        build_grader({**VALID, "json_schema": {"type": 7}}).require(Host())


@pytest.mark.parametrize(
    ("answer", "f1", "exact"),
    [
        ('{"a": "x", "b": [1, 2]}', 1.0, 1.0),
        ('{"b": [2, 1.0], "a": " x"}', 1.0, 1.0),
        ('{"a": "x"}', 0.5, 0.0),  # 1 of 1 and 1 of 3
        ('{"a": "x", "b": [1, 2], "c": 0}', 6 / 7, 0.0),
        ('so: {"a": "x", "b": [1, 2]}', 0.0, 0.0),
    ],
)
def test_right_fields_have_their_share(answer: str, f1: float, exact: float) -> None:
    item = {"target": {"a": "x", "b": [1, 2]}}
    for measure, reward in (("f1", f1), ("exact", exact)):
        grader = build_grader({"type": "fields", "name": "fields", "measure": measure})
        assert grader.grade(Sample.of(answer), item, Host()).reward == pytest.approx(reward)


@pytest.mark.parametrize(
    ("answer", "reward"),
    [
        ("42", 1.0),
        ("6 * 7 is 42.", 1.0),
        ("1,042 less 1,000: 42.0", 1.0),
        ("It is 42, not 43", 0.0),
        ("-42", 0.0),
        ("forty-two", 0.0),
        ("b42", 0.0),
    ],
)
def test_the_last_number_counts(answer: str, reward: float) -> None:
    grader = build_grader({"type": "number", "name": "n"})
    assert grader.grade(Sample.of(answer), {"reference_answer": "6 x 7 = 42\n#### 42"}, Host()).reward == reward
