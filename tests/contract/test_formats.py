"""What every format must do, found by listing the directory; then what each of them reads and refuses."""

import ast
import inspect
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from luthier import registry
from luthier.data.formats.base import FORMATS, read_examples, sniff
from luthier.data.read import Record
from luthier.data.write import write_examples
from luthier.errors import DataError, RecipeError
from luthier.examples import NOWHERE, Conversation, Document, Example, Judged, Message, Preference, ToolCall, Where

NAMES = registry.names(FORMATS)
WHERE = Where("data/rows.jsonl", 7)


def _module(name: str) -> ModuleType:
    return registry.load(FORMATS, name)


def _parse(name: str, values: Mapping[str, Any], instruction: str | None = None) -> Any:
    return _module(name).parse(Record(dict(values), WHERE), instruction)


def _refusal(name: str, values: Mapping[str, Any], instruction: str | None = None) -> str:
    with pytest.raises(DataError) as caught:
        _parse(name, values, instruction)
    assert (caught.value.path, caught.value.line) == (WHERE.path, WHERE.line)
    message = str(caught.value)
    assert message.startswith("data/rows.jsonl, line 7: ")
    return message


def _file(folder: Path, *rows: Mapping[str, Any]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# every format


def test_the_formats_that_are_promised_exist() -> None:
    promised = {"messages", "prompt_completion", "instruction", "sharegpt", "preference", "text_label", "text"}
    assert promised <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_format_describes_itself_in_one_line_and_shows_a_sample(name: str) -> None:
    assert len(registry.summary(FORMATS, name)) > 20
    sample = _module(name).SAMPLE
    assert json.loads(json.dumps(sample)) == sample


@pytest.mark.parametrize("name", NAMES)
def test_a_format_has_the_two_functions(name: str) -> None:
    module = _module(name)
    assert list(inspect.signature(module.matches).parameters) == ["values"]
    assert list(inspect.signature(module.parse).parameters) == ["record", "instruction"]
    imported = {
        alias.name.split(".")[0]
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    assert not imported & {"torch", "transformers"}


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_is_sniffed_as_its_own_format_and_no_other(name: str, tmp_path: Path) -> None:
    sample = _module(name).SAMPLE
    assert [other for other in NAMES if _module(other).matches(sample)] == [name]
    assert sniff(_file(tmp_path, sample, sample)) == name
    for other in NAMES:
        if other != name and not (other == "text" and "text" in sample):  # named on purpose, text may leave a label be
            with pytest.raises(DataError):
                _parse(other, sample)


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_keeps_id_group_place_and_unclaimed_fields(name: str) -> None:
    sample = _module(name).SAMPLE
    plain: Example = _parse(name, sample)
    own = (
        dict(plain.extra) if name == "question_passages" else {}
    )  # its texts, of which a chat has no place for several
    assert (plain.id, plain.group, plain.where, dict(plain.extra)) == ("rows:7", None, WHERE, own)
    full = {"id": 5, **sample, "group": "g", "note": {"a": None}, "extra": {"score": 1.5}}
    example: Example = _parse(name, full)
    assert (example.id, example.group) == ("5", "g")
    assert example.extra == {**own, "note": {"a": None}, "score": 1.5}
    assert "'score' is both" in _refusal(name, {**sample, "score": 1, "extra": {"score": 2}})
    assert _parse(name, {**sample, "group": ""}).group is None
    assert "'id' is a list" in _refusal(name, {**sample, "id": [1]})
    assert "'group' is an object" in _refusal(name, {**sample, "group": {}})


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_survives_being_written_and_read(name: str, tmp_path: Path) -> None:
    example: Example = _parse(name, {**_module(name).SAMPLE, "id": "a", "group": "g", "note": [1], "text2": "x"})
    path = tmp_path / "out.jsonl"
    assert write_examples(path, [example]) == 1
    assert [replace(e, where=NOWHERE) for e in read_examples(path)] == [replace(example, where=NOWHERE)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wrong", [None, 5, True, 1.5, {}, [1], [[]], [{}]], ids=repr)
def test_a_field_of_the_wrong_kind_is_refused_with_its_line(name: str, wrong: Any) -> None:
    sample = dict(_module(name).SAMPLE)
    for field in sample:
        if (name, field) in {("text_label", "label")} and isinstance(wrong, int):
            continue  # a label may be a number
        if (name, field) == ("text_number", "number") and isinstance(wrong, int | float) and wrong is not True:
            continue  # it is one
        if (name, field) == ("unpaired_preference", "label") and wrong is True:
            continue  # a verdict is true or false
        if wrong is None and (name, field) in {("instruction", "input"), ("question_passages", "negatives")}:
            continue  # absent is allowed
        assert _refusal(name, {**sample, field: wrong})


@pytest.mark.parametrize("name", NAMES)
def test_an_instruction_becomes_the_system_message_or_is_refused(name: str) -> None:
    sample = _module(name).SAMPLE
    if isinstance(_parse(name, sample), Document):
        assert "no system message" in _refusal(name, sample, "Be brief.")
        return
    example = _parse(name, sample, "Be brief.")
    messages = example.prompt
    had_one = _parse(name, sample).prompt[0].role == "system"
    assert messages[0] == (_parse(name, sample).prompt[0] if had_one else Message("system", "Be brief."))
    assert [m.role for m in messages].count("system") == 1
    if not had_one:
        own = _parse(name, {**sample, "system": "Own."}, "Be brief.")
        assert own.prompt[0] == Message("system", "Own.")
        assert "system" not in own.extra


# sniffing


def test_unknown_fields_are_named_with_the_formats(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        sniff(_file(tmp_path, {"question": "a", "answer": "b"}))
    assert "'question', 'answer'" in str(caught.value)
    assert all(f"{name}: " in str(caught.value) for name in NAMES)


def test_a_mixed_file_is_refused_with_the_first_line_of_each_kind(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"messages \(line 2\), text \(line 1\)"):
        sniff(_file(tmp_path, {"text": "a"}, {"messages": []}))
    both = {"messages": [], "chosen": "a", "rejected": "b"}
    with pytest.raises(DataError, match=r"messages \(line 1\), preference \(line 1\)"):
        sniff(_file(tmp_path, both))


def test_one_odd_row_does_not_hide_the_format(tmp_path: Path) -> None:
    path = _file(tmp_path, *[{"text": "a", "label": "b"}] * 5, {"txt": "a"})
    assert sniff(path) == "text_label"
    with pytest.raises(DataError, match=r"line 6: 'text' is missing; the row has 'txt'"):
        list(read_examples(path))


def test_a_format_can_be_named(tmp_path: Path) -> None:
    path = _file(tmp_path, {"messages": [{"role": "user", "content": "q"}], "chosen": "a", "rejected": "b"})
    (example,) = read_examples(path, "messages")
    assert example.extra == {"chosen": "a", "rejected": "b"}
    with pytest.raises(RecipeError, match="unknown format 'mesages'; did you mean 'messages'"):
        list(read_examples(path, "mesages"))


# messages


USER = {"role": "user", "content": "q"}


def test_tools_and_calls_arrive_whole_and_arguments_are_parsed() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    calls = [
        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"z": [1, null], "a": "é"}'}},
        {"type": "function", "function": {"name": "f", "arguments": {"z": 1}}},
        {"name": "f", "arguments": {}},
        {"function": {"name": "f"}, "index": 3},
    ]
    example = _parse(
        "messages",
        {
            "messages": [
                USER,
                {"role": "assistant", "content": None, "tool_calls": calls, "refusal": None},
                {"role": "tool", "content": "ok", "tool_call_id": "c1", "name": "f"},
                {
                    "role": "assistant",
                    "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
                    "weight": 0,
                },
            ],
            "tools": [tool],
            "parallel_tool_calls": False,
            "target": {"x": None},
        },
    )
    assert example == Conversation(
        (
            Message("user", "q"),
            Message(
                "assistant",
                "",
                (
                    ToolCall("f", {"z": [1, None], "a": "é"}, "c1"),
                    ToolCall("f", {"z": 1}),
                    ToolCall("f", {}),
                    ToolCall("f", {}),
                ),
            ),
            Message("tool", "ok", (), "c1", "f"),
            Message("assistant", "a\nb", weight=0.0),
        ),
        (tool,),
        WHERE,
        "rows:7",
        {"x": None},
        None,
        {"parallel_tool_calls": False},
    )


def test_tools_may_be_json_text_or_bare_functions() -> None:
    bare = {"name": "f", "parameters": {"type": "object"}}
    for given in (bare, {"type": "function", **bare}):
        example = _parse("messages", {"messages": [USER], "tools": json.dumps([given])})
        assert example.tools == ({"type": "function", "function": bare},)


def test_no_assistant_turn_is_left_to_the_checks() -> None:
    assert _parse("messages", {"messages": [USER]}).completion is None
    assert _parse("messages", {"messages": []}).messages == ()


def test_unknown_fields_of_a_message_are_kept() -> None:
    example = _parse("messages", {"messages": [USER, {**USER, "time": 5, "model": None}]})
    assert example.extra == {"message_fields": [{"message": "messages[1]", "fields": {"time": 5}}]}
    example = _parse("messages", {"messages": [{**USER, "message": "kept", "fields": 1}]})
    assert example.extra == {"message_fields": [{"message": "messages[0]", "fields": {"message": "kept", "fields": 1}}]}


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"role": "bot", "content": ""}, "messages[1] has the unknown role 'bot'; expected one of system, developer"),
        ({"role": "function", "content": ""}, "has the role 'tool'"),
        ({"content": "x"}, "the role null"),
        ({"role": ["user"], "content": "x"}, "the role a list"),
        ("hello", "messages[1] is a string; expected a message"),
        ({"role": "user"}, "messages[1] (user) has no content"),
        ({"role": "user", "content": None}, "has no content"),
        ({"role": "assistant"}, "has no content"),
        ({"role": "tool", "content": {"a": 1}}, "messages[1].content is an object"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {}}]},
            "content[0] is a part of type 'image_url'",
        ),
        ({"role": "user", "content": [{"type": "text"}]}, "content[0].text is null"),
        ({"role": "user", "content": [5]}, "content[0] is a number"),
        ({"role": "user", "content": "x", "name": 5}, "messages[1].name is a number"),
        ({"role": "assistant", "content": "x", "weight": "1"}, "messages[1].weight is '1'"),
        ({"role": "assistant", "content": "x", "weight": True}, "weight is True"),
        ({"role": "assistant", "content": "x", "weight": -1}, "weight is -1"),
        ({"role": "assistant", "content": "x", "weight": 10**400}, "weight is 1000000000000000"),
        ({"role": "assistant", "content": "x", "weight": float("nan")}, "weight is nan"),
        ({"role": "assistant", "content": "x", "function_call": {"name": "f"}}, "write it as tool_calls"),
        ({"role": "assistant", "content": "x", "reasoning_content": "hm"}, "would not be trained on"),
        ({"role": "user", "content": "x", "tool_calls": [{"name": "f"}]}, "only an assistant message can have them"),
        ({"role": "assistant", "tool_calls": {}}, "tool_calls is an object; expected a list"),
        ({"role": "assistant", "tool_calls": [{"type": "custom"}]}, "type is 'custom'"),
        ({"role": "assistant", "tool_calls": [{"function": {}}]}, "tool_calls[0] names no function"),
        ({"role": "assistant", "tool_calls": [5]}, "tool_calls[0] is a number"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "args": {}}]}, "unknown field 'args'"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "id": 5}]}, "id is a number"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}, "arguments is text that is not JSON"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": ""}]}, "arguments is text that is not JSON"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": "[1]"}]}, "arguments is a list"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": "[" * 500 + "]" * 500}]}, "nested too deeply"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": '{"a": 1e-400}'}]}, "more digits"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": '{"a": 1, "a": 2}'}]}, "'a' stands twice"),
    ],
)
def test_a_message_that_would_lose_something_is_refused(message: Any, said: str) -> None:
    assert said in _refusal("messages", {"messages": [USER, message]})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"tools": {}}, "'tools' is an object"),
        ({"tools": [{"type": "function"}]}, "tools[0] names no function"),
        ({"tools": "no"}, "not JSON"),
        ({"functions": [{"name": "f"}]}, "write the functions as 'tools'"),
        ({"system": "B", "messages": [{"role": "system", "content": "A"}]}, "a different field 'system'"),
        ({"system": 5}, "'system' is a number"),
    ],
)
def test_a_row_that_would_lose_something_is_refused(fields: dict[str, Any], said: str) -> None:
    assert said in _refusal("messages", {"messages": [USER], **fields})


