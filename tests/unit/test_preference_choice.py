"""Which replies become a pair and why others do not; and which settings do not go together."""

from typing import Any

import pytest

from luthier.config import build
from luthier.engine.rollout import Prompt
from luthier.errors import EvaluationError, RecipeError
from luthier.evaluation.style.pairs import Choice, Judged
from luthier.evaluation.systems.base import Desk, System
from luthier.examples import Conversation, Message, Preference, ToolCall
from luthier.preferences import Choices, require_fit
from luthier.preferences.choice import (
    ALIKE,
    NOT_WHOLE,
    NOTHING_NAMED,
    ONE_NOT_WHOLE,
    ONE_ORDER,
    SAME,
    TIE,
    TOO_CLOSE,
    Question,
    Reply,
    best_and_worst,
    duels_of,
    graded_fate,
    judged_fate,
)
from luthier.recipe import SYSTEMS, Recipe, build_part

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
ASKED = (Message("system", "Be brief."), Message("user", "q"))
QUESTION = Question(
    3, Conversation((*ASKED, Message("assistant")), (TOOL,), id="row", group="g"), Prompt("row", (), ASKED, {})
)


def reply(text: str, reward: float = 0.0, **more: Any) -> Reply:
    return Reply(Message("assistant", text), reward=reward, **more)


A, B, C = reply("a", 0.2), reply("b", 0.7), reply("c", 0.7)
CUT_LOW, CUT_HIGH = reply("cut", 0.1, truncated=True), reply("cut", 0.9, truncated=True)
EMPTY = reply("", -1.0, fault="empty")


@pytest.mark.parametrize(
    ("replies", "options", "found"),
    [
        ([A, B, C], {}, (1, 0)),
        ([C, A, B, reply("d", 0.2)], {}, (0, 1)),  # of equals the earlier one
        ([A, B, CUT_LOW], {}, (1, 2)),
        ([A, B, CUT_LOW], {"cut_off_may_lose": False}, (1, 0)),
        ([A, B, CUT_HIGH, EMPTY], {}, (1, 0)),  # it would be taught to end there; nothing can be said of an empty one
        ([A, CUT_HIGH], {}, SAME),
        ([B, C], {}, SAME),
        ([CUT_HIGH, CUT_LOW, EMPTY], {}, NOT_WHOLE),
        ([A, B], {"margin": 0.5}, (1, 0)),  # 0.7 - 0.2 is a little less
        ([A, B], {"margin": 0.51}, TOO_CLOSE),
        ([reply("same", 1.0), reply("same ", 0.0)], {}, ALIKE),
    ],
)
def test_the_best_whole_reply_beats_the_worst(replies: list[Reply], options: Any, found: Any) -> None:
    assert best_and_worst(replies, **options) == found


def test_a_pair_tells_where_it_comes_from_and_loses_nothing_of_its_row() -> None:
    low = reply("a", 0.0, rewards={"x": 0.0}, problems={"x": "no value"})
    fate = graded_fate(QUESTION, [low, reply("b", 1.0, rewards={"x": 1.0}, problems={})], "model", None, True)
    assert fate.reason is None and fate.place == 3
    told = {"replies": 2, "truncated": 0, "problems": 1, "mean_reward": 0.5}
    assert fate.values() == {
        "id": "row", "pair": True, "reason": None, **told, "chosen_reward": 1.0, "rejected_reward": 0.0
    }  # fmt: skip
    extra = {
        "source": "row",
        "writer": "model",
        "by": "rewards",
        "chosen_reward": 1.0,
        "rejected_reward": 0.0,
        "chosen_rewards": {"x": 1.0},
        "rejected_rewards": {"x": 0.0},
        "replies": 2,
        "rejected_problems": {"x": "no value"},
    }
    chosen, rejected = (Message("assistant", "b"),), (Message("assistant", "a"),)
    assert fate.pair == Preference(ASKED, chosen, rejected, (TOOL,), id="row", group="g", extra=extra)


