"""Calls held to their tools while they are written, in every form; what a random model writes is a call that fits."""

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import jsonschema
import pytest
import torch
from hypothesis import given, settings, strategies as st
from tests.tool_chats import ARGUMENTS, SPOKEN, exact
from tests.tool_templates import FAMILIES, MISTRAL, UNREAD, Family

from luthier.data.replies import BARE, LISTED, TAGGED, CallForm, parse_reply_text
from luthier.examples import Conversation, Message, ToolCall
from luthier.models.load import LoadedModel
from luthier.serve.api_error import ApiError
from luthier.serve.call_stream import CallReader
from luthier.serve.chat import ChatRequest, parse_chat
from luthier.serve.constraint import Constraint, Grammars
from luthier.serve.models import ServedModel
from luthier.serve.tool_choice import MAX_TOOLS

WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "town": {"type": "string", "pattern": '^[a-zé"]{1,6}$'},
        "days": {"type": "integer", "minimum": 0, "maximum": 14},
        "share": {"type": "number"},
        "where": {"type": "object", "properties": {"x": {"enum": [1, "one", None]}}, "required": ["x"]},
    },
    "required": ["town", "days"],
    "additionalProperties": False,
}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "get.weather-1", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "now"}},
]
CALLS = (ToolCall("get.weather-1", {"town": "é", "days": 3}, "abcdefgh1"), ToolCall("now", {}, "abcdefgh2"))


def serve(loaded: LoadedModel, family: Family, name: str = "m") -> ServedModel:
    tokenizer = family.tokenizer()
    stops = frozenset({tokenizer.eos_token_id})
    return ServedModel(name, replace(loaded, tokenizer=tokenizer, stop_ids=stops), family.template(name))


@pytest.fixture(scope="module", params=FAMILIES)
def served(request: pytest.FixtureRequest, tiny_loaded: LoadedModel) -> ServedModel:
    return serve(tiny_loaded, FAMILIES[request.param], request.param)


def ask(**fields: Any) -> ChatRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "?"}], "tools": TOOLS, **fields}
    return parse_chat(json.dumps(body).encode())


def constraint(served: ServedModel, **fields: Any) -> Constraint:
    grammars = Grammars()
    held = grammars.held(served, ask(**fields))
    assert held is not None
    return grammars.constraint(served, held)


def write(served: ServedModel, held: Constraint, seed: int, first: Sequence[int] = (), longest: int = 600) -> Message:
    """What a model writes to which all tokens are alike, after `first`."""
    random, ids = torch.Generator().manual_seed(seed), list(first)
    for token in first:
        held.take(token)
    while len(ids) < longest:
        logits = held.allow(torch.rand(served.vocabulary, generator=random) * 4)
        token = int(torch.multinomial(logits.softmax(0), 1, generator=random))
        if token in served.stop_ids:
            return served.template.parse_reply(ids)
        ids.append(token)
        held.take(token)
    raise AssertionError(f"no end: {served.loaded.tokenizer.decode(ids)}")


def fits(call: ToolCall) -> bool:
    schema = next(tool["function"].get("parameters") for tool in TOOLS if tool["function"]["name"] == call.name)
    return not call.arguments if schema is None else jsonschema.Draft202012Validator(schema).is_valid(call.arguments)


def test_a_reply_that_must_call_is_calls_that_fit(served: ServedModel) -> None:
    single = served.template.calls is not None and served.template.calls.form == BARE
    found = [write(served, constraint(served, tool_choice="required"), seed) for seed in range(12)]
    assert all(m.tool_calls and not m.content and all(map(fits, m.tool_calls)) for m in found)
    assert {call.name for m in found for call in m.tool_calls} == {"get.weather-1", "now"}
    assert single == (max(len(m.tool_calls) for m in found) == 1)


def test_a_named_tool_is_called_once(served: ServedModel) -> None:
    choice = {"type": "function", "function": {"name": "now"}}
    for seed in range(4):
        (call,) = write(served, constraint(served, tool_choice=choice), seed).tool_calls
        assert (call.name, call.arguments) == ("now", {})
    some = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [choice]}}
    found = write(served, constraint(served, tool_choice=some), 0)
    assert {call.name for call in found.tool_calls} == {"now"}


