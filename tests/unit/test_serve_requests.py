"""Bodies of requests: every field of OpenAI's API is honored, refused by name, or documented to change nothing."""

import json
from typing import Any

import pytest
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params

from luthier.data.formats.messages import parse
from luthier.data.read import Record
from luthier.examples import Conversation, Message, ToolCall, Where
from luthier.serve.api_error import ApiError
from luthier.serve.chat import NO_EFFECT, parse_chat
from luthier.serve.completion import NO_EFFECT as COMPLETION_NO_EFFECT, parse_completion
from luthier.serve.fields import Fields


def _chat(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}], **fields}).encode()


def _fields_of(params: Any) -> set[str]:
    return set(params.CompletionCreateParamsBase.__annotations__) | {"stream"}


VALID: dict[str, Any] = {
    "messages": [{"role": "user", "content": "x"}],
    "model": "m",
    "frequency_penalty": 0.5,
    "logit_bias": {"5": 1},
    "logprobs": True,
    "max_completion_tokens": 5,
    "max_tokens": 5,
    "modalities": ["text"],
    "n": 2,
    "parallel_tool_calls": True,
    "presence_penalty": 0.5,
    "response_format": {"type": "text"},
    "seed": 1,
    "stop": ["x"],
    "stream_options": {"include_usage": True},
    "temperature": 0.5,
    "tool_choice": "auto",
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "top_logprobs": 2,
    "top_p": 0.5,
    "stream": True,
}
REFUSED = {
    "audio": {"voice": "x", "format": "wav"},
    "function_call": "auto",
    "functions": [{"name": "f"}],
    "moderation": {"model": "x"},
    "prediction": {"type": "content", "content": "x"},
    "reasoning_effort": "low",
    "verbosity": "low",
    "web_search_options": {},
}


def test_every_field_of_the_chat_api_is_honored_refused_or_documented_without_effect() -> None:
    assert set(VALID) | set(REFUSED) | set(NO_EFFECT) == _fields_of(chat_create_params)
    needs = {"top_logprobs": {"logprobs": True}, "stream_options": {"stream": True}}
    for name, value in VALID.items():
        parse_chat(_chat(**{name: value, **needs.get(name, {})}))
    for name in NO_EFFECT:
        assert parse_chat(_chat(**{name: "anything"})) == parse_chat(_chat())
    for name, value in REFUSED.items():
        with pytest.raises(ApiError) as caught:
            parse_chat(_chat(**{name: value}))
        assert (caught.value.param, caught.value.code) == (name, "unsupported_parameter")


def test_every_field_of_the_completions_api_is_known() -> None:
    values: dict[str, Any] = {name: VALID[name] for name in VALID if name in _fields_of(completion_create_params)}
    values |= {"prompt": "x", "logprobs": 2, "best_of": 2, "echo": False, "suffix": None}
    assert set(values) | set(COMPLETION_NO_EFFECT) == _fields_of(completion_create_params)
    asked = parse_completion(json.dumps(values).encode())
    assert asked.prompts == ("x",) and asked.common.sampling.top_logprobs == 2
    for refused in ({"echo": True}, {"suffix": "x"}, {"best_of": 3}):
        with pytest.raises(ApiError) as caught:
            parse_completion(json.dumps({"model": "m", "prompt": "x", **refused}).encode())
        assert caught.value.code == "unsupported_parameter"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"foo": 1}, "foo"),
        ({"chat_template": "{{ x }}"}, "chat_template"),
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs"),
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x", "weight": 1}]}, "messages[0].weight"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0].type",
        ),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "assistant", "content": "x", "refusal": "no"}]}, "messages[0].refusal"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls"),
        ({"tools": [{"type": "function", "function": {"name": "f", "strict": 1}}]}, "tools[0].function.strict"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"modalities": ["audio"]}, "modalities"),
    ],
)
def test_a_bad_field_is_a_400_that_names_it(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse_chat(_chat(**fields))
    assert caught.value.status == 400 and caught.value.param == param
    assert caught.value.message


@pytest.mark.parametrize(
    "arguments", ['{"a": "\\ud800"}', '{"a": NaN}', '{"a": 1e999}', '{"a": ' + "[" * 900 + "]" * 900 + "}", "[]"]
)
def test_arguments_of_a_call_are_as_sane_as_the_body(arguments: str) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    with pytest.raises(ApiError) as caught:
        parse_chat(_chat(messages=[{"role": "assistant", "content": None, "tool_calls": [call]}]))
    assert caught.value.param == "messages[0].tool_calls[0].function.arguments"


def test_messages_are_read_as_training_rows_are() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": [1, {"b": "é"}]}'}}
    messages: list[dict[str, Any]] = [
        {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "user", "content": "x", "name": "ann"},
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None, "audio": None, "annotations": []},
        {"role": "tool", "tool_call_id": "c1", "content": "y"},
    ]
    tools = [{"type": "function", "function": {"name": "f", "strict": None, "parameters": {"type": "object"}}}]
    asked = parse_chat(_chat(messages=messages, tools=tools))
    assert asked.messages == (
        Message("developer", "a\nb"),
        Message("user", "x", name="ann"),
        Message("assistant", "", (ToolCall("f", {"a": [1, {"b": "é"}]}, "c1"),)),
        Message("tool", "y", tool_call_id="c1"),
    )
    assert json.dumps(asked.tools) == json.dumps(tools), "the order of keys is part of the prompt"

    plain = [{k: v for k, v in dict(m).items() if v is not None or k == "content"} for m in messages]
    row = parse(Record({"messages": plain, "tools": tools}, Where("x.jsonl", 1)), None)
    assert isinstance(row, Conversation)
    assert row.messages == asked.messages
    assert list(row.tools) == list(asked.tools)


@pytest.mark.parametrize("value", [True, "1", float("nan"), float("inf"), -1, 3, [1], {}])
def test_a_number_is_a_finite_number_in_range(value: Any) -> None:
    with pytest.raises(ApiError):
        Fields({"x": value}).number("x", 0, 2, 1.0)


@pytest.mark.parametrize("value", [True, "1", 1.0, 0, 9, 10**30])
def test_an_integer_is_an_integer_in_range(value: Any) -> None:
    with pytest.raises(ApiError):
        Fields({"x": value}).integer("x", 1, 8)
