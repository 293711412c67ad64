"""What the gates compare with: rows spread over a file, spans of a mask, and texts found again."""

from typing import Any

import pytest

from luthier.examples import Conversation, Message, Row, ToolCall
from luthier.preflight._cases import map_strings, spans, spread
from luthier.preflight._text import leaves, message_leaves, occurs


def test_spread_takes_first_last_and_even_steps_between() -> None:
    assert spread(list(range(101)), 5) == [0, 25, 50, 75, 100]
    assert spread([1, 2], 5) == [1, 2]
    assert spread([1, 2, 3], 1) == [1]
    assert len(set(spread(list(range(10_001)), 2000))) == 2000


def test_spans_are_the_runs_of_the_mask() -> None:
    row = Row((1, 2, 3, 4, 5, 6), (0.0, 1.0, 0.5, 0.0, 1.0, 1.0))
    assert [(s.start, s.end) for s in spans(row)] == [(1, 3), (4, 6)]
    assert spans(Row((1,), (0.0,))) == []


@pytest.mark.parametrize(
    ("leaf", "text", "found"),
    [
        ("  padded\n", "a padded b", True),
        ('say "hi"', r"{\"x\": \"say \"hi\"\"} say \"hi\"", True),
        ("caf\u00e9", "caf\\u00e9", True),
        ("cafe\u0301", "caf\u00e9", True),
        ("a  b", "a b", False),
        ("Paris", "paris", False),
        (3, '{"days": 3}', True),
        (True, "true", True),
        (2.5, "2,5", False),
    ],
)
def test_a_text_is_found_in_its_faithful_forms_only(leaf: Any, text: str, found: bool) -> None:
    assert occurs(leaf, text) is found


def test_leaves_are_texts_numbers_and_keys_without_nulls() -> None:
    found = dict(leaves({"a": {"b": [1, "x", None, ""]}}, "t"))
    assert found == {"t.a": "a", "t.a.b": "b", "t.a.b[0]": 1, "t.a.b[1]": "x"}


def test_ids_of_calls_are_plumbing_and_names_of_tools_are_not() -> None:
    call = Message("assistant", "", (ToolCall("get", {"q": "x"}, "call_1"),))
    assert dict(message_leaves(call, "m")) == {
        "m.tool_calls[0].name": "get",
        "m.tool_calls[0].arguments.q": "x",
    }
    result = Message("tool", "out", tool_call_id="call_1", name="get")
    assert dict(message_leaves(result, "m")) == {"m.content": "out"}
    assert "m.name" in dict(message_leaves(Message("user", "hi", name="ann"), "m"))


def test_map_strings_changes_texts_and_keeps_the_structure() -> None:
    call = Message("assistant", "c", (ToolCall("get", {"q": ["x", 1]}),))
    example = Conversation((Message("user", "u"), call), ({"function": {"description": "d"}},))
    changed = map_strings(example, lambda text, role: f"{role}:{text}")
    assert isinstance(changed, Conversation)
    assert [m.content for m in changed.messages] == ["user:u", "assistant:c"]
    assert changed.messages[1].tool_calls[0].arguments == {"q": ["arguments:x", 1]}
    assert changed.messages[1].tool_calls[0].name == "get"
    assert changed.tools == ({"function": {"description": "schema:d"}},)
