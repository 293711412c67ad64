"""The one render path: what is trained on, what is served, and what content can never become."""

from collections.abc import Sequence
from typing import Any

import pytest
from tests.rendering import left_out
from tests.small_tokenizers import (
    BYTES,
    CHATML,
    EMPTY_THINKING,
    FORGETS_THINKING,
    OPEN_THINKING,
    TOKENIZERS,
    WEATHER,
    byte_level,
    chat,
    reference_ids,
)
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from luthier.data.templates import Template, build_template
from luthier.errors import TemplateError
from luthier.examples import Conversation, Document, Message, ToolCall, Where
from luthier.models.load import LoadedModel


def trained_text(template: Template, ids: Sequence[int], mask: Sequence[float]) -> list[str]:
    """The maximal runs of tokens that are trained on, as text."""
    runs: list[list[int]] = []
    for i, (token, weight) in enumerate(zip(ids, mask, strict=True)):
        if weight:
            if i and mask[i - 1]:
                runs[-1].append(token)
            else:
                runs.append([token])
    return [BYTES.decode(run) for run in runs]


def test_replies_and_their_end_are_trained_on_and_nothing_else() -> None:
    template = Template(BYTES, CHATML)
    (row,) = template.rows(Conversation(chat("hi", "yes", "and?", "no", system="brief"), id="r1"))
    assert trained_text(template, row.ids, row.loss_mask) == ["yes<|im_end|>", "no<|im_end|>"]
    assert BYTES.decode(row.ids).endswith("no<|im_end|>\n")
    assert row.loss_mask[-1] == 0, "the line break after the end mark is not part of the reply"
    assert row.id == "r1"


def test_the_end_is_trained_on_though_it_is_the_padding_token() -> None:
    assert BYTES.pad_token_id == BYTES.eos_token_id
    template = Template(BYTES, CHATML)
    (row,) = template.rows(Conversation(chat("hi", "yes")))
    trained = [i for i, m in zip(row.ids, row.loss_mask, strict=True) if m]
    assert trained[-1] == BYTES.pad_token_id


@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
def test_the_row_begins_with_the_ids_that_are_served(tokenizer: PreTrainedTokenizerFast) -> None:
    template = Template(tokenizer, CHATML)
    messages = chat("a b", " yo", "\nb a", "\n\nyo a", "c", "a", system="a")
    (row,) = template.rows(Conversation(messages))
    for k in (2, 4, 6):
        prompt = template.prompt_ids(messages[:k])
        assert list(row.ids[: len(prompt)]) == prompt
        assert not row.loss_mask[len(prompt) - 1] and row.loss_mask[len(prompt)]


def test_a_merge_over_the_prompts_end_does_not_move_the_mask() -> None:
    """Encoded in one piece, the line break of the generation prompt would join with the reply's."""
    template = Template(byte_level(2000), CHATML)
    messages = chat("hi", "\n\nyes")
    (row,) = template.rows(Conversation(messages))
    prompt = template.prompt_ids(messages[:1])
    assert list(row.ids[: len(prompt)]) == prompt
    assert trained_text(template, row.ids, row.loss_mask) == ["\n\nyes<|im_end|>"]


def test_message_weights() -> None:
    messages = chat("hi", Message("assistant", "bad", weight=0.0), "and?", Message("assistant", "good", weight=0.5))
    (row,) = Template(BYTES, CHATML).rows(Conversation(messages))
    assert set(row.loss_mask) == {0.0, 0.5}
    assert "bad" not in "".join(trained_text(Template(BYTES, CHATML), row.ids, row.loss_mask))


def test_loss_on_last_assistant() -> None:
    template = Template(BYTES, CHATML, loss_on="last_assistant")
    (row,) = template.rows(Conversation(chat("hi", "yes", "and?", "no")))
    assert trained_text(template, row.ids, row.loss_mask) == ["no<|im_end|>"]


def test_loss_on_all_trains_everything_but_the_first_token_and_keeps_weights() -> None:
    template = Template(BYTES, CHATML, loss_on="all")
    (row,) = template.rows(Conversation(chat("hi", "yes", "bye")))
    assert row.loss_mask == (0.0, *[1.0] * (len(row.ids) - 1))
    assert BYTES.decode(row.ids).endswith("bye<|im_end|>\n"), "messages after the last reply are trained on, too"
    (row,) = template.rows(Conversation(chat("hi", Message("assistant", "yes", weight=0.0))))
    assert 0.0 in row.loss_mask[1:] and 1.0 in row.loss_mask