# the other formats


def test_prompt_and_completion_may_be_messages() -> None:
    example = _parse(
        "prompt_completion", {"prompt": [USER, {"role": "assistant", "content": "a"}, USER], "completion": "b"}
    )
    assert [m.role for m in example.messages] == ["user", "assistant", "user", "assistant"]
    assert example.completion == Message("assistant", "b")
    assert "begins with a user message" in _refusal("prompt_completion", {"prompt": "q", "completion": [USER]})
    assert "unpaired_preference" in _refusal("prompt_completion", {"prompt": "q", "completion": "a", "label": False})


def test_a_verdict_on_a_completion_is_true_or_false(tmp_path: Path) -> None:
    row = {
        "prompt": "q",
        "completion": [{"role": "assistant", "content": "a"}],
        "label": False,
        "system": "s",
        "source": "app",
    }
    judged = _parse("unpaired_preference", row)
    assert judged == Judged((Message("system", "s"), Message("user", "q")), (Message("assistant", "a"),), False,
                            where=WHERE, id="rows:7", extra={"source": "app"})  # fmt: skip
    for wrong in (1, "true", "good"):
        assert "expected true" in _refusal("unpaired_preference", {**row, "label": wrong})
    assert sniff(_file(tmp_path, row)) == "unpaired_preference"
    assert sniff(_file(tmp_path, {**row, "label": "spam"})) == "prompt_completion"
    table = tmp_path / "rows.csv"
    table.write_text("prompt,completion,label\nq,a,True\nq,b,false\n")
    assert sniff(table) == "unpaired_preference"
    assert [example.good for example in read_examples(table) if isinstance(example, Judged)] == [True, False]


