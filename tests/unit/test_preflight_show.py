"""Rows as people see them: marks and colors where tokens are trained on, and no way out for text of the data."""

from typing import Any

import pytest

from luthier.data.templates import Template, build_template
from luthier.examples import Conversation, Message, Row, Where
from luthier.models.load import LoadedModel
from luthier.preflight._show import CLOSE, GREEN, OPEN, PLAIN, render_row, segments

WHERE = Where("train.jsonl", 3)


@pytest.fixture
def template(tiny_loaded: LoadedModel) -> Template:
    return build_template(tiny_loaded, "model")


def _row(template: Template, *messages: Message) -> Row:
    return template.rows(Conversation(messages, (), WHERE, "r1"))[0]


def test_trained_text_stands_between_marks(template: Template, tiny_loaded: LoadedModel) -> None:
    row = _row(template, Message("user", "ask"), Message("assistant", "answer\nmore"))
    text = render_row(row, WHERE, tiny_loaded.tokenizer, color=False)
    heading, body = text.split("\n", 1)
    assert heading == (
        f"row r1 (train.jsonl, line 3): {len(row.ids)} tokens, {row.trained_tokens} trained "
        f"({row.trained_tokens / len(row.ids):.0%})"
    )
    assert f"{OPEN}answer↵\nmore<|im_end|>{CLOSE}" in body
    assert body.count(OPEN) == 1


def test_colors_end_with_each_line(template: Template, tiny_loaded: LoadedModel) -> None:
    row = _row(template, Message("user", "ask"), Message("assistant", "one\ntwo"))
    body = render_row(row, WHERE, tiny_loaded.tokenizer, color=True).split("\n", 1)[1]
    assert f"{GREEN}one↵{PLAIN}\n{GREEN}two{PLAIN}" in body
    assert OPEN not in body


@pytest.mark.parametrize("color", [True, False])
def test_data_cannot_steer_the_terminal_or_forge_a_mark(
    template: Template, tiny_loaded: LoadedModel, color: bool
) -> None:
    evil = "\x1b[2J\x1b]0;owned\x07\r\u202e" + OPEN + "fake" + CLOSE
    row = _row(template, Message("user", evil), Message("assistant", "fine"))
    text = render_row(row, WHERE, tiny_loaded.tokenizer, color)
    for styled in ("\x1b[30;42m", "\x1b[90m", "\x1b[1m", "\x1b[0m"):
        text = text.replace(styled, "")
    assert not set(text) & set("\x1b\x07\r\u202e")
    if not color:
        assert text.count(OPEN) == text.count(CLOSE) == 1


def test_segments_join_to_the_whole_row(template: Template, tiny_loaded: LoadedModel) -> None:
    tokenizer: Any = tiny_loaded.tokenizer
    row = _row(template, Message("user", "h\u00e9llo \U0001f600"), Message("assistant", "\u4f60\u597d"))
    pieces = list(segments(row, tokenizer))
    assert "".join(p.text for p in pieces) == tokenizer.decode(row.ids, skip_special_tokens=False)
    assert [p.text for p in pieces if p.trained] == ["\u4f60\u597d", "<|im_end|>"]
    assert all(p.text in ("<|im_start|>", "<|im_end|>") for p in pieces if p.control)


def test_the_first_token_is_never_shown_as_trained(tiny_loaded: LoadedModel) -> None:
    row = Row((5, 6, 7), (1.0, 1.0, 1.0), "r")
    assert [p.trained for p in segments(row, tiny_loaded.tokenizer)] == [False, True]