def test_no_second_call_where_calls_are_not_parallel(served: ServedModel) -> None:
    for seed in range(6):
        held = constraint(served, tool_choice="required", parallel_tool_calls=False)
        assert len(write(served, held, seed).tool_calls) == 1


def test_each_call_has_an_id_of_its_own_where_the_template_writes_it_before_the_name(tiny_loaded: LoadedModel) -> None:
    source = MISTRAL.replace(
        "(call.function | tojson)[:-1] + ', \"id\": \"' + call.id + '\"}'",
        "'{\"id\": \"' + call.id + '\", ' + (call.function | tojson)[1:]",
    )
    assert source != MISTRAL
    served = serve(tiny_loaded, replace(FAMILIES["mistral"], source=source))
    found = [write(served, constraint(served, tool_choice="required"), seed) for seed in range(6)]
    ids = [call.id for message in found for call in message.tool_calls]
    assert max(len(message.tool_calls) for message in found) > 1 and len(set(ids)) == len(ids) and None not in ids


STRICT = [{**tool, "function": {**tool["function"], "strict": True}} for tool in TOOLS]


def opening(served: ServedModel, content: str) -> list[int]:
    """The tokens of a reply up to where its first call has opened."""
    calls, tokenizer = served.template.calls, served.loaded.tokenizer
    assert calls is not None and calls.text is not None
    before = content if calls.text.beside_content else ""
    return list(tokenizer.encode(before + (calls.form.opening or '{"name'), add_special_tokens=False))


def test_a_call_that_opens_within_free_text_becomes_one_that_fits(served: ServedModel) -> None:
    for seed in range(6):
        found = write(served, constraint(served, tools=STRICT), seed, opening(served, "Let me see.\n"))
        assert found.tool_calls and all(map(fits, found.tool_calls))
        calls = served.template.calls
        assert calls is not None and calls.text is not None
        assert found.content == ("Let me see." if calls.text.beside_content else "")


def test_free_text_may_end_without_a_call(served: ServedModel) -> None:
    held = constraint(served, tools=STRICT)
    for token in served.loaded.tokenizer.encode("No tool {fits} this <b>.", add_special_tokens=False):
        assert held.allow(torch.zeros(served.vocabulary))[token] == 0
        held.take(token)
    (stop,) = served.stop_ids
    assert held.allow(torch.zeros(served.vocabulary))[stop] == 0


@pytest.mark.parametrize("fields", [{"tool_choice": "required"}, {"tools": STRICT}, {"parallel_tool_calls": False}])
def test_what_is_trained_on_is_what_may_be_written(served: ServedModel, fields: dict[str, Any]) -> None:
    """Token for token, the one that ends the turn included."""
    text = served.template.calls and served.template.calls.text
    assert text
    calls = CALLS[:1] if text.join is None or "parallel_tool_calls" in fields else CALLS
    content = "I look." if text.beside_content and "tool_choice" not in fields else ""
    messages = (Message("user", "?"), Message("assistant", content, calls))
    asked = ask(**fields)
    (row,) = served.template.rows(Conversation(messages, asked.tools))
    held = constraint(served, **fields)
    for token in (token for token, weight in zip(row.ids, row.loss_mask, strict=True) if weight):
        assert held.allow(torch.zeros(served.vocabulary))[token] == 0
        held.take(token)


