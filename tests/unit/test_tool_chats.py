"""Not one tool, call, argument or result is lost between file, tokens, model and API."""

import json
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from tests.rendering import left_out
from tests.tool_chats import ARGUMENTS, SPOKEN, conversations, exact, said
from tests.tool_templates import FAMILIES, GEMMA, UNREAD

from luthier.capture.rows import Exchange, row_of
from luthier.data.formats import messages as format_of_messages
from luthier.data.formats.base import read_examples
from luthier.data.read import Record
from luthier.data.replies import BARE, LISTED, TAGGED, parse_reply_text
from luthier.data.templates import Template
from luthier.data.write import example_values, message_values, write_examples
from luthier.errors import DataError, TemplateError
from luthier.evaluation.metrics.base import Prediction
from luthier.evaluation.metrics.tool_calls import ToolCalls
from luthier.evaluation.systems._wire import reply_of, wire_messages
from luthier.examples import Conversation, Judged, Message, Preference, ToolCall, Where
from luthier.jobs.rows import Rows
from luthier.serve.chat import parse_chat
from luthier.serve.replies import tool_calls_json
from luthier.web.row_text import tools as tools_shown, turns

TEMPLATES = {name: family.template(name) for name, family in FAMILIES.items()}
LIMITS = settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))


def chats(name: str, with_ids: bool | None = None) -> st.SearchStrategy[Conversation]:
    """What a family's template takes: some write one call a turn, or nothing beside it, or want ids."""
    if name == "llama3":
        return conversations(with_ids, single=True)
    if name == "mistral":
        return conversations(True, system=False).map(without_text_beside_calls)
    return conversations(with_ids)


def without_text_beside_calls(chat: Conversation) -> Conversation:
    messages = [replace(m, content="") if m.tool_calls else m for m in chat.messages]
    return replace(chat, messages=tuple(messages))


def row(chat: Conversation, as_text: bool) -> dict[str, Any]:
    """The chat as a row of `messages`, arguments as objects or as their JSON text."""
    values = example_values(chat)
    for message in values["messages"]:
        for call in message.get("tool_calls", []):
            if as_text:
                call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    return values


def as_sharegpt(values: dict[str, Any]) -> dict[str, Any]:
    """The same row with speakers; a turn that only calls is a `function_call`."""
    found = []
    for message in values.pop("messages"):
        speaker = {"user": "human", "assistant": "gpt", "tool": "observation"}.get(message["role"], message["role"])
        rest = {key: value for key, value in message.items() if key not in ("role", "content")}
        turn = {"from": speaker, "value": message["content"], **rest}
        if rest.get("tool_calls") and not message["content"]:
            calls = [{**({"id": c["id"]} if "id" in c else {}), **c["function"]} for c in rest["tool_calls"]]
            turn = {"from": "function_call", "value": json.dumps(calls if len(calls) > 1 else calls[0])}
        found.append(turn)
    return {**values, "conversations": found, "tools": json.dumps(values["tools"])}


def read(folder: Path, values: Any, name: str = "rows.jsonl") -> Any:
    path = folder / name
    path.write_text(json.dumps(values, ensure_ascii=False) + "\n", encoding="utf-8")
    (found,) = read_examples(path)
    return found


@LIMITS
@given(chat=conversations(), as_text=st.booleans())
def test_every_format_reads_the_same_chat(tmp_path: Path, chat: Conversation, as_text: bool) -> None:
    values = row(chat, as_text)
    wanted = exact([said(chat.messages), list(chat.tools)])
    *prompt, reply = values["messages"]
    rest = {key: value for key, value in values.items() if key != "messages"}
    rows = {
        "messages": values,
        "json": [values],
        "prompt_completion": {**rest, "prompt": prompt, "completion": [reply]},
        "sharegpt": as_sharegpt(row(chat, as_text)),
    }
    for name, made in rows.items():
        found = read(tmp_path, made, "rows.json" if name == "json" else "rows.jsonl")
        assert exact([said(found.messages), list(found.tools)]) == wanted, name
    other = [{"role": "assistant", "content": "no"}]
    pair = read(tmp_path, {**rest, "prompt": prompt, "chosen": [reply], "rejected": other})
    openai = read(
        tmp_path,
        {"input": {"messages": prompt, **rest}, "preferred_output": [reply], "non_preferred_output": other},
    )
    judged = read(tmp_path, {**rest, "prompt": prompt, "completion": [reply], "label": True})
    for found, replied in ((pair, pair.chosen), (openai, openai.chosen), (judged, judged.reply)):
        assert exact([said((*found.prompt, *replied)), list(found.tools)]) == wanted
    for example in (chat, pair, judged):
        path = tmp_path / "written.jsonl"
        write_examples(path, [example])
        (again,) = read_examples(path)
        assert exact(example_values(again)) == exact(example_values(example))
    jobs = Rows()
    jobs.feed(json.dumps(values).encode() + b"\n")
    jobs.finish()
    assert jobs.refusal() is None, jobs.refusal()


