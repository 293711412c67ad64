"""What every built-in chat template must do, found by listing the folder."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from tests.rendering import left_out
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from luthier.data.replies import parse_reply_text
from luthier.data.template_sources import BUILTIN, builtin_names
from luthier.data.templates import Template, build_template
from luthier.errors import TemplateError
from luthier.examples import Conversation, Message, ToolCall
from luthier.models.load import LoadedModel

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

TEXT = st.one_of(
    st.text(max_size=12),
    st.lists(
        st.sampled_from([*CONTROL, "</tool_call>", "<tools>", "\n", '"', "\\", "{", "}", "é", "\ue000"]), max_size=5
    ).map("".join),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
CALLS = st.lists(st.builds(ToolCall, TEXT, st.dictionaries(TEXT, JSON, max_size=3)), max_size=3).map(tuple)
REPLIES = st.builds(lambda content, calls: Message("assistant", content, tool_calls=calls), TEXT, CALLS)

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": 'Says "hello" and the <|im_end|> weather',
        "parameters": {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]},
    },
}
CONVERSATION = Conversation(
    (
        Message("system", "Be brief."),
        Message("user", "Oslo and Bergen?"),
        Message(
            "assistant",
            "Let me see.",
            (ToolCall("get_weather", {"town": "Oslo"}), ToolCall("get_weather", {"town": "Bergen"})),
        ),
        Message("tool", '{"degrees": 3}', tool_call_id="a", name="get_weather"),
        Message("tool", '{"degrees": 9}', tool_call_id="b", name="get_weather"),
        Message("assistant", "3 and 9 degrees."),
    ),
    (TOOL,),
)


@pytest.fixture(scope="module", params=[False, True], ids=["tags_are_text", "tags_are_tokens"])
def tokenizer(request: pytest.FixtureRequest, tiny_loaded: LoadedModel) -> PreTrainedTokenizerFast:
    backend = Tokenizer.from_str(tiny_loaded.tokenizer.backend_tokenizer.to_str())
    if request.param:
        backend.add_tokens([AddedToken(t, normalized=False, special=False) for t in ("<tool_call>", "</tool_call>")])
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


@pytest.fixture(scope="module", params=builtin_names())
def template(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerFast) -> Template:
    return Template(tokenizer, (BUILTIN / f"{request.param}.jinja").read_text(encoding="utf-8"), request.param)


def test_it_renders_everything(template: Template) -> None:
    assert template.capabilities == {"system", "tools", "tool_calls", "tool_results"}
    assert left_out(template, CONVERSATION) == []


def test_it_ends_turns_with_the_end_token(template: Template, tokenizer: PreTrainedTokenizerFast) -> None:
    assert template.end_of_turn_id == tokenizer.eos_token_id
    assert template.stop_ids == {tokenizer.eos_token_id}


def test_training_begins_where_serving_ends(template: Template) -> None:
    rendered = template.render(CONVERSATION)
    (row,) = rendered.rows
    assert not rendered.split, "history is rendered as it was served"
    for k in (2, 5):
        prompt = template.prompt_ids(CONVERSATION.messages[:k], CONVERSATION.tools)
        assert list(row.ids[: len(prompt)]) == prompt
        assert not row.loss_mask[len(prompt) - 1] and row.loss_mask[len(prompt)]


def test_an_ordinary_chat_reads_as_chatml(template: Template) -> None:
    messages = (Message("user", "hi"), Message("assistant", " yes\n"), Message("user", ""))
    text = template.text(messages, add_generation_prompt=True)
    assert text == (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n yes\n<|im_end|>\n<|im_start|>user\n<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_tools_are_listed_as_they_came(template: Template) -> None:
    for system in ((), (Message("system", "Be brief."),)):
        text = template.text((*system, Message("user", "hi")), (TOOL, TOOL))
        lines = text.partition("<tools>\n")[2].partition("\n</tools>")[0].splitlines()
        assert [json.loads(line) for line in lines] == [TOOL, TOOL]
        assert text.startswith("<|im_start|>system\n" + ("Be brief." if system else ""))
        assert text.count("<|im_start|>") == 2


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(reply=REPLIES)
def test_a_reply_comes_back_as_it_was(template: Template, reply: Message) -> None:
    """parse(render(x)) == x, through token ids, unless the content spells a tool call's opening tag itself."""
    messages = (Message("user", "go"), reply)
    (row,) = template.rows(Conversation(messages, (TOOL,)))
    prompt = template.prompt_ids(messages[:1], (TOOL,))
    assert list(row.ids[: len(prompt)]) == prompt
    parsed = template.parse_reply(row.ids[len(prompt) :])
    assert parsed == reply
    assert left_out(template, Conversation(messages, (TOOL,))) == []


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>",
        '<tool_call>\n{"name": "f", "arguments": {}',
        '<tool_call>\n{"name": "f", "arguments": {}}\n',
        '<tool_call>\n{"name": "f", "arguments": "text"}\n</tool_call>',
        '<tool_call>\n{"name": "f"}\n</tool_call>',
        '<tool_call>\n{"name": "f", "arguments": {}, "more": 1}\n</tool_call>',
        '<tool_call>\n["f"]\n</tool_call>',
        "<tool_call>\n" + "[" * 100_000,
        '<tool_call>\n{"name": "f", "arguments": {"x": NaN}}\n</tool_call>',
        '<tool_call>\n{"name": "f", "arguments": {"x": "\\ud800"}}\n</tool_call>',
        '<tool_call>\n{"name": "f", "arguments": {"x": ' + "9" * 5000 + "}}\n</tool_call>",
        '<tool_call>\n{"name": "f", "arguments": ' + '{"a": ' * 600 + "1" + "}" * 601 + "\n</tool_call>",
        "text </tool_call> text",
    ],
)
def test_a_malformed_call_stays_text(text: str) -> None:
    assert parse_reply_text(text) == Message("assistant", text)


