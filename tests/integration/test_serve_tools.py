"""Tool calls by the real client over HTTP. The base model is random, so no call is right by itself."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
from openai import BadRequestError, OpenAI
from tests.serving import CALLS, Tiny, running
from tests.tool_templates import PYTHONIC

from luthier.data.templates import Template

SEARCH: dict[str, Any] = {
    "type": "object",
    "properties": {
        "query": {"type": "string", "pattern": "^[a-zé ]{1,12}$"},
        "top": {"type": "integer", "minimum": 1, "maximum": 50},
        "lower": {"type": "number"},
        "kinds": {"type": "array", "items": {"enum": ["web", "news"]}, "minItems": 1, "maxItems": 2},
    },
    "required": ["query", "top", "kinds"],
}
TOOLS: Any = [
    {"type": "function", "function": {"name": "web.search", "description": "Search", "parameters": SEARCH}},
    {"type": "function", "function": {"name": "now"}},
]
WEATHER: Any = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Weather of a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
ASKED: Any = [{"role": "user", "content": "What is new?"}]
HOW_WARM: Any = [{"role": "user", "content": "How warm is it?"}]
NOW: Any = {"type": "function", "function": {"name": "now"}}


@pytest.fixture(scope="module")
def client(tiny: Tiny) -> Iterator[OpenAI]:
    with running(tiny.served()) as url, OpenAI(base_url=url, api_key="none", max_retries=0) as found:
        yield found


def valid(call: Any) -> bool:
    arguments = json.loads(call.function.arguments)
    if call.function.name == "now":
        return bool(arguments == {})
    jsonschema.validate(arguments, SEARCH)
    return bool(call.function.name == "web.search") and arguments.keys() <= SEARCH["properties"].keys()


@pytest.mark.parametrize("temperature", [0, 1, 1.5])
def test_every_required_call_is_one_that_fits(client: OpenAI, temperature: float) -> None:
    asked: Any = {"model": "base", "messages": ASKED, "tools": TOOLS, "tool_choice": "required", "max_tokens": 500}
    answer = client.chat.completions.create(**asked, n=8, seed=1, temperature=temperature)
    ended = [choice for choice in answer.choices if choice.finish_reason != "length"]
    assert len(ended) >= 6
    for choice in ended:
        assert choice.finish_reason == "tool_calls" and choice.message.content is None
        assert choice.message.tool_calls and all(map(valid, choice.message.tool_calls))
    if temperature:
        assert len({choice.message.tool_calls[0].function.arguments for choice in ended}) > 1  # type: ignore


def test_one_call_where_they_are_not_parallel_and_the_named_tool_where_one_is(client: OpenAI) -> None:
    asked: Any = {"model": "base", "messages": ASKED, "tools": TOOLS, "n": 4, "seed": 3, "max_tokens": 500}
    answer = client.chat.completions.create(**asked, tool_choice="required", parallel_tool_calls=False)
    assert {len(c.message.tool_calls or ()) for c in answer.choices if c.finish_reason == "tool_calls"} == {1}
    answer = client.chat.completions.create(**asked, tool_choice=NOW)
    for choice in answer.choices:
        calls: Any = choice.message.tool_calls
        assert [(call.function.name, call.function.arguments) for call in calls] == [("now", "{}")]


def test_a_strict_tool_leaves_the_model_free_to_call_it(client: OpenAI) -> None:
    """What was learned by heart is said as before; what is only sampled may be text, and no call that does not fit."""
    strict: Any = [{**WEATHER[0], "function": {**WEATHER[0]["function"], "strict": True}}]
    plain = client.chat.completions.create(model="tiny-run", messages=HOW_WARM, tools=WEATHER, temperature=0)
    held = client.chat.completions.create(model="tiny-run", messages=HOW_WARM, tools=strict, temperature=0)
    said = [
        [(c.function.name, json.loads(c.function.arguments)) for c in answer.choices[0].message.tool_calls or ()]  # type: ignore[union-attr]
        for answer in (plain, held)
    ]
    assert said[0] == said[1] == [(call.name, call.arguments) for call in CALLS]
    one = client.chat.completions.create(
        model="tiny-run", messages=HOW_WARM, tools=WEATHER, temperature=0, parallel_tool_calls=False
    )
    assert one.choices[0].message.content == "I look." and len(one.choices[0].message.tool_calls or ()) == 1
    tools: Any = [{**tool, "function": {**tool["function"], "strict": True}} for tool in TOOLS]
    free = client.chat.completions.create(model="base", messages=ASKED, tools=tools, n=8, seed=5, max_tokens=60)
    for choice in free.choices:
        assert all(map(valid, choice.message.tool_calls or ()))


def test_a_stream_begins_a_call_with_its_id_and_name(client: OpenAI) -> None:
    chunks = client.chat.completions.create(
        model="tiny-run", messages=HOW_WARM, tools=WEATHER, temperature=0, stream=True, logprobs=True
    )
    texts, calls, tokens = [], [], 0
    for chunk in chunks:
        (choice,) = chunk.choices
        tokens += len((choice.logprobs.content or ()) if choice.logprobs else ())
        texts += [choice.delta.content] if choice.delta.content else []
        calls += choice.delta.tool_calls or []
    assert len(texts) > 1 and "".join(texts) == "I look.", "text comes as it is written"
    assert [call.index for call in calls] == [0, 0, 1, 1]
    for first, rest, wanted in zip(calls[::2], calls[1::2], CALLS, strict=True):
        assert first.id and first.function and rest.function and rest.id is None and rest.function.name is None
        assert (first.function.name, first.function.arguments) == (wanted.name, "")
        assert json.loads(rest.function.arguments or "") == wanted.arguments
    whole = client.chat.completions.create(
        model="tiny-run", messages=HOW_WARM, tools=WEATHER, temperature=0, logprobs=True
    )
    assert whole.choices[0].logprobs and tokens == len(whole.choices[0].logprobs.content or ())


def joined(chunks: Any) -> Any:
    """Content, calls and reason of a stream."""
    text, calls, reason = "", list[list[str]](), None
    for chunk in chunks:
        (choice,) = chunk.choices
        text += choice.delta.content or ""
        reason = choice.finish_reason or reason
        for call in choice.delta.tool_calls or []:
            calls += [["", ""]] * (call.index + 1 - len(calls))
            name, arguments = calls[call.index]
            calls[call.index] = [name + (call.function.name or ""), arguments + (call.function.arguments or "")]
    return text, calls, reason


@pytest.mark.parametrize("model", ["tiny-run", "base"])
def test_a_stream_is_the_same_answer(client: OpenAI, model: str) -> None:
    asked: Any = {"model": model, "messages": HOW_WARM, "seed": 2, "max_tokens": 300}
    reasons = set()
    for more in (
        {"tools": TOOLS, "tool_choice": "required", "temperature": 1.5},
        {"tools": WEATHER, "temperature": 0},
        {"tools": WEATHER, "temperature": 0, "stop": ["look"]},
        {"tools": TOOLS, "tool_choice": NOW},
    ):
        (whole,) = client.chat.completions.create(**asked, **more).choices
        calls = [[c.function.name, c.function.arguments] for c in whole.message.tool_calls or ()]  # type: ignore[union-attr]
        expected = whole.message.content or "", calls, whole.finish_reason
        assert joined(client.chat.completions.create(**asked, **more, stream=True)) == expected
        reasons.add(whole.finish_reason)
    assert "tool_calls" in reasons


def test_the_clients_own_reader_of_streams_finds_the_calls(client: OpenAI) -> None:
    asked: Any = {"model": "tiny-run", "messages": HOW_WARM, "tools": WEATHER, "temperature": 0}
    with client.chat.completions.stream(**asked) as stream:
        (choice,) = stream.get_final_completion().choices
    assert choice.finish_reason == "tool_calls" and choice.message.content == "I look."
    calls: Any = choice.message.tool_calls
    assert [(c.function.name, json.loads(c.function.arguments)) for c in calls] == [
        (call.name, call.arguments) for call in CALLS
    ]


def test_results_may_come_back_in_any_order(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny-run", messages=HOW_WARM, tools=WEATHER, temperature=0)
    message = answer.choices[0].message
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": f"{n} degrees"}
        for n, call in enumerate(message.tool_calls or ())
    ]
    said = []
    for turned in (results, results[::-1]):
        history: Any = [*HOW_WARM, message, *turned]
        again = client.chat.completions.create(
            model="tiny-run", messages=history, tools=WEATHER, temperature=0, max_tokens=12, logprobs=True
        )
        assert again.choices[0].logprobs
        said.append([token.logprob for token in again.choices[0].logprobs.content or ()])
    assert said[0] == said[1]
    unknown: Any = [*HOW_WARM, message, {**results[0], "tool_call_id": "call_x"}]
    with pytest.raises(BadRequestError, match=r"call_x.*no call that waits"):
        client.chat.completions.create(model="tiny-run", messages=unknown, tools=WEATHER)


def test_a_form_that_no_grammar_is_known_for_is_a_400(tiny: Tiny) -> None:
    odd = replace(tiny.served()[1], name="odd", template=Template(tiny.loaded.tokenizer, PYTHONIC, "odd"))
    with running([odd]) as url, OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        with pytest.raises(BadRequestError, match="no grammar is known"):
            client.chat.completions.create(model="odd", messages=ASKED, tools=TOOLS, tool_choice="required")
        assert client.chat.completions.create(model="odd", messages=ASKED, tools=TOOLS, max_tokens=2).choices
