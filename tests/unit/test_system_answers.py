"""Systems: what their prompts hold, where their examples come from, and how a command may fail."""

import json
import math
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.data.templates import build_template
from luthier.errors import EvaluationError
from luthier.evaluation.answering import answer_with_model, score_targets_of
from luthier.evaluation.metrics.base import Array, Metric, Prediction
from luthier.evaluation.systems.base import (
    Answer,
    Context,
    after_question,
    message_text,
    no_progress,
    prediction,
    with_instruction,
)
from luthier.evaluation.systems.command import Command
from luthier.evaluation.systems.few_shot import FewShot, Retriever, with_examples
from luthier.evaluation.systems.fine_tuned import FineTuned
from luthier.evaluation.systems.zero_shot import Addition, ZeroShot, additions, suggested
from luthier.evaluation.task import build_metrics, longest_answer_tokens
from luthier.examples import Conversation, Message, ToolCall
from luthier.models.load import LoadedModel


def row(question: str, answer: str = "ok", id: str = "", **more: Any) -> Conversation:
    messages = (Message("system", "Be brief."), Message("user", question), Message("assistant", answer))
    return Conversation(messages, id=id or question, **more)


@pytest.fixture(scope="module")
def context(tiny_loaded: LoadedModel) -> Context:
    return Context(
        loaded=tiny_loaded,
        template=build_template(tiny_loaded, "model"),
        adapter_disabled=nullcontext,
        train=[row(f"train question {i}") for i in range(6)],
        validation=[row(f"validation question {i}") for i in range(4)],
        max_new_tokens=5,
        task="text",
        primary_metric=build_metrics(["rouge_l"])["rouge_l"],
        base_fingerprint="base",
    )


# prompts


def test_instructions_join_the_system_message() -> None:
    asked = row("?").prompt
    assert with_instruction(asked, "Use JSON.")[0] == Message("system", "Be brief.\nUse JSON.")
    assert with_instruction(asked, "") == asked
    assert with_instruction(asked[1:], "Use JSON.") == (Message("system", "Use JSON."), *asked[1:])
    assert after_question(asked, "As JSON.") == (asked[0], Message("user", "?\n\nAs JSON."))
    history = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    assert after_question(history, "x")[0].content == "a" and after_question(history, "x")[2].content == "c\n\nx"


def test_examples_stand_between_system_and_question() -> None:
    prompt = with_examples(row("now?").prompt, [row("first?", "1"), row("second?", "2")])
    assert [m.role for m in prompt] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert [m.content for m in prompt[1:]] == ["first?", "1", "second?", "2", "now?"]


def test_message_text_shows_calls() -> None:
    assert message_text(Message("assistant", "hi")) == "hi"
    call = ToolCall("f", {"city": "Zürich"})
    assert (
        message_text(Message("assistant", "", tool_calls=(call,))) == '{"name": "f", "arguments": {"city": "Zürich"}}'
    )
    assert message_text(Message("assistant", "so:", tool_calls=(call, call))).count("\n") == 2


def test_the_target_is_the_object_if_there_is_one() -> None:
    answer = Answer("a", (), "x")
    assert prediction(row("?", "text"), answer).target == "text"
    assert prediction(row("?", "text", target={"a": 1}), answer).target == {"a": 1}


# zero-shot


class WantsWord(Metric):
    """Scores the prompt, not the answer: 1 if it holds the word. For seeing which prompt wins."""

    word: str

    def statistics(self, prediction: Prediction) -> tuple[float, ...]:
        return (float(any(self.word in m.content for m in prediction.prompt)),)

    def values(self, statistics_NS: Array, counts_BN: Array) -> Array:
        found: Array = (counts_BN @ statistics_NS)[:, 0] / counts_BN.sum(axis=1)
        return found