def test_instruction_and_input_are_one_turn() -> None:
    row = {"instruction": "Do it.", "input": "x", "output": "y"}
    assert _parse("instruction", row).messages == (Message("user", "Do it.\n\nx"), Message("assistant", "y"))
    assert _parse("instruction", {**row, "input": ""}).messages[0] == Message("user", "Do it.")
    assert [m.content for m in _parse("instruction", {**row, "history": [["a", "b"]]}).messages] == [
        "a",
        "b",
        "Do it.\n\nx",
        "y",
    ]
    assert "history[0] is no pair" in _refusal("instruction", {**row, "history": [["a"]]})
    assert "'history' is a string" in _refusal("instruction", {**row, "history": "a"})


def test_sharegpt_speakers_calls_and_results() -> None:
    turns = [
        {"from": "system", "value": "s"},
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": '{"name": "f", "arguments": {"a": 1}}'},
        {"from": "observation", "value": "3"},
        {"from": "gpt", "value": "three", "weight": 0.5},
        {"role": "user", "content": "again"},
    ]
    example = _parse("sharegpt", {"conversations": turns, "tools": '[{"name": "f"}]'})
    assert example.messages == (
        Message("system", "s"),
        Message("user", "q"),
        Message("assistant", "", (ToolCall("f", {"a": 1}),)),
        Message("tool", "3"),
        Message("assistant", "three", weight=0.5),
        Message("user", "again"),
    )
    assert example.tools == ({"type": "function", "function": {"name": "f"}},)


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        ({"from": "bing", "value": "x"}, "conversations[0] is from 'bing'; expected one of system, human"),
        ({"from": "human", "value": None}, "value is null"),
        ({"from": "function_call", "value": "f(1)"}, "not JSON"),
        ({"from": "human", "value": "x", "role": "user"}, "both 'from' and 'role'"),
        ("x", "conversations[0] is a string"),
    ],
)
def test_sharegpt_turns_that_cannot_be_read(turn: Any, said: str) -> None:
    assert said in _refusal("sharegpt", {"conversations": [turn]})