@pytest.mark.parametrize(
    ("orders", "winner", "reason"),
    [
        (("first", "second"), "a", None),
        (("second", "first"), "b", None),
        (("first", "first"), None, ONE_ORDER),
        (("first", "tie"), None, ONE_ORDER),
        (("tie", "tie"), None, TIE),
        (("first", None), None, NOTHING_NAMED),
    ],
)
def test_a_judgement_must_hold_in_both_orders(
    orders: tuple[Choice | None, Choice | None], winner: str | None, reason: str | None
) -> None:
    duels = list(duels_of(QUESTION, [reply("x"), reply("y"), A, B]))
    assert [duel.shown.id for duel in duels] == ["row/0", "row/1"]
    assert duels[1].reason is None and duels[1].shown.request == "system: Be brief.\n\nuser: q"
    fate = judged_fate(duels[1], Judged(orders), "model", "judge")
    assert fate.reason == reason and (fate.pair is None) == (winner is None)
    if fate.pair is not None:
        loser = "b" if winner == "a" else "a"
        assert (fate.pair.chosen[0].content, fate.pair.rejected[0].content) == (winner, loser)
        assert fate.pair.id == "row/1" and fate.pair.extra["source"] == "row"


@pytest.mark.parametrize(
    ("two", "reason"), [((A, CUT_HIGH), ONE_NOT_WHOLE), ((EMPTY, A), ONE_NOT_WHOLE), ((A, reply("a\n")), ALIKE)]
)
def test_no_judge_is_asked_about_what_makes_no_pair(two: tuple[Reply, Reply], reason: str) -> None:
    (duel,) = duels_of(QUESTION, two)
    assert duel.reason == reason and judged_fate(duel, None, "model", "judge").reason == reason


def test_calls_of_tools_are_compared_as_well() -> None:
    one, other = (
        Reply(Message("assistant", tool_calls=(ToolCall("f", {"x": value}),)), reward=float(value)) for value in (0, 1)
    )
    assert best_and_worst([one, other]) == (1, 0)


REWARDS = {"valid": {"grader": {"type": "json_schema"}}}
JUDGE = {"style": {"judge": {"type": "command", "command": ["judge"]}}}


@pytest.mark.parametrize(
    ("tables", "choices", "words"),
    [
        ({}, {}, r"write a table \[rollout\]"),
        ({"rollout": {}}, {}, "nothing says what a reply is worth"),
        ({"rollout": {"environment": {"type": "calculator"}}}, {}, "not of conversations"),
        ({"rollout": {"rewards": REWARDS, "group_size": 1}}, {}, "draw 2 or more"),
        ({"rollout": {}}, {"by": "judge"}, r"in \[evaluation.style\]"),
        ({"rollout": {"group_size": 3}, "evaluation": JUDGE}, {"by": "judge"}, "draw an even number"),
        ({"rollout": {}, "evaluation": JUDGE}, {"by": "judge", "margin": 0.1}, "--margin is of rewards"),
        ({"rollout": {"rewards": REWARDS}}, {"writer": "zero_shoot"}, "did you mean 'zero_shot'"),
        ({"rollout": {"rewards": REWARDS, "overlong_tokens": 9}}, {"writer": "zero_shot"}, "leave it out"),
    ],
)
def test_what_does_not_go_together_is_told(tables: dict[str, Any], choices: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        require_fit(build(Recipe, {"data": {"train": "rows.jsonl"}, **tables}), Choices(**choices))


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"type": "zero_shot"}, "none is drawn from it"),
        ({"type": "remote", "base_url": "http://127.0.0.1:1/v1", "model": "m", "shots": 2}, "shots changes nothing"),
    ],
)
def test_replies_are_drawn_from_endpoints_asked_plainly(table: dict[str, Any], words: str) -> None:
    system = build_part(SYSTEMS, table, "zero_shot", ["evaluation", "systems", "x"])
    assert isinstance(system, System)
    with pytest.raises(EvaluationError, match=words):
        system.sample([QUESTION.example], 8, 1.0, [0], Desk())