def test_the_winner_is_chosen_on_validation_rows_only(context: Context) -> None:
    asked: list[str] = []
    chosen = replace(context, primary_metric=WantsWord(word="BANANA"), on_progress=lambda what, *_: asked.append(what))
    given = ZeroShot(variants=("Say BANANA.", "Say nothing."), tune_rows=3).answer([row("test?")], chosen)
    assert given.details["addition"] == "Say BANANA." and given.details["place"] == "system"
    scores = {(t["addition"], t["place"]): t["validation_score"] for t in given.details["tried"]}
    assert scores["", "system"] == 0 and scores["Say BANANA.", "user"] == 1
    assert all(t["rows"] == 3 for t in given.details["tried"])
    assert given.answers[0].prompt[0].content == "Be brief.\nSay BANANA."


def test_no_addition_wins_a_tie(context: Context) -> None:
    chosen = replace(context, primary_metric=WantsWord(word="brief"))
    assert ZeroShot().answer([row("test?")], chosen).details["addition"] == ""


def test_tuning_can_be_switched_off(context: Context) -> None:
    given = ZeroShot(tune_rows=0, instruction="In French.").answer([row("test?")], context)
    assert given.details["tried"] == []
    assert given.answers[0].prompt[0].content == "Be brief.\nIn French."


def test_long_additions_stay_in_the_system_message() -> None:
    assert additions(["short", "x" * 1000]) == [
        Addition(),
        Addition("short"),
        Addition("short", "user"),
        Addition("x" * 1000),
    ]


def test_untrained_models_may_be_wordy(context: Context) -> None:
    (answer,) = ZeroShot(tune_rows=0, answer_room=2).answer([row("test?")], context).answers
    assert answer.completion_tokens is not None and 5 < answer.completion_tokens <= 10


def test_suggestions_name_keys_and_labels(context: Context) -> None:
    labeled = [row("a", "spam"), row("b", "ham"), row("c", "spam")]
    assert "Allowed labels: ham, spam." in suggested(replace(context, task="label", train=labeled))[1]
    parsed = [row("a", '{"name": 1}'), row("b", '{"name": 1, "age": 2}'), row("c", "no json")]
    for text in suggested(replace(context, task="json", train=parsed)):
        assert "name" in text and "age" in text
    schema: dict[str, Any] = {"properties": {"city": {}}}
    assert all("city" in text for text in suggested(replace(context, task="json", json_schema=schema)))
    many = [row(str(i), f"label number {i} of a great many" * 3) for i in range(200)]
    assert all(len(text) < 200 for text in suggested(replace(context, task="label", train=many)))
    for task in ("tool_calls", "text"):
        assert suggested(replace(context, task=task))


# few-shot


def test_the_most_similar_row_comes_last() -> None:
    train = [
        row("green apples and pears"),
        row("red cars drive fast"),
        row("fast red cars in the rain"),
        row("nothing"),
    ]
    found = Retriever(train).similar(row("do red cars drive in rain"), 2)
    assert [r.id for r in found] == ["red cars drive fast", "fast red cars in the rain"]
    assert len(Retriever(train).similar(row("do red cars drive in rain"), 9)) == 4


def test_rows_that_give_the_answer_away_are_never_examples() -> None:
    train = [
        row("Where is the red house?", id="same words"),
        row("where is THE red house", id="other case"),
        row("unrelated words entirely", id="test-1"),
        row("another red house there", id="grouped", group="g"),
        row("a red house", id="fine"),
    ]
    found = Retriever(train).similar(row("Where is the red house?", id="test-1", group="g"), 5)
    assert [r.id for r in found] == ["fine"]


def test_few_shot_never_leaks_on_real_data(shared_data: Path) -> None:
    from luthier.data.formats.base import read_examples

    rows = [r for r in read_examples(shared_data / "intents" / "train_chat.jsonl") if isinstance(r, Conversation)]
    retriever = Retriever(rows)
    for test in rows[:100]:  # the rows are their own training rows: the worst leak there could be
        found = retriever.similar(replace(test, id="elsewhere"), 3)
        assert len(found) == 3
        assert all(f.prompt[-1].content.lower() != test.prompt[-1].content.lower() for f in found)