def _said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


ASKED, GOOD, BAD = _said("user", "q"), _said("assistant", "good"), _said("assistant", "bad")
PAIR = ((Message("user", "q"),), (Message("assistant", "good"),), (Message("assistant", "bad"),))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "good", "rejected": "bad"},
        {"prompt": [ASKED], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": "q", "chosen": [GOOD], "rejected": "bad"},
        {"chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
        {"prompt": "q", "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
        {"input": {"messages": [ASKED]}, "preferred_output": [GOOD], "non_preferred_output": [BAD]},
    ],
    ids=["texts", "messages", "mixed", "implicit", "repeated", "openai"],
)
def test_every_shape_of_a_pair_means_the_same(row: dict[str, Any]) -> None:
    assert _module("preference").matches(row)
    example = _parse("preference", row)
    assert isinstance(example, Preference)
    assert (example.prompt, example.chosen, example.rejected) == PAIR


def test_openai_pairs_keep_tools_and_options() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    given = {"messages": [ASKED], "tools": tools, "parallel_tool_calls": True}
    example = _parse("preference", {"input": given, "preferred_output": [GOOD], "non_preferred_output": [BAD]})
    assert example.tools == tuple(tools)
    assert example.extra == {"message_fields": [{"message": "input", "fields": {"parallel_tool_calls": True}}]}


def test_an_implicit_prompt_may_hold_earlier_replies() -> None:
    start = [ASKED, GOOD, _said("user", "more")]
    example = _parse("preference", {"chosen": [*start, GOOD], "rejected": [*start, BAD]})
    assert (len(example.prompt), len(example.chosen), len(example.rejected)) == (3, 1, 1)
    same = _parse("preference", {"chosen": [ASKED, GOOD], "rejected": [ASKED, GOOD]})
    assert (same.prompt, same.chosen) == (PAIR[0], same.rejected)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"chosen": "a", "rejected": "b"}, "'prompt' is missing, and chosen and rejected are texts"),
        ({"chosen": [ASKED, GOOD], "rejected": [_said("user", "other"), BAD]}, "they answer different prompts"),
        ({"chosen": [ASKED, GOOD], "rejected": [ASKED]}, "a user message"),
        ({"prompt": "x", "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]}, "'chosen' begins with a user message"),
        ({"prompt": "x", "chosen": "a", "rejected": None}, "'rejected' is null"),
        ({"input": "x", "preferred_output": [GOOD], "non_preferred_output": [BAD]}, "'input' is a string"),
        ({"input": {}, "preferred_output": [GOOD], "non_preferred_output": [BAD]}, "'input' has no messages"),
        (
            {"input": {"messages": []}, "preferred_output": "a", "non_preferred_output": [BAD]},
            "expected a list of messages",
        ),
    ],
)
def test_pairs_that_cannot_be_told_apart_from_mistakes(row: dict[str, Any], said: str) -> None:
    assert said in _refusal("preference", row)


