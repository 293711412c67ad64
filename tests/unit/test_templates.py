"""The one render path: what is trained on, what is served, and what content can never become."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from tests.rendering import left_out
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from luthier.data.control_tokens import ControlTokens
from luthier.data.templates import Template, build_template
from luthier.errors import TemplateError
from luthier.examples import Conversation, Document, Message, Role, ToolCall, Where
from luthier.models.load import LoadedModel

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
FORGETS_THINKING = (  # as Qwen3 does: the reasoning of every turn but the last is left out
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and not loop.last and '</think>' in m.content %}"
    "{{ m.content.split('</think>')[-1].lstrip('\n') }}{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
EMPTY_THINKING = CHATML.replace(
    "<|im_start|>assistant\n' }}{% endif", "<|im_start|>assistant\n<think>\n\n</think>\n\n' }}{% endif"
)
OPEN_THINKING = CHATML.replace("<|im_start|>assistant\n' }}{% endif", "<|im_start|>assistant\n<think>\n' }}{% endif")

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
STRUCTURAL = ("<think>", "</think>", "<tool_call>", "</tool_call>")
TEXTS = [
    "a user asks and an assistant answers in one street of the city 62701",
    "system\nuser\nassistant\n what is the capital of France? Paris. <tool_call> name arguments </tool_call> <think>",
]


def wrap(tokenizer: Tokenizer, **specials: str) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens(list(CONTROL))
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in STRUCTURAL])
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>", **specials}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def byte_level(vocab_size: int = 400, **specials: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return wrap(tokenizer, **specials)


def sentencepiece(scheme: str) -> PreTrainedTokenizerFast:
    """BPE over ▁-marked words with byte fallback, as Llama 2 and Mistral have it; `scheme` is where a space is put."""
    pieces = [f"<0x{i:02X}>" for i in range(256)] + ["▁", *"abcdefghijklmnopqrstuvwxyz", "▁a", "yo", "▁yo"]
    vocab = {piece: i for i, piece in enumerate(["<unk>", *CONTROL, *pieces])}
    merges = [("▁", "a"), ("y", "o"), ("▁", "yo")]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if scheme == "legacy":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return wrap(tokenizer)


def unigram() -> PreTrainedTokenizerFast:
    """Control tokens are pieces with the best scores, as in converted SentencePiece models."""
    pieces = [("<unk>", 0.0), *((c, 0.0) for c in CONTROL), *((chr(i), -3.0) for i in range(32, 127)), ("\n", -3.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.decoder = decoders.Fuse()
    return wrap(tokenizer)


def word_level() -> PreTrainedTokenizerFast:
    words = ["<unk>", *CONTROL, *STRUCTURAL, "a", "b"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return wrap(tokenizer)


TOKENIZERS = {
    "byte_level": byte_level(),
    "metaspace_first": sentencepiece("first"),
    "metaspace_always": sentencepiece("always"),
    "legacy": sentencepiece("legacy"),
    "unigram": unigram(),
    "word_level": word_level(),
}
BYTES = TOKENIZERS["byte_level"]


def chat(*turns: str | Message, system: str | None = None) -> tuple[Message, ...]:
    roles: tuple[Role, Role] = ("user", "assistant")
    messages = [t if isinstance(t, Message) else Message(roles[i % 2], t) for i, t in enumerate(turns)]
    return (*([Message("system", system)] if system is not None else []), *messages)


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

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Current weather in a town",
        "parameters": {"type": "object", "properties": {"town": {"type": "string", "description": "where"}}},
    },
}


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


def test_namespaces_and_dicts_work() -> None:
    source = "{% set n = namespace(a='x') %}{% set n.a = n.a + 'y' %}{% set d = dict(k='z') %}{{ n.a + d.k }}"
    assert Template(BYTES, source).text(chat("hi")) == "xyz"


def test_generation_marks_and_loop_controls_are_understood() -> None:
    source = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% break %}{% endfor %}"
    assert Template(BYTES, source).text(chat("hi", "yes")) == "hi"


# content is never control

PIECES = st.one_of(
    st.sampled_from(
        [*CONTROL, *STRUCTURAL, "<|im_", "end|>", "|im_end|", "<", ">", "<unk>", "\ue000", "\ue001", "\U0010fffd"]
    ),
    st.text(max_size=6),
)
HOSTILE = st.lists(PIECES, max_size=6).map("".join).filter(lambda s: s.encode("utf-8", "ignore").decode() == s)


@pytest.mark.parametrize(
    "tokenizer", [BYTES, TOKENIZERS["metaspace_first"], TOKENIZERS["unigram"]], ids=["bytes", "sp", "unigram"]
)
@settings(max_examples=60, deadline=None)
@given(user=HOSTILE, reply=HOSTILE, system=HOSTILE)
def test_content_never_becomes_a_control_token(
    tokenizer: PreTrainedTokenizerFast, user: str, reply: str, system: str
) -> None:
    template = Template(tokenizer, CHATML) if tokenizer is not BYTES else BYTES_TEMPLATE
    messages = chat(user, reply, system=system)
    (row,) = template.rows(Conversation(messages))
    special = {tokenizer.convert_tokens_to_ids(text) for text in CONTROL}
    marks = [i for i in row.ids if i in special]
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert marks == [start, end] * 3
    prompt = template.prompt_ids(messages[:2])
    assert list(row.ids[: len(prompt)]) == prompt
    if tokenizer is BYTES:
        text = BYTES.decode(row.ids)
        assert user in text and reply in text and system in text
        structural = {tokenizer.convert_tokens_to_ids(text) for text in STRUCTURAL}
        assert not structural & set(prompt), "only an assistant may write these"
        assert template.parse_reply(row.ids[len(prompt) :]).content == reply or "<tool_call>" in reply


BYTES_TEMPLATE = Template(BYTES, CHATML)


@settings(max_examples=60, deadline=None)
@given(first=HOSTILE, second=HOSTILE)
def test_two_contents_side_by_side_never_join_to_a_control_token(first: str, second: str) -> None:
    template = SIDE_BY_SIDE
    ids = template.prompt_ids((Message("user", first), Message("user", second), Message("user", first)))
    assert not set(ids) & ControlTokens(BYTES.backend_tokenizer).control_ids
    assert BYTES.decode(ids) == f"<{first}{second}{first}>"


SIDE_BY_SIDE = Template(BYTES, "<{% for m in messages %}{{ m.content }}{% endfor %}>")


def test_a_control_token_split_over_contents_stays_text() -> None:
    for first, second in (("<|im_", "end|>"), ("<|im_end", "|>"), ("<|", "im_end|>")):
        ids = SIDE_BY_SIDE.prompt_ids((Message("user", first), Message("user", second)))
        assert BYTES.eos_token_id not in ids
    assert BYTES.eos_token_id not in SIDE_BY_SIDE.prompt_ids((Message("user", "|im_end|"),))


def test_tool_names_keys_and_arguments_are_guarded() -> None:
    source = CHATML + "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}"
    tool = {
        "type": "function",
        "function": {"name": "<|im_end|>", "parameters": {"<|im_start|>": "\ue000<|endoftext|>"}},
    }
    ids = Template(BYTES, source).prompt_ids(chat("hi"), (tool,))
    specials = [i for i in ids if i in set(BYTES.all_special_ids)]
    assert len(specials) == 3
    assert json.loads(BYTES.decode(ids).rpartition("assistant\n")[2]) == tool


def test_json_in_ascii_keeps_the_guard() -> None:
    source = CHATML + "{% for t in tools or [] %}{{ t | tojson(ensure_ascii=true) }}{% endfor %}"
    tool = {"name": "é<|im_end|>"}
    text = BYTES.decode(Template(BYTES, source).prompt_ids(chat("hi"), (tool,)))
    assert text.endswith('{"name": "\\u00e9<|im_end|>"}')


def test_an_assistant_may_write_structural_tokens_and_a_user_may_not() -> None:
    template = Template(BYTES, CHATML)
    think = BYTES.convert_tokens_to_ids("<think>")
    assert think in template.prompt_ids(chat("hi", "<think>x</think>y"))
    assert think not in template.prompt_ids(chat("<think>x</think>"))


def test_every_private_use_character_taken_is_refused_not_guessed() -> None:
    everything = "".join(map(chr, range(0xE000, 0xF900)))
    template = Template(BYTES, CHATML)
    assert template.prompt_ids(chat(everything)), "nothing needs a guard here"
    with pytest.raises(TemplateError, match="private-use"):
        template.prompt_ids(chat(everything + "<|im_end|>"))


def test_half_a_character_is_refused() -> None:
    with pytest.raises(TemplateError, match="half of a character"):
        BYTES_TEMPLATE.rows(Conversation(chat("a\ud83d", "yes")))
    with pytest.raises(TemplateError, match="half of a character"):
        BYTES_TEMPLATE.rows(Document("a\ud83d"))


def test_white_space_tokens_stay_ordinary_text() -> None:
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("\n\n\n", normalized=False, special=False)])
    messages = chat("a\n\n\nb", "a\n\n\n")
    (row,) = Template(tokenizer, CHATML).rows(Conversation(messages))
    assert row.ids.count(tokenizer.convert_tokens_to_ids("\n\n\n")) == 2
    assert list(row.ids) == reference_ids(tokenizer, CHATML, messages)


# equal to transformers where content is ordinary


def reference_ids(tokenizer: Any, source: str, messages: Sequence[Message]) -> list[int]:
    dicts = [{"role": m.role, "content": m.content} for m in messages]
    done = tokenizer.apply_chat_template(dicts, chat_template=source, tokenize=True, return_dict=True)
    return list(done["input_ids"])


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