def test_examples_are_left_out_where_they_do_not_fit(context: Context) -> None:
    prompt = context.template.prompt_ids(with_examples(row("test?").prompt, context.train[:1]))
    tight = replace(context, loaded=replace(context.loaded, max_tokens=len(prompt) + context.max_new_tokens + 2))
    given = FewShot(shots=3).answer([row("test?", id="t")], tight)
    assert given.details["rows_with_fewer_shots"] == ["t"] and given.details["mean_shots"] == 1
    assert sum(m.role == "assistant" for m in given.answers[0].prompt) == 1
    roomy = FewShot(shots=3).answer([row("test?", id="t")], context)
    assert "rows_with_fewer_shots" not in roomy.details and roomy.details["mean_shots"] == 3


def test_few_shot_needs_training_rows(context: Context) -> None:
    with pytest.raises(EvaluationError, match="takes its examples from the training rows"):
        FewShot().answer([row("test?")], replace(context, train=[]))


# the model


def test_fine_tuned_needs_weights(context: Context) -> None:
    with pytest.raises(EvaluationError, match="luthier train"):
        FineTuned().answer([row("test?")], context)


def test_answers_are_what_the_template_parses(context: Context) -> None:
    from luthier.models.generate import generate

    test = [row("What is the capital of France?"), row("Write a letter.")]
    answers, seconds = answer_with_model(test, [r.prompt for r in test], context, "x")
    assert seconds > 0
    for r, answer in zip(test, answers, strict=True):
        ids = context.template.prompt_ids(r.prompt)
        (alone,) = generate(context.loaded, [ids], max_new_tokens=5, stop_ids=context.template.stop_ids)
        assert answer.reply == context.template.parse_reply(alone.ids)
        assert answer.prompt_tokens == len(ids) and answer.completion_tokens == alone.completion_tokens


def test_target_scores_are_those_of_plain_forward_passes(context: Context) -> None:
    test = [row("What is the capital of France?", "Paris."), row("Write a letter to the team.", "no")] * 3
    found = score_targets_of(test, [r.prompt for r in test], context)
    for r, score in zip(test, found, strict=True):
        target = context.template.rows(r)[0]
        with torch.no_grad():
            logits = context.loaded.model(torch.tensor([target.ids])).logits[0].log_softmax(-1)
        trained = [i for i, m in enumerate(target.loss_mask) if m]
        assert score.tokens == len(trained)
        assert score.logprob_sum == pytest.approx(sum(float(logits[i - 1, target.ids[i]]) for i in trained), abs=1e-3)
        assert score.correct == sum(int(logits[i - 1].argmax()) == target.ids[i] for i in trained)


def test_training_cuts_do_not_shorten_targets(context: Context, tiny_loaded: LoadedModel) -> None:
    cut = replace(context, template=build_template(tiny_loaded, "model", max_tokens=16))
    test = [row("What is the capital of France?", "It is Paris, " * 5)]
    whole = score_targets_of(test, [test[0].prompt], context)
    assert score_targets_of(test, [test[0].prompt], cut) == whole and whole[0].tokens > 20
    assert cut.template.max_tokens == 16
    room = longest_answer_tokens(context.template, test)
    assert room == longest_answer_tokens(cut.template, test) == math.ceil(1.25 * whole[0].tokens)


def test_a_prompt_without_room_names_the_row(context: Context) -> None:
    short = replace(context, loaded=replace(context.loaded, max_tokens=12))
    with pytest.raises(EvaluationError, match=r"row long .*the model's context ends at 12"):
        FewShot(shots=1).answer([row("word " * 20, id="long")], short)


def test_longest_answer_needs_answers(context: Context) -> None:
    with pytest.raises(EvaluationError, match="no training row has an assistant message"):
        longest_answer_tokens(context.template, [Conversation((Message("user", "?"),))])
    assert longest_answer_tokens(context.template, [row("?", "a")]) == 16


# commands