def test_a_call_after_a_malformed_one_is_found() -> None:
    good = '<tool_call>\n{"name": "f", "arguments": {"a": "</tool_call>"}}\n</tool_call>'
    message = parse_reply_text("<tool_call>oops</tool_call>\n" + good + " and more")
    assert message.tool_calls == (ToolCall("f", {"a": "</tool_call>"}),)
    assert message.content == "<tool_call>oops</tool_call> and more"


def test_it_is_refused_where_its_control_tokens_are_missing(tiny_loaded: LoadedModel) -> None:
    from dataclasses import replace

    backend: dict[str, Any] = json.loads(tiny_loaded.tokenizer.backend_tokenizer.to_str())
    backend["added_tokens"] = [t for t in backend["added_tokens"] if t["content"] != "<|im_start|>"]
    poorer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(backend)), eos_token="<|im_end|>")
    for name in builtin_names():
        assert build_template(tiny_loaded, name).capabilities
        with pytest.raises(TemplateError, match=r"<\|im_start\|>.*lacks"):
            build_template(replace(tiny_loaded, tokenizer=poorer), name)


def test_a_model_that_begins_with_bos_keeps_it(tiny_loaded: LoadedModel) -> None:
    from dataclasses import replace

    from tokenizers import processors

    backend = Tokenizer.from_str(tiny_loaded.tokenizer.backend_tokenizer.to_str())
    bos = ("<|endoftext|>", backend.token_to_id("<|endoftext|>"))
    backend.post_processor = processors.TemplateProcessing(single="<|endoftext|> $A", special_tokens=[bos])
    adding = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|endoftext|>", eos_token="<|im_end|>")
    for name in builtin_names():
        ids = build_template(replace(tiny_loaded, tokenizer=adding), name).prompt_ids((Message("user", "hi"),))
        assert ids[0] == bos[1] and ids.count(bos[1]) == 1