@pytest.mark.parametrize("name", FAMILIES)
@LIMITS
@given(data=st.data())
def test_what_is_trained_on_is_read_back(name: str, data: st.DataObject) -> None:
    """File to tokens to message: every call of every turn, and every tool and result in the prompt."""
    chat, template = data.draw(chats(name)), TEMPLATES[name]
    assert left_out(template, chat) == []
    for index, message in enumerate(chat.messages):
        if message.role != "assistant":
            continue
        asked = chat.messages[: index + 1]
        trained = template.reply_row(Conversation(asked, chat.tools), asked[-1:])
        prompt = template.prompt_ids(asked[:-1], chat.tools)
        assert list(trained.ids[: len(prompt)]) == prompt
        found = template.parse_reply(trained.ids[len(prompt) :])
        assert exact([[c.name, c.arguments] for c in found.tool_calls]) == exact(
            [[c.name, c.arguments] for c in message.tool_calls]
        )
        assert found.content.strip() == message.content.strip()
    template.rows(chat)


@pytest.mark.parametrize("name", ["chatml_tools", "llama3", "mistral"])
@LIMITS
@given(data=st.data())
def test_the_order_in_which_results_came_back_changes_no_token(name: str, data: st.DataObject) -> None:
    chat, template = data.draw(chats(name, with_ids=True)), TEMPLATES[name]
    runs = [list(run) for _, run in groupby(chat.messages, key=lambda message: message.role)]
    turned = [message for run in runs for message in (reversed(run) if run[0].role == "tool" else run)]
    assert template.rows(replace(chat, messages=tuple(turned))) == template.rows(chat)


@pytest.mark.parametrize("name", FAMILIES)
@LIMITS
@given(data=st.data())
def test_the_api_asks_what_training_asked_and_answers_what_was_trained(name: str, data: st.DataObject) -> None:
    """The row as a client sends it gives the row's own prompt; the reply as a client gets it is the row's own reply."""
    chat, template = data.draw(chats(name)), TEMPLATES[name]
    body = {"model": "m", "messages": wire_messages(chat.prompt), "tools": list(chat.tools)}
    asked = parse_chat(json.dumps(body).encode())
    assert template.prompt_ids(asked.messages, asked.tools) == template.prompt_ids(chat.prompt, chat.tools)
    assert chat.completion is not None
    calls = tool_calls_json(chat.completion.tool_calls)
    answer = json.loads(json.dumps({"content": chat.completion.content or None, "tool_calls": calls or None}))
    got = reply_of(answer)
    if not calls and TAGGED.opening in chat.completion.content:
        return  # a server that left a call in the text
    assert got.content == chat.completion.content
    assert exact([[c.name, c.arguments] for c in got.tool_calls]) == exact(
        [[c.name, c.arguments] for c in chat.completion.tool_calls]
    )
    assert all(c.id == w.id for c, w in zip(got.tool_calls, chat.completion.tool_calls, strict=True) if w.id)
    metric = ToolCalls()
    prediction = Prediction("r", chat.prompt, "", "", chat.completion, got)
    assert metric.statistics(prediction) == (1.0, 1.0)