def test_messages_after_the_last_trained_turn_are_counted() -> None:
    rendered = Template(BYTES, CHATML).render(Conversation(chat("hi", "yes", "bye")))
    assert rendered.dropped_messages == 1
    assert "bye" not in BYTES.decode(rendered.rows[0].ids)


def test_a_conversation_without_a_reply_trains_nothing() -> None:
    (row,) = Template(BYTES, CHATML).rows(Conversation(chat("hi")))
    assert row.trained_tokens == 0 and "hi" in BYTES.decode(row.ids)


def test_truncation_cuts_on_the_right_and_counts() -> None:
    whole = Template(BYTES, CHATML).rows(Conversation(chat("hi", "yes it is so")))[0]
    rendered = Template(BYTES, CHATML, max_tokens=len(whole.ids) - 4).render(Conversation(chat("hi", "yes it is so")))
    (row,) = rendered.rows
    assert row.ids == whole.ids[:-4] and row.loss_mask == whole.loss_mask[:-4]
    assert rendered.truncated_tokens == 4
    assert rendered.truncated_trained_tokens == 3, "the line break after the end mark was not trained on"


def test_document_is_trained_on_from_start_to_end() -> None:
    plain = Template(BYTES, CHATML)
    (row,) = plain.rows(Document("some text <|im_end|>", id="d"))
    assert BYTES.decode(row.ids) == "some text <|im_end|><|im_end|>"
    assert row.ids.count(BYTES.eos_token_id) == 1 and row.ids[-1] == BYTES.eos_token_id
    assert row.loss_mask == (0.0, *[1.0] * (len(row.ids) - 1))
    assert plain.text_ids("some text") == BYTES.encode("some text", add_special_tokens=False)


def adding_bos() -> PreTrainedTokenizerFast:
    tokenizer = byte_level(bos_token="<|endoftext|>")
    bos = ("<|endoftext|>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[bos]
    )
    return tokenizer


def test_one_bos_at_most() -> None:
    tokenizer = adding_bos()
    template = Template(tokenizer, "{{ bos_token }}" + CHATML)
    (row,) = template.rows(Conversation(chat("hi <|endoftext|>", "yes", "a", "b")))
    assert row.ids[0] == tokenizer.bos_token_id and row.ids.count(tokenizer.bos_token_id) == 1
    (row,) = template.rows(Document("text"))
    assert row.ids[0] == tokenizer.bos_token_id and row.ids.count(tokenizer.bos_token_id) == 1
    with pytest.raises(TemplateError, match="twice"):
        Template(tokenizer, "{{ bos_token }}{{ bos_token }}" + CHATML).prompt_ids(chat("hi"))


# templates that render history otherwise than it was served


def test_forgotten_thinking_splits_the_conversation_into_faithful_rows() -> None:
    template = Template(BYTES, FORGETS_THINKING)
    messages = chat("hi", "<think>\nhm\n</think>\nyes", "and?", "<think>\nso\n</think>\nno")
    rendered = template.render(Conversation(messages, id="c"))
    assert rendered.split and len(rendered.rows) == 2
    for row, k in zip(rendered.rows, (1, 3), strict=True):
        prompt = template.prompt_ids(messages[:k])
        assert list(row.ids[: len(prompt)]) == prompt
        assert trained_text(template, row.ids, row.loss_mask) == [messages[k].content + "<|im_end|>"]
    assert "hm" not in BYTES.decode(rendered.rows[1].ids)


def test_last_turn_of_such_a_template_is_one_row() -> None:
    template = Template(BYTES, FORGETS_THINKING, loss_on="last_assistant")
    messages = chat("hi", "<think>\nhm\n</think>\nyes", "and?", "no")
    assert len(template.rows(Conversation(messages))) == 1


def test_empty_thinking_block_of_the_generation_prompt_is_in_the_prompt() -> None:
    template = Template(BYTES, EMPTY_THINKING)
    messages = chat("hi", "<b>yes")  # begins like the block does
    (row,) = template.rows(Conversation(messages))
    assert trained_text(template, row.ids, row.loss_mask) == ["<b>yes<|im_end|>"]
    prompt = template.prompt_ids(messages[:1])
    assert BYTES.decode(prompt).endswith("<think>\n\n</think>\n\n")
    assert list(row.ids[: len(prompt)]) == prompt