UPPER = """
import json, os, sys
print("to be read by people", file=sys.stderr)
train = open(os.environ["LUTHIER_TRAIN"]).read().strip()
for line in sys.stdin:
    row = json.loads(line)
    assert set(row) == {"id", "messages", "tools"} and row["messages"][-1]["role"] == "user"
    print(json.dumps({"id": row["id"], "output": row["messages"][-1]["content"].upper() + train}))
"""


def run(script: str, context: Context, folder: Path, rows: Sequence[Conversation], **more: Any) -> list[Answer]:
    (folder / "program.py").write_text(script)
    (folder / "train.jsonl").write_text("{}")
    there = replace(context, recipe_folder=folder, train_file=folder / "train.jsonl", on_progress=no_progress)
    return Command(command=("python", "program.py"), **more).answer(rows, there).answers


def test_a_command_answers(context: Context, tmp_path: Path) -> None:
    answers = run(UPPER, context, tmp_path, [row("größe\u2028x", id="a"), row("b\n", id="b")])
    assert [a.output for a in answers] == ["GRÖSSE\u2028X{}", "B\n{}"]
    assert answers[0].prompt == row("größe\u2028x").prompt and answers[0].prompt_tokens is None


def test_python_is_the_interpreter_that_runs_luthier(context: Context, tmp_path: Path) -> None:
    script = 'import json, sys; print(json.dumps({"id": json.loads(input())["id"], "output": sys.prefix}))'
    assert run(script, context, tmp_path, [row("a")])[0].output == sys.prefix


def test_tool_calls_of_a_command_are_parsed(context: Context, tmp_path: Path) -> None:
    call = '<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>'
    script = f'import json; print(json.dumps({{"id": json.loads(input())["id"], "output": {call!r}}}))'
    (answer,) = run(script, context, tmp_path, [row("a")])
    assert answer.reply is not None and answer.reply.tool_calls == (ToolCall("f", {"x": 1}),)
    assert answer.output == '{"name": "f", "arguments": {"x": 1}}'


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("import sys; print('lost key', file=sys.stderr); sys.exit(3)", r"ended with exit code 3(.|\n)*lost key"),
        ("pass", "did not answer 2 of 2 rows, such as a, b"),
        ("""print('{"id": "a", "output": "x"}')""", "did not answer 1 of 2 rows, such as b"),
        ("""print('{"id": "z", "output": "x"}')""", "line 1 of its output: 'z' is not the id of a row"),
        ("""print('{"id": "a", "output": "x"}\\n' * 2)""", "line 2 of its output: 'a' was answered twice"),
        ("print('hello')", "line 1 of its output is not JSON"),
        ("""print('{"id": "a", "output": {"x": 1}}')""", "both texts, found"),
        ("print('[1]')", "both texts, found"),
    ],
)
def test_a_command_that_fails_says_how(context: Context, tmp_path: Path, script: str, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        run(script, context, tmp_path, [row("?", id="a"), row("?", id="b")])


def test_a_command_that_hangs_is_ended(context: Context, tmp_path: Path) -> None:
    script = "import sys, time; print('thinking', file=sys.stderr, flush=True); time.sleep(60)"
    with pytest.raises(EvaluationError, match=r"took longer than 0\.5 s(.|\n)*thinking"):
        run(script, context, tmp_path, [row("a")], timeout_seconds=0.5)


def test_a_command_that_is_not_there(context: Context, tmp_path: Path) -> None:
    missing = Command(command=("no-such-program-at-all",))
    with pytest.raises(EvaluationError, match=r"cannot be started in .*No such file"):
        missing.answer([row("a")], replace(context, recipe_folder=tmp_path))


def test_a_command_never_sees_targets(context: Context, tmp_path: Path) -> None:
    script = 'import json; line = input(); print(json.dumps({"id": json.loads(line)["id"], "output": line}))'
    (answer,) = run(script, context, tmp_path, [row("question", "SECRET", id="a", target={"x": "SECRET"})])
    assert "SECRET" not in answer.output and json.loads(answer.output)["id"] == "a"