def streamed(reply: Message) -> bytes:
    """The reply as a stream of chunks: a call's name, then its arguments in pieces."""
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": character} for character in reply.content]
    for number, call in enumerate(tool_calls_json(reply.tool_calls)):
        text = call["function"]["arguments"]
        deltas.append({"tool_calls": [{"index": number, **call, "function": {**call["function"], "arguments": ""}}]})
        deltas += [
            {"tool_calls": [{"index": number, "function": {"arguments": text[i : i + 3]}}]}
            for i in range(0, len(text), 3)
        ]
    ends = [{"index": 0, "delta": {}, "finish_reason": "tool_calls" if reply.tool_calls else "stop"}]
    choices = [[{"index": 0, "delta": delta, "finish_reason": None}] for delta in deltas]
    lines = [f"data: {json.dumps({'choices': one})}\n\n" for one in [*choices, ends]]
    return ("".join(lines) + "data: [DONE]\n\n").encode()


@LIMITS
@given(chat=conversations(with_ids=True), is_stream=st.booleans())
def test_what_is_captured_is_what_was_said(chat: Conversation, is_stream: bool) -> None:
    assert chat.completion is not None
    request = {"model": "m", "messages": wire_messages(chat.prompt), "tools": list(chat.tools)}
    message = {"content": chat.completion.content, "tool_calls": tool_calls_json(chat.completion.tool_calls)}
    reason = "tool_calls" if chat.completion.tool_calls else "stop"
    whole = json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": reason}]}).encode()
    answer = streamed(chat.completion) if is_stream else whole
    captured = row_of(Exchange("id", json.dumps(request).encode(), answer, is_stream, 0, 0.0))
    line = json.dumps(captured, ensure_ascii=False)
    shown = tools_shown(line) + "".join(f"{turn.text}{turn.beside}" for turn in turns(line))
    for call in (call for m in chat.messages for call in m.tool_calls):
        assert exact(json.dumps(call.arguments, ensure_ascii=False)) in shown  # studio shows it as it is written
        assert exact(call.name) in shown and str(call.id) in shown
    found = format_of_messages.parse(Record(captured, Where("captured", 1)))
    assert exact([said(found.messages), list(found.tools)]) == exact([said(chat.messages), list(chat.tools)])


@LIMITS
@given(calls=st.lists(st.builds(ToolCall, st.text(max_size=8), ARGUMENTS), min_size=1, max_size=3), text=SPOKEN)
def test_each_form_is_read_as_it_is_written(calls: list[ToolCall], text: str) -> None:
    def entry(call: ToolCall, key: str) -> str:
        return json.dumps({"name": call.name, key: call.arguments}, ensure_ascii=False)

    tagged = text + "".join(f"\n<tool_call>\n{entry(c, 'arguments')}\n</tool_call>" for c in calls)
    listed = f"{text}[TOOL_CALLS] [{', '.join(entry(c, 'arguments') for c in calls)}]"
    for written, form in ((tagged, TAGGED), (listed, LISTED)):
        found = parse_reply_text(written, form)
        assert exact([[c.name, c.arguments] for c in found.tool_calls]) == exact([[c.name, c.arguments] for c in calls])
    (call,) = parse_reply_text(entry(calls[0], "parameters"), BARE).tool_calls
    assert exact([call.name, call.arguments]) == exact([calls[0].name, calls[0].arguments])
    assert parse_reply_text(f"{text} {entry(calls[0], 'parameters')}", BARE).tool_calls == ()


# what is refused

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
OSLO, ROME = (ToolCall("weather", {"town": town}, town.lower()) for town in ("Oslo", "Rome"))