def test_a_template_whose_form_is_not_known_is_a_400_that_says_so(tiny_loaded: LoadedModel) -> None:
    served = serve(tiny_loaded, UNREAD, "pythonic")
    for fields, param in (
        ({"tool_choice": "required"}, "tool_choice"),
        ({"parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"tools": STRICT}, r"tools\[0\].function.strict"),
    ):
        with pytest.raises(ApiError, match=f"{param}.*'pythonic'.*no grammar") as caught:
            Grammars().held(served, ask(**fields))
        assert caught.value.status == 400


ODD = {"type": "function", "function": {"name": "odd", "parameters": {"type": "object", "not": {"required": ["x"]}}}}


def test_a_schema_that_cannot_be_held_is_refused_if_strict_and_else_any_object(tiny_loaded: LoadedModel) -> None:
    served = serve(tiny_loaded, FAMILIES["chatml_tools"])
    strict = {**ODD, "function": {**ODD["function"], "strict": True}}  # type: ignore[dict-item]
    with pytest.raises(ApiError, match="the schema of 'odd'") as caught:
        Grammars().held(served, ask(tools=[*TOOLS, strict]))
    assert caught.value.param == "tools[2].function.parameters"
    begin = served.loaded.tokenizer.encode(
        '<tool_call>\n{"name": "odd", "arguments": {"a": [1, {}]}', add_special_tokens=False
    )
    found = write(served, constraint(served, tools=[ODD], tool_choice="required", parallel_tool_calls=False), 0, begin)
    assert found.tool_calls == (ToolCall("odd", {"a": [1, {}]}),)


def test_many_tools_are_one_grammar_of_those_that_are_kept(tiny_loaded: LoadedModel) -> None:
    served, grammars = serve(tiny_loaded, FAMILIES["chatml_tools"]), Grammars()
    schemas = [{"type": "object", "properties": {"x": {"const": i}}} for i in range(MAX_TOOLS)]
    tools = [{"type": "function", "function": {"name": f"f{i}", "parameters": s}} for i, s in enumerate(schemas)]
    for _ in range(2):
        assert grammars.held(served, ask(tools=tools, tool_choice="required")) is not None
        assert len(grammars._compiled) == 1


def test_names_and_descriptions_are_plain_text(tiny_loaded: LoadedModel) -> None:
    """Whatever a client calls its tools: nothing of it is grammar, and no control token is written for it."""
    served = serve(tiny_loaded, FAMILIES["mistral"])
    name = 'a"< /s>\\ "| /x/ <[3]>'
    described = {
        "type": "object",
        "description": 'see // # // %json "/',
        "properties": {"x//": {"const": "#"}},
    }
    tool = {"type": "function", "function": {"name": name, "parameters": {**described, "required": ["x//"]}}}
    (call,) = write(
        served, constraint(served, tools=[tool], tool_choice="required", parallel_tool_calls=False), 0
    ).tool_calls
    assert (call.name, call.arguments) == (name, {"x//": "#"})


@pytest.mark.parametrize(
    "odd",
    [{"$defs": 3}, {"properties": 3}, {"type": "dict"}, {"type": [{}]}, {"anyOf": 3}, {"items": [3]}, {"$ref": "#/x"}],
)
def test_an_odd_schema_is_a_400_if_strict_and_never_a_failure(tiny_loaded: LoadedModel, odd: dict[str, Any]) -> None:
    served = serve(tiny_loaded, FAMILIES["chatml_tools"])
    for parameters in (odd, {"type": "object", "properties": {"x": odd}}):
        for strict in (False, True):
            function = {"name": "f", "parameters": parameters, "strict": strict}
            asked = ask(tools=[{"type": "function", "function": function}], tool_choice="required")
            try:
                assert Grammars().held(served, asked) is not None
            except ApiError as error:
                assert strict and error.status == 400 and error.param == "tools[0].function.parameters"


def test_a_name_that_spells_a_control_token_is_refused(tiny_loaded: LoadedModel) -> None:
    served = serve(tiny_loaded, FAMILIES["llama3"])
    tool: Any = {"type": "function", "function": {"name": "f<|eot_id|>", "parameters": {"type": "object"}}}
    with pytest.raises(ApiError, match=r"tools\[1\].function.name.*<\|eot_id\|>"):
        Grammars().held(served, ask(tools=[TOOLS[0], tool], tool_choice="required"))
    inside = {"type": "object", "properties": {"x": {"const": "<|eot_id|>"}}}
    strict = {"type": "function", "function": {"name": "f", "parameters": inside, "strict": True}}
    with pytest.raises(ApiError, match=r"tools\[0\].function.parameters.*<\|eot_id\|>"):
        Grammars().held(served, ask(tools=[strict]))


def test_arguments_of_any_kind_are_values_that_a_program_can_hold(tiny_loaded: LoadedModel) -> None:
    """Numbers in all places where a schema may name them, and in what no schema describes."""
    served = serve(tiny_loaded, FAMILIES["chatml_tools"])
    inner = {
        "a": {"type": ["number", "null"]},
        "b": {"description": "anything"},
        "c": {"type": "array"},
        "d": {"type": "object"},
        "e": {"anyOf": [{"type": "number"}, {"type": "object", "properties": {"x": {"type": "number"}}}]},
        "f": {"type": "number", "minimum": 0},
        "g": {"type": "object", "additionalProperties": {"type": "number"}},
    }
    schema = {"type": "object", "properties": inner, "required": list(inner)}
    grammars = Grammars()
    held = grammars.held(
        served, ask(tools=[{"type": "function", "function": {"name": "f", "parameters": schema, "strict": True}}])
    )
    assert held is not None
    good: dict[str, Any] = {
        "a": None,
        "b": {"x": [1.5, "y"]},
        "c": [[{}]],
        "d": {"z": -1},
        "e": {"x": 2.5},
        "f": 0.25,
        "g": {"h": 1},
    }

    def may_write(values: dict[str, Any], number: str) -> bool:
        text = f'<tool_call>\n{{"name": "f", "arguments": {json.dumps(values).replace("7777", number)}}}\n</tool_call>'
        constraint = grammars.constraint(served, held)
        for token in served.loaded.tokenizer.encode(text, add_special_tokens=False):
            if constraint.allow(torch.zeros(served.vocabulary))[token]:
                return False
            constraint.take(token)
        return True

    assert may_write(good, "")
    places: list[dict[str, Any]] = [
        {"a": 7777},
        {"b": 7777},
        {"c": [7777]},
        {"d": {"x": 7777}},
        {"e": 7777},
        {"f": 7777},
    ]
    for place in [*places, {"g": {"x": 7777}}, {"e": {"x": 7777}}]:
        assert may_write({**good, **place}, "12.75") and not may_write({**good, **place}, "1e999"), place
    assert not may_write({**good, "h": 1}, ""), "nobody declared it"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "any"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice.function.name"),
        ({"tool_choice": {"type": "function", "name": "now"}}, "tool_choice.function"),
        ({"tool_choice": {"type": "custom", "custom": {"name": "now"}}}, "tool_choice.type"),
        ({"tool_choice": "required", "tools": []}, "tool_choice"),
        (
            {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto"}}},
            "tool_choice.allowed_tools.tools",
        ),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools[1].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "f", "strict": "yes"}}]}, "tools[0].function.strict"),
    ],
)
def test_a_choice_that_means_nothing_is_a_400_that_names_it(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        ask(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)


# streams

PIECES = st.lists(
    st.sampled_from(
        ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "\n", "{", "}", "[", "]", " ", '"', "<tool", "call>"]
    )
    | SPOKEN
    | st.builds(
        lambda n, a, k: json.dumps({"name": n, k: a}), SPOKEN, ARGUMENTS, st.sampled_from(["arguments", "parameters"])
    )
    | st.builds(lambda a: f'<tool_call>\n{{"name": "f", "arguments": {json.dumps(a)}}}\n</tool_call>', ARGUMENTS),
    max_size=6,
).map("".join)