def test_a_label_is_reply_and_target() -> None:
    example = _parse("text_label", {"text": "t", "label": "yes"}, "Classify.")
    assert example.messages == (Message("system", "Classify."), Message("user", "t"), Message("assistant", "yes"))
    assert example.target == "yes"
    assert _parse("text_label", {"text": "t", "label": 3}).target == "3"
    assert _parse("text_label", {"text": "t", "label": True}).target == "true"
    assert _parse("text_label", {"text": "t", "label": "a", "target": None}).target == "a"
    assert "both 'label' and 'target'" in _refusal("text_label", {"text": "t", "label": "a", "target": "a"})


@pytest.mark.parametrize("ending", [".csv", ".tsv"])
def test_an_empty_cell_names_no_target(ending: str, tmp_path: Path) -> None:
    comma = "," if ending == ".csv" else "\t"
    labels, prompts = tmp_path / f"labels{ending}", tmp_path / f"prompts{ending}"
    labels.write_text("text,label,target\na,b,\n".replace(",", comma), encoding="utf-8")
    prompts.write_text("prompt,completion,target\na,b,\nc,d,e\n".replace(",", comma), encoding="utf-8")
    assert [e.target for e in read_examples(labels) if isinstance(e, Conversation)] == ["b"]
    assert [e.target for e in read_examples(prompts) if isinstance(e, Conversation)] == [None, "e"]
    assert _parse("messages", {"messages": [USER], "target": ""}).target == "", "in JSON it is a text like any other"