def calling(*messages: Message, calls: tuple[ToolCall, ...] = (OSLO, ROME)) -> Conversation:
    return Conversation(
        (Message("user", "?"), Message("assistant", "", calls), *messages, Message("assistant", "so")), (WEATHER,)
    )


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        (calling(Message("tool", "3", tool_call_id="paris")), r"message 3 \(tool\).*'paris'.*'oslo', 'rome'"),
        (calling(*[Message("tool", "3", tool_call_id="oslo")] * 2), r"message 4 \(tool\).*'oslo'.*no call that waits"),
        (calling(Message("tool", "3")), "no tool_call_id, and 2 calls"),
        (calling(Message("tool", "3", tool_call_id="oslo"), calls=(OSLO, OSLO)), "the id of 2 calls"),
        (calling(*[Message("tool", "3")] * 3, calls=(replace(OSLO, id=None),)), "one result more than the 1 calls"),
        (calling(Message("tool", "3", name="search"), calls=(replace(OSLO, id=None),)), "'search', which no call"),
        (calling(Message("user", "!"), Message("tool", "3", tool_call_id="oslo")), r"message 4 \(tool\).*\(none\)"),
    ],
)
def test_a_result_that_no_call_or_several_could_have_is_a_data_error(
    tmp_path: Path, chat: Conversation, message: str
) -> None:
    path = tmp_path / "rows.jsonl"
    good = json.dumps({"messages": [message_values(m) for m in calling().messages]})
    path.write_text(good + "\n" + json.dumps(example_values(chat)) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        list(read_examples(path))
    assert (caught.value.path, caught.value.line) == (str(path), 2)
    with pytest.raises(TemplateError, match=message):
        TEMPLATES["qwen2.5"].prompt_ids(chat.messages, chat.tools)
    replied = chat.messages[2:]
    for kind in (
        Preference(chat.messages[:2], replied[-1:], replied[-1:]),
        Judged(chat.messages[:2], replied[-1:], True),
    ):
        values = example_values(kind)
        values["prompt"] += [message_values(m) for m in replied[:-1]]
        path.write_text(json.dumps(values) + "\n", encoding="utf-8")
        with pytest.raises(DataError, match=message):
            list(read_examples(path))


def test_a_result_without_an_id_finds_its_call_by_name_or_order() -> None:
    search = ToolCall("search", {"for": "Oslo"})
    weather = ToolCall("weather", {"town": "Oslo"})
    chat = calling(Message("tool", "3 C", name="weather"), Message("tool", "a town"), calls=(search, weather))
    text = TEMPLATES["chatml_tools"].text(chat.messages)
    assert text.index("tool search\na town") < text.index("tool weather\n3 C")


def test_a_result_that_is_missing_in_between_is_refused_where_no_id_would_tell() -> None:
    chat = calling(Message("tool", "3", tool_call_id="rome"))
    with pytest.raises(TemplateError, match=r"message 3 \(tool\) answers call 2 of its turn, and call 1 has no result"):
        TEMPLATES["qwen2.5"].rows(chat)
    nine = tuple(replace(call, id=f"{call.id}12345") for call in (OSLO, ROME))
    chat = calling(Message("tool", "3", tool_call_id="rome12345"), calls=nine)
    assert TEMPLATES["mistral"].prompt_ids(chat.messages[:-1], chat.tools)


@pytest.mark.parametrize(
    ("name", "chat", "message"),
    [
        ("llama3", calling(), "only one tool call a turn"),
        ("llama3", Conversation((Message("user", "?"), Message("assistant", "Wait.", (OSLO,)))), "its text beside the"),
        ("mistral", Conversation((Message("user", "?"), Message("assistant", "", (OSLO,)))), "nine characters"),
        (
            "qwen2.5",
            Conversation((Message("user", "?"), Message("assistant", "", (ToolCall('"', {}),)))),
            "gives others",
        ),
    ],
)
def test_what_a_family_cannot_say_is_refused(name: str, chat: Conversation, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        TEMPLATES[name].rows(replace(chat, tools=(WEATHER,)))


def test_calls_in_a_form_that_nobody_reads_are_not_trained_on() -> None:
    template = UNREAD.template("pythonic")
    assert template.calls is None and "tool_calls" in template.capabilities
    with pytest.raises(TemplateError, match="a form that is not read back"):
        template.rows(Conversation((Message("user", "?"), Message("assistant", "", (OSLO,))), (WEATHER,)))
    history = calling(Message("tool", "3", tool_call_id="oslo"), calls=(OSLO,))
    unlearned = [replace(m, weight=0.0) if m.tool_calls else m for m in history.messages]
    assert template.rows(replace(history, messages=tuple(unlearned))), "as history it can be shown"


def test_a_family_without_tools_shows_that_it_has_none() -> None:
    """Pre-flight and server refuse what is not among the capabilities."""
    template: Template = GEMMA.template("gemma")
    assert not {"tools", "tool_calls"} & template.capabilities and template.calls is None
