"""The graders that recipes have beside OpenAI's: a schema, right fields, the last number, trained reward models."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from tests.contract.test_graders import accepted, built

from luthier.errors import EvaluationError, ModelError
from luthier.evaluation.graders.base import Host, Sample, build_grader
from luthier.examples import Message

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


# reward_model


def judging(rewards: Mapping[str, float]) -> tuple[Host, list[list[Message]]]:
    """A host whose runs have these rewards, and the chats that they were shown."""
    seen: list[list[Message]] = []

    def judge(runs: Sequence[str], messages: Sequence[Message]) -> list[float]:
        seen.append(list(messages))
        return [rewards[run] for run in runs]

    return Host(judge=judge), seen


@pytest.mark.parametrize(
    ("settings", "reward"),
    [
        ({}, 2.0),
        ({"combine": "minimum"}, 1.0),
        ({"combine": "deviation"}, 1.0),
        ({"combine": "deviation", "k": 3}, -1.0),
    ],
)
def test_rewards_of_several_runs_are_combined(settings: dict[str, Any], reward: float) -> None:
    able, seen = judging({"runs/a": 1.0, "runs/b": 3.0})
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "the wanted reply"}]
    grader = built({"type": "reward_model", "name": "r", "runs": ["runs/a", "runs/b"], **settings}, able)
    grade = grader.grade(Sample.of("Hello"), {"messages": chat}, able)
    assert accepted(grade).reward == reward and grade.sub_rewards == {"runs/a": 1.0, "runs/b": 3.0}
    assert seen == [[Message("user", "Hi"), Message("assistant", "Hello")]]
    grader.grade(Sample.of("Hello"), {"prompt": "Hey"}, able)
    assert seen[1] == [Message("user", "Hey"), Message("assistant", "Hello")]


@pytest.mark.parametrize("reply", [[], [{"role": "assistant", "content": "the wanted reply"}]])
def test_a_reply_to_a_longer_chat_is_judged_beside_all_of_it(reply: list[dict[str, str]]) -> None:
    able, seen = judging({"runs/a": 1.0})
    before = [Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "And now?")]
    grader = built({"type": "reward_model", "name": "r", "runs": ["runs/a"]}, able)
    chat = [{"role": m.role, "content": m.content} for m in before]
    assert accepted(grader.grade(Sample.of("Bye"), {"messages": chat + reply}, able)).reward == 1.0
    assert seen == [[*before, Message("assistant", "Bye")]]
    called = [*chat[:1], {**chat[1], "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}, chat[2]]
    grade = grader.grade(Sample.of("Bye"), {"messages": called}, able)
    assert "calls tools" in grade.problem and len(seen) == 1


def test_reward_models_that_cannot_judge_are_a_flag_or_refused() -> None:
    settings = {"type": "reward_model", "name": "r", "runs": ["runs/a"]}
    with pytest.raises(EvaluationError, match=r"asks trained reward models \(runs/a\), and none can be opened here"):
        built(settings, Host())

    def broken(runs: Sequence[str], messages: Sequence[Message]) -> list[float]:
        raise ModelError("runs/a/adapter: no trained model here")

    able = Host(judge=broken)
    grade = built(settings, able).grade(Sample.of("x"), {"prompt": "Hi"}, able)
    errors = accepted(grade).metadata.errors
    assert errors.api_model_grader_server_error and "no trained model" in grade.problem
    assert accepted(built(settings, able).grade(Sample.of("x"), {}, able)).metadata.errors.invalid_variable_error