# real files


SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared development data is not beside this checkout")
@pytest.mark.parametrize(
    ("name", "format", "kind"),
    [
        ("json_extraction", "messages", Conversation),
        ("intents", "text_label", Conversation),
        ("toolcalls", "messages", Conversation),
        ("preference", "preference", Preference),
    ],
)
def test_real_files_are_read_and_written_without_loss(name: str, format: str, kind: type, tmp_path: Path) -> None:
    source, copy = SHARED / name / "test.jsonl", tmp_path / "copy.jsonl"
    assert sniff(source) == format
    examples = list(read_examples(source))
    assert all(type(example) is kind for example in examples)
    assert write_examples(copy, examples) == len(source.read_text(encoding="utf-8").splitlines())
    assert [replace(e, where=NOWHERE) for e in read_examples(copy)] == [replace(e, where=NOWHERE) for e in examples]


# question and answers


def test_answers_are_the_target_and_the_first_is_the_reply() -> None:
    row = {"question": "When?", "answers": ["1851", "in 1851"], "gold_passage_ids": ["p"]}
    example = _parse("question_answers", row)
    assert [(m.role, m.content) for m in example.messages] == [("user", "When?"), ("assistant", "1851")]
    assert example.target == ["1851", "in 1851"] and example.extra == {"gold_passage_ids": ["p"]}
    squad = {**row, "answers": {"text": ["1851"], "answer_start": [3]}, "context": "In 1851."}
    example = _parse("question_answers", squad)
    assert example.messages[0].content == "In 1851.\n\nWhen?" and example.target == ["1851"]


@pytest.mark.parametrize("answers", [[], [""], {"text": []}, {"answer_start": [1]}, "1851"])
def test_a_question_without_an_answer_is_refused(answers: Any) -> None:
    assert "'answers'" in _refusal("question_answers", {"question": "When?", "answers": answers})


def test_answers_and_a_target_are_too_many() -> None:
    assert "both 'answers' and 'target'" in _refusal(
        "question_answers", {"question": "?", "answers": ["a"], "target": 1}
    )


def test_questions_with_passages_in_the_names_of_others() -> None:
    wanted = {"right_texts": ["a", "b"], "wrong_texts": ["c"]}
    for question, right, wrong in (("query", "pos", "neg"), ("anchor", "positive", "negative")):
        row = _parse("question_passages", {question: "q", right: ["a", "b", "a"], wrong: "c"})
        assert row.extra == wanted and row.prompt[0].content == "q" and row.completion.content == "a"
    assert _parse("question_passages", {"query": "q", "pos": "a", "neg": None}).extra["wrong_texts"] == []
    assert "both 'query' and 'anchor'" in _refusal("question_passages", {"query": "q", "anchor": "q", "pos": "a"})
    assert "both right and wrong" in _refusal("question_passages", {"query": "q", "pos": "a", "neg": ["a"]})
    assert "empty text" in _refusal("question_passages", {"query": "q", "pos": ["a", " "]})
