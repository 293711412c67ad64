"""Generated conversations with tools: several tools, parallel calls, results in any order, awkward names and values."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from luthier.examples import Conversation, Message, ToolCall

TEXT = st.one_of(
    st.text(st.characters(exclude_categories=["Cs", "Co"]), max_size=12),
    st.lists(
        st.sampled_from(["<|im_end|>", "</tool_call>", "[INST]", "\n", '"', "\\", "{", "}", "é", "日本", "🌍", " "]),
        max_size=4,
    ).map("".join),
)
NAMES = st.one_of(
    st.sampled_from(["get_weather", "search.web", "a-b_c", "größe", "f", "list.files-2", "object"]),
    st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_.\-]{0,11}", fullmatch=True),
)
NUMBERS = (
    st.sampled_from([1, 1.0, 0, -0.0, 1e22, 10**20, 0.1, -3, 2.5e-7])
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
)
LEAVES = st.none() | st.booleans() | NUMBERS | TEXT | st.sampled_from([{}, [], "", "null", "1"])
KEYS = st.sampled_from(["town", "x", "größe", "a b", "", "name", "arguments", "id"]) | TEXT
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)
ARGUMENTS = st.dictionaries(KEYS, VALUES, max_size=3)
SPOKEN = TEXT.filter(lambda text: bool(text.strip()) and not text.lstrip().startswith("{"))
"""Text that is no call by itself, in any form."""


@st.composite
def tools(draw: st.DrawFn) -> tuple[dict[str, Any], ...]:
    """Tools with different names."""
    found = []
    for name in draw(st.lists(NAMES, min_size=1, max_size=3, unique=True)):
        function: dict[str, Any] = {"name": name}
        if draw(st.booleans()):
            function["description"] = draw(TEXT)
        if draw(st.booleans()):
            properties = draw(st.dictionaries(KEYS, st.fixed_dictionaries({"type": st.just("string")}), max_size=2))
            function["parameters"] = {"type": "object", "properties": properties, "required": sorted(properties)}
        found.append({"type": "function", "function": function})
    return tuple(found)


@st.composite
def exchanges(draw: st.DrawFn, names: Sequence[str], with_ids: bool, single: bool) -> list[Message]:
    """A question, calls with their results, and an answer."""
    count = draw(st.integers(0, 1 if single else 3))
    calls = [ToolCall(draw(st.sampled_from(list(names))), draw(ARGUMENTS)) for _ in range(count)]
    if with_ids:
        tokens = draw(st.lists(st.from_regex(r"[a-zA-Z0-9]{9}", fullmatch=True), min_size=3, max_size=3, unique=True))
        calls = [replace(call, id=token) for call, token in zip(calls, tokens, strict=False)]
    results = [Message("tool", draw(TEXT), tool_call_id=call.id) for call in calls]
    if with_ids:
        results = draw(st.permutations(results))
    content = "" if single and calls else draw(SPOKEN | (st.just("") if calls else SPOKEN))
    asked = [Message("user", draw(SPOKEN))]
    if not calls:
        return [*asked, Message("assistant", content)]
    return [*asked, Message("assistant", content, tuple(calls)), *results, Message("assistant", draw(SPOKEN))]


@st.composite
def conversations(
    draw: st.DrawFn, with_ids: bool | None = None, single: bool = False, system: bool = True
) -> Conversation:
    """A chat that ends with the assistant's turn.

    Args:
        draw: hypothesis's.
        with_ids: whether calls have ids of nine characters; None: some chats' do.
        single: one call a turn at most, and nothing said beside it.
        system: whether a system message may lead.
    """
    offered = draw(tools())
    ids = draw(st.booleans()) if with_ids is None else with_ids
    names = [tool["function"]["name"] for tool in offered]
    messages = [Message("system", draw(SPOKEN))] if system and draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 2))):
        messages += draw(exchanges(names, ids, single))
    last = next(i for i in reversed(range(len(messages))) if messages[i].role == "assistant")
    if draw(st.booleans()):  # it may end with calls, too
        called = [i for i in range(len(messages)) if messages[i].tool_calls]
        last = called[-1] if called else last
    return Conversation(tuple(messages[: last + 1]), offered, id="row")


def exact(value: Any) -> str:
    """Equal only for what is equal to the last digit: 1, 1.0 and true are three things."""
    return json.dumps(value, ensure_ascii=False)


def said(messages: Sequence[Message]) -> list[Any]:
    """Messages as values that `exact` compares, ids included."""
    return [[m.role, m.content, [[c.name, c.arguments, c.id] for c in m.tool_calls], m.tool_call_id] for m in messages]
