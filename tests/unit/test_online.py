"""What goes with an objective that samples its replies, what is asked, and what graders see."""

from pathlib import Path
from typing import Any

import pytest

from luthier.assemble import objective_of
from luthier.config import build
from luthier.data.asked import asked, item_of, reference_of, with_place_for_reply
from luthier.errors import RecipeError
from luthier.evaluation.graders.base import Host
from luthier.examples import Conversation, Document, Message
from luthier.online import Asked, Rewards
from luthier.recipe import Recipe, VllmSettings
from luthier.recipe.paths import absolute_paths
from luthier.recipe.rollout import VLLM_PYTHON

REWARDS: dict[str, Any] = {
    "number": {"weight": 2.0, "grader": {"type": "number"}},
    "valid": {"weight": 0.5, "grader": {"type": "json_schema"}},
}

VLLM: dict[str, Any] = {"rewards": REWARDS, "vllm": {"python": "/of/vllm/bin/python"}}


def recipe(**tables: Any) -> Recipe:
    given = {"objective": {"type": "grpo"}, "rollout": {"rewards": REWARDS}, **tables}
    return build(Recipe, {"data": {"train": "rows.jsonl"}, **{k: v for k, v in given.items() if v is not None}})


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"rollout": None}, "learns from graded replies: write a table"),
        ({"rollout": {}}, "nothing says what a reply is worth"),
        ({"objective": {"type": "sft"}}, r"\[rollout\] changes nothing with objective.type = 'sft'"),
        ({"rollout": {"rewards": REWARDS, "group_size": 1}}, "needs at least 2"),
        (
            {
                "objective": {"type": "reinforce_plus_plus", "baseline": True},
                "rollout": {"rewards": REWARDS, "group_size": 1},
            },
            "needs at least 2",
        ),
        ({"adapter": {"type": "lora", "dropout": 0.1}}, "adapter.dropout = 0.1"),
        ({"adapter": {"type": "lora", "init": "eva"}}, "choose another start"),
        ({"data": {"train": "rows.jsonl", "replay": "other.jsonl"}}, "nothing to mix in"),
        ({"rollout": VLLM, "adapter": {"type": "dora"}}, "'dora' trains others; set adapter.type = 'lora', or remove"),
        ({"rollout": VLLM, "adapter": {"type": "full"}}, "'full' trains others"),
        ({"rollout": VLLM, "adapter": {"type": "lora", "new_tokens": ["<a>"]}}, "no rows of adapter.new_tokens"),
        ({"rollout": VLLM, "model": {"quantize": "nf4"}}, "model.quantize = 'nf4' trains over another"),
    ],
)
def test_what_does_not_go_together_is_told(tables: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        objective_of(recipe(**tables))


@pytest.mark.parametrize(
    ("rollout", "words"),
    [
        ({"rewards": REWARDS, "max_turns": 3}, "changes nothing without rollout.environment"),
        ({"rewards": REWARDS, "overlong_tokens": 300}, "at most rollout.max_new_tokens"),
        ({**VLLM, "temperature": 0.001}, "vLLM samples at 0.01 or above"),
        ({**VLLM, "vllm": {"pyhton": "x"}}, "did you mean 'python'"),
        ({"rewards": REWARDS, "environment": {"type": "calculatr"}}, "did you mean 'calculator'"),
        ({"rewards": {"a": {"grader": {"type": "nummer"}}}}, "did you mean 'number'"),
    ],
)
def test_a_wrong_rollout_is_refused(rollout: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        recipe(rollout=rollout)


def test_a_recipe_reads_back_what_it_dumps() -> None:
    given = recipe(rollout={"rewards": REWARDS, "environment": {"type": "calculator", "call_reward": 0.1}})
    assert build(Recipe, given.dump()) == given


QUESTION, REPLY = Message("user", "6 x 7?"), Message("assistant", "It is 42.")


def test_a_row_is_asked_without_its_reply_and_graded_with_it() -> None:
    row = Conversation((QUESTION, REPLY), target=42, extra={"level": 1})
    assert asked(row) == (QUESTION,) and reference_of(row) == REPLY
    assert item_of(row) == {
        "level": 1,
        "messages": [{"role": "user", "content": "6 x 7?"}],
        "target": 42,
        "reference_answer": "It is 42.",
    }
    history = Conversation((QUESTION, REPLY, Message("user", "Sure?")))
    assert asked(history) == history.messages and reference_of(history) is None


def test_a_row_that_only_asks_gets_a_place_for_a_reply() -> None:
    row = Conversation((QUESTION,))
    placed = with_place_for_reply(row)
    assert isinstance(placed, Conversation) and placed.messages == (QUESTION, Message("assistant"))
    assert asked(placed) == (QUESTION,) and reference_of(placed) is None and "reference_answer" not in item_of(placed)
    for other in (Conversation((QUESTION, REPLY)), Document("text")):
        assert with_place_for_reply(other) is other


def test_the_reward_is_the_weighted_sum_and_a_grader_that_fails_counts_nothing() -> None:
    settings = recipe().rollout
    assert settings is not None
    rewards = Rewards(settings, Host())
    rewards.require()
    assert rewards.grade({"reference_answer": "42"}, Message("assistant", "42")).reward == 2.5
    grade = rewards.grade({}, Message("assistant", "[1]"), earned=0.25)
    assert grade.reward == 0.75 and grade.parts == {"number": 0.0, "valid": 1.0, "environment": 0.25}
    assert "reference_answer has no value" in grade.problems["number"]


def test_another_field_of_a_row_is_another_training() -> None:
    rows = [[Conversation((QUESTION,), extra={"answer": answer})] for answer in ("42", "43")]
    template: Any = None
    assert Asked(template, rows[0], []).decides() != Asked(template, rows[1], []).decides()


def test_the_interpreter_of_vllm_is_named_in_the_recipe_or_by_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VLLM_PYTHON, raising=False)
    assert VllmSettings(python="/a/python").interpreter == Path("/a/python")
    with pytest.raises(RecipeError, match=f"give it here, or in {VLLM_PYTHON}"):
        VllmSettings().interpreter  # noqa: B018
    monkeypatch.setenv(VLLM_PYTHON, "/b/python")
    assert VllmSettings().interpreter == Path("/b/python")
    tree = absolute_paths({"rollout": {"vllm": {"python": "../env/bin/python"}}}, Path("/a/recipes"))
    assert tree["rollout"]["vllm"]["python"] == "/a/env/bin/python"