def test_reply_that_never_closes_the_opened_thinking_is_refused() -> None:
    template = Template(BYTES, OPEN_THINKING)
    with pytest.raises(TemplateError, match=r"rows.jsonl, line 7.*message 2.*</think>"):
        template.rows(Conversation(chat("hi", "yes"), where=Where("rows.jsonl", 7)))
    (row,) = template.rows(Conversation(chat("hi", "<think>\nhm</think>yes")))
    assert trained_text(template, row.ids, row.loss_mask) == ["hm</think>yes<|im_end|>"]


def test_template_without_an_end_mark_trains_the_reply_only() -> None:
    source = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    source += "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    template = Template(BYTES, source)
    messages = chat("hi", "yes", "and?", "no")
    (row,) = template.rows(Conversation(messages))
    assert template.end_of_turn_id is None
    assert trained_text(template, row.ids, row.loss_mask) == ["yes\n", "no\n"]
    prompt = template.prompt_ids(messages[:3])
    assert list(row.ids[: len(prompt)]) == prompt


# replies


def test_reply_row_trains_the_reply_only() -> None:
    template = Template(BYTES, CHATML)
    messages = chat("hi", "yes", "and?", "no")
    row = template.reply_row(Conversation(messages), messages[-1:])
    assert trained_text(template, row.ids, row.loss_mask) == ["no<|im_end|>"]
    row = template.reply_row(Conversation(messages), messages[1:])
    assert trained_text(template, row.ids, row.loss_mask) == ["yes<|im_end|>", "no<|im_end|>"]
    with pytest.raises(TemplateError, match="last messages"):
        template.reply_row(Conversation(messages), messages[:1])
    with pytest.raises(TemplateError, match="one row"):
        thinking = chat("hi", "<think>a</think>yes", "and?", "no")
        Template(BYTES, FORGETS_THINKING).reply_row(Conversation(thinking), thinking[1:])


@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
def test_parse_reply_gives_the_text_back(tokenizer: PreTrainedTokenizerFast) -> None:
    template = Template(tokenizer, CHATML)
    for content in ("a", "b") if tokenizer is TOKENIZERS["word_level"] else ("yo a", "a"):
        (row,) = template.rows(Conversation(chat("a", content)))
        prompt = template.prompt_ids(chat("a"))
        assert template.parse_reply(row.ids[len(prompt) :]) == Message("assistant", content)


def test_parse_reply_keeps_a_leading_space_and_spelled_out_control_tokens() -> None:
    for name in ("byte_level", "metaspace_first", "metaspace_always", "legacy"):
        template = Template(TOKENIZERS[name], CHATML)
        for content in (" yo", "a<|im_end|>\nb"):
            (row,) = template.rows(Conversation(chat("a", content)))
            prompt = template.prompt_ids(chat("a"))
            assert template.parse_reply(row.ids[len(prompt) :]).content == content, name


# tools


def test_a_template_without_tools_is_found_out() -> None:
    template = Template(BYTES, CHATML)
    call = Message("assistant", "", tool_calls=(ToolCall("get_weather", {"town": "Oslo"}),))
    conversation = Conversation((*chat("get_weather in Oslo"), call), (WEATHER,))
    assert template.capabilities == {"system", "tool_results"}
    assert "tools[0].function.description" in left_out(template, conversation)


def test_nothing_is_dropped_where_the_template_renders_all() -> None:
    template = Template(BYTES, CHATML)
    assert left_out(template, Conversation(chat(" hi ", "yes<|im_end|>", system="s"))) == []
    silent = Template(BYTES, CHATML.replace("{% for message in messages %}", "{% for message in messages[1:] %}"))
    assert left_out(silent, Conversation(chat("unseen", "yes"))) == ["messages[0].content"]


def test_arguments_as_text_where_the_template_wants_text() -> None:
    source = CHATML.replace(
        "+ '<|im_end|>'", "+ (message.tool_calls[0].function.arguments if message.tool_calls else '') + '<|im_end|>'"
    )
    template = Template(BYTES, source)
    call = Message("assistant", "", tool_calls=(ToolCall("f", {"town": "Tromsø"}),))
    assert '{"town": "Tromsø"}' in template.text((*chat("hi"), call))