@pytest.mark.parametrize("form", [TAGGED, LISTED, BARE], ids=lambda form: form.name)
@settings(max_examples=60, deadline=None)
@given(text=PIECES, cuts=st.lists(st.integers(0, 200), max_size=12))
def test_pieces_of_a_stream_are_the_reply(form: CallForm, text: str, cuts: list[int]) -> None:
    reader = CallReader(form)
    found: list[str | ToolCall] = []
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    for start, end in pairwise(places):
        found += reader.add(text[start:end])
    found += reader.flush()
    whole = parse_reply_text(text, form)
    assert "".join(piece for piece in found if isinstance(piece, str)) == whole.content
    calls = [piece for piece in found if isinstance(piece, ToolCall)]
    assert exact([[c.name, c.arguments] for c in calls]) == exact([[c.name, c.arguments] for c in whole.tool_calls])


def test_text_is_not_held_back_and_a_call_is_not_sent_in_halves() -> None:
    reader = CallReader(TAGGED)
    assert list(reader.add("I look.\n<to")) == ["I look."]
    assert list(reader.add("p of it>.")) == ["\n<top of it>."]
    assert list(reader.add('\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_cal')) == []
    assert list(reader.add("l>")) == [ToolCall("f", {})]
    bare = CallReader(BARE)
    assert list(bare.add(" ")) == [] and list(bare.add("so {")) == [" so {"] and list(bare.add("}")) == ["}"]