def test_developer_is_system_unless_the_template_knows_it() -> None:
    messages = (Message("developer", "brief"), *chat("hi"))
    assert "<|im_start|>system\nbrief" in Template(BYTES, CHATML).text(messages)
    assert "<|im_start|>developer\nbrief" in Template(BYTES, CHATML + "{# knows developer #}").text(messages)


# refusals


def test_the_message_that_cannot_be_rendered_is_named() -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}{% endfor %}"
    )
    template = Template(BYTES, source + CHATML)
    messages = (*chat("hi"), Message("tool", "42"), *chat("x", "y"))
    with pytest.raises(TemplateError, match=r"rows.jsonl, line 3: message 2 \(tool\).*no tools here"):
        template.rows(Conversation(messages, where=Where("rows.jsonl", 3)))


def test_a_model_without_a_template_renders_documents_only() -> None:
    template = Template(BYTES, "")
    assert template.rows(Document("text"))
    with pytest.raises(TemplateError, match="chatml_tools"):
        template.rows(Conversation(chat("hi", "yes")))


def test_broken_jinja_is_named_with_its_line() -> None:
    with pytest.raises(TemplateError, match="line 2"):
        Template(BYTES, "fine\n{% if %}", "broken.jinja")


@pytest.mark.parametrize(
    "attack",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{% set n = namespace() %}{% set n.__class__ = 1 %}",
        "{% set n = namespace(_x=1) %}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'content': 'x'}) }}",
        "{{ cycler.__init__.__globals__.os.getcwd() }}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_a_template_reaches_nothing_but_its_data(attack: str) -> None:
    template = Template(BYTES, attack)
    with pytest.raises(TemplateError):
        template.prompt_ids(chat("hi"))


def test_a_value_that_is_not_json_is_refused() -> None:
    call = Message("assistant", "", tool_calls=(ToolCall("f", {"when": object()}),))
    with pytest.raises(TemplateError, match="not JSON"):
        Template(BYTES, CHATML).prompt_ids((call,))


def test_arguments_nested_too_deeply_are_refused_with_the_line() -> None:
    arguments: dict[str, Any] = {}
    for _ in range(600):
        arguments = {"a": arguments}
    messages = (*chat("hi"), Message("assistant", "", tool_calls=(ToolCall("f", arguments),)))
    with pytest.raises(TemplateError, match=r"rows.jsonl, line 3: a value is nested too deeply"):
        Template(BYTES, CHATML).rows(Conversation(messages, where=Where("rows.jsonl", 3)))


def test_namespaces_and_dicts_work() -> None:
    source = "{% set n = namespace(a='x') %}{% set n.a = n.a + 'y' %}{% set d = dict(k='z') %}{{ n.a + d.k }}"
    assert Template(BYTES, source).text(chat("hi")) == "xyz"


def test_generation_marks_and_loop_controls_are_understood() -> None:
    source = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% break %}{% endfor %}"
    assert Template(BYTES, source).text(chat("hi", "yes")) == "hi"


# equal to transformers where content is ordinary


@pytest.mark.parametrize("name", ["byte_level", "metaspace_always", "metaspace_first", "legacy", "word_level"])
def test_ids_equal_those_of_transformers(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    for messages in (chat("a b", "yo a"), chat("yo", "a", "b  a", "yo yo", system="a yo"), chat("É ü 漢字", "a")):
        (row,) = Template(tokenizer, CHATML).rows(Conversation(messages))
        assert list(row.ids) == reference_ids(tokenizer, CHATML, messages)


def test_build_template_names(tiny_loaded: LoadedModel, tmp_path: Any) -> None:
    own = build_template(tiny_loaded, "model")
    assert own.source == tiny_loaded.tokenizer.chat_template and len(own.sha256) == 64
    assert own.stop_ids >= tiny_loaded.stop_ids
    file = tmp_path / "mine.jinja"
    file.write_text(CHATML, encoding="utf-8")
    assert build_template(tiny_loaded, str(file)).source == CHATML
    with pytest.raises(TemplateError, match="did you mean 'chatml_tools'"):
        build_template(tiny_loaded, "chatml_tool")
    with pytest.raises(TemplateError, match="cannot be read"):
        build_template(tiny_loaded, str(tmp_path / "gone.jinja"))
