"""Systems: what their prompts hold, where their examples come from, and how a command may fail."""

import json
import math
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from luthier.data.templates import build_template
from luthier.errors import EvaluationError
from luthier.evaluation.answering import answer_with_model, score_targets_of
from luthier.evaluation.metrics.base import Array, Metric, Prediction
from luthier.evaluation.systems._prompts import Addition, additions
from luthier.evaluation.systems.base import (
    Answer,
    Context,
    after_question,
    message_text,
    no_progress,
    prediction,
    with_examples,
    with_instruction,
)
from luthier.evaluation.systems.command import Command
from luthier.evaluation.systems.few_shot import (
    LOOKED_AT,
    FewShot,
    Prompter,
    Retriever,
    Way,
)
from luthier.evaluation.systems.fine_tuned import FineTuned
from luthier.evaluation.systems.fine_tuned_few_shot import FineTunedFewShot
from luthier.evaluation.systems.zero_shot import ZeroShot
from luthier.evaluation.task import build_metrics, room_for_answers
from luthier.examples import Conversation, Message, ToolCall
from luthier.models.load import LoadedModel
from luthier.rag.lexical import most_similar


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


SCORED: list[tuple[Message, ...]] = []
"""Prompts that `Recorded` scored."""


class Recorded(WantsWord):
    """The same, and remembers every prompt."""

    def statistics(self, prediction: Prediction) -> tuple[float, ...]:
        SCORED.append(prediction.prompt)
        return super().statistics(prediction)


@pytest.mark.parametrize("system", [ZeroShot(tune_rows=3), FewShot(tune_rows=3)])
def test_prompts_compete_on_validation_questions_and_no_others(context: Context, system: ZeroShot | FewShot) -> None:
    SCORED.clear()
    metric = Recorded(word="BANANA")
    given = system.answer([row("test?")], replace(context, primary_metric=metric))
    asked = {prompt[-1].content.split("\n\n")[0] for prompt in SCORED}  # additions come after a blank line
    assert asked == {"validation question 0", "validation question 1", "validation question 2"}
    assert len(given.details["tried"]) > 2 and all(t["rows"] == 3 for t in given.details["tried"])


class CountsWord(WantsWord):
    """The lower the better."""

    higher_is_better: ClassVar[bool] = False
    worst: ClassVar[float] = 1.0
    best: ClassVar[float] = 0.0


def test_the_lower_score_wins_where_lower_is_better(context: Context) -> None:
    chosen = replace(context, primary_metric=CountsWord(word="brief"))
    given = ZeroShot(instruction="Say it brief.", variants=("Say brief BANANA.",)).answer([row("test?")], chosen)
    assert given.details["addition"] == ""  # all hold the word: a tie
    chosen = replace(context, primary_metric=CountsWord(word="blank"))
    assert ZeroShot(variants=("Leave it blank.",)).answer([row("test?")], chosen).details["addition"] == ""
    absent = replace(context, primary_metric=WantsNoAddition(word=""))
    assert ZeroShot(variants=("Leave it blank.",)).answer([row("test?")], absent).details["addition"] != ""


class WantsNoAddition(CountsWord):
    """0 for a prompt with an addition, 1 for one without."""

    def statistics(self, prediction: Prediction) -> tuple[float, ...]:
        return (float(prediction.prompt[0].content == "Be brief." and "\n" not in prediction.prompt[-1].content),)


def test_a_score_that_says_nothing_never_wins(context: Context) -> None:
    class Nothing(WantsWord):
        """Not a number where the word is missing."""

        def values(self, statistics_NS: Array, counts_BN: Array) -> Array:
            found = super().values(statistics_NS, counts_BN)
            return np.where(found == 0, np.nan, found)

    given = ZeroShot(variants=("BANANA",)).answer([row("t?")], replace(context, primary_metric=Nothing(word="BANANA")))
    assert given.details["addition"] == "BANANA"
    assert given.details["tried"][0]["validation_score"] is None


def test_a_bad_validation_target_is_found_before_anything_is_generated(context: Context) -> None:
    told: list[str] = []
    chosen = replace(
        context, primary_metric=build_metrics(["field_f1"])["field_f1"], on_progress=lambda what, *_: told.append(what)
    )
    with pytest.raises(EvaluationError, match="row validation question 0: the target is not JSON"):
        ZeroShot().answer([row("test?")], chosen)
    assert told == []


def test_an_addition_that_does_not_fit_is_left_out(context: Context) -> None:
    long = "word " * 100
    room = len(context.template.prompt_ids(row("validation question 0").prompt)) + 20
    tight = replace(
        context,
        loaded=replace(context.loaded, max_tokens=room),
        validation=[row("much too long " * 50), *context.validation],
        primary_metric=WantsNoAddition(word=""),
    )
    given = ZeroShot(variants=(long,), tune_rows=2).answer([row("test?", id="t")], tight)
    assert [t["rows"] for t in given.details["tried"]] == [2] * len(given.details["tried"])
    assert next(t for t in given.details["tried"] if t["addition"] == long)["validation_score"] == 1
    forced = ZeroShot(variants=(long,), tune_rows=0)
    (asked,) = forced._prompts(tight, [row("test?")], Addition(long))
    assert asked == row("test?").prompt


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


def test_diverse_examples_pass_over_near_copies() -> None:
    train = [
        row("do red cars drive in the rain often"),
        row("do red cars drive in the rain sometimes"),
        row("do red cars drive in the rain daily"),
        row("red boats"),
    ]
    asked = row("why do red cars drive in rain")
    retriever = Retriever(train)
    nearest, diverse = retriever.similar(asked, 2), retriever.similar(asked, 2, "diverse")
    assert nearest[-1] == diverse[-1] and nearest[0].id != "red boats" and diverse[0].id == "red boats"
    assert len(retriever.similar(asked, 4, "diverse")) == 4  # rather a near copy than fewer examples


def test_few_shot_ways_compete(context: Context) -> None:
    """Whoever wins on validation rows answers the test rows: here the addition, then the examples that differ."""
    near = [row(f"one question about validation number {i}") for i in range(4)]
    labeled = replace(context, task="label", train=[*near, row("something else entirely")])
    chosen = replace(labeled, primary_metric=WantsWord(word="Allowed labels: ok."))
    given = FewShot(shots=2).answer([row("a question about validation?")], chosen)
    assert given.details["addition"].startswith("Allowed labels: ok.") and given.details["examples"] == "nearest"
    assert "Allowed labels: ok." in given.answers[0].prompt[0].content
    ways = [(bool(t["addition"]), t["place"], t["examples"], t["rows"]) for t in given.details["tried"]]
    assert ways == [(a, "system", e, 4) for a in (False, True) for e in ("nearest", "diverse")]
    chosen = replace(labeled, primary_metric=WantsWord(word="something else"))
    given = FewShot(shots=2, instruction="In French.").answer([row("a question about validation?")], chosen)
    assert (given.details["addition"], given.details["examples"]) == ("", "diverse")
    assert given.answers[0].prompt[0].content == "Be brief.\nIn French."
    assert any("something else" in m.content for m in given.answers[0].prompt)


def test_the_competition_of_few_shot_never_sees_the_answer(context: Context) -> None:
    SCORED.clear()
    metric = Recorded(word="SECRET")
    copies = [row(r.prompt[-1].content.upper(), "SECRET", id=f"copy {r.id}") for r in context.validation]
    given = FewShot().answer([row("test?")], replace(context, train=[*copies, *context.train], primary_metric=metric))
    for prompt in SCORED:
        assert all(m.content.lower() != prompt[-1].content for m in prompt[:-1])
    assert given.details["tried"][0]["rows"] == 4


def test_few_shot_tuning_can_be_switched_off(context: Context) -> None:
    given = FewShot(shots=1, tune_rows=0).answer([row("test?")], context)
    assert given.details["tried"] == [] and (given.details["addition"], given.details["examples"]) == ("", "nearest")


def test_few_shot_answers_may_be_wordy_too(context: Context) -> None:
    (answer,) = FewShot(tune_rows=0, answer_room=2).answer([row("test?")], context).answers
    assert answer.completion_tokens is not None and 5 < answer.completion_tokens <= 10


def test_the_most_similar_are_those_of_a_full_sort() -> None:
    rng = np.random.default_rng(0)
    for size in (1, 5, 300):
        scores = rng.integers(0, 6, size).astype(np.float64)  # many ties
        for count in (1, 3, 250):
            assert most_similar(scores, count) == np.argsort(-scores, kind="stable")[:count].tolist()


def test_a_question_is_compared_with_few_of_many_training_rows() -> None:
    """100,000 rows that all look alike must not be compared word by word with every question."""
    retriever = Retriever([row(f"same words in all of these {i}") for i in range(3000)])
    seen: list[int] = []
    compared = retriever._gives_away

    class Counting(Retriever):
        """Counts comparisons."""

        def __init__(self) -> None:
            vars(self).update(vars(retriever))

        def _gives_away(self, index: int, row: Conversation, asked: frozenset[str]) -> bool:
            seen.append(index)
            return compared(index, row, asked)

    Counting().similar(row("same words in all of these here"), 3, "diverse")
    assert 0 < len(seen) <= LOOKED_AT


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


def test_an_addition_stays_without_examples_and_goes_where_it_does_not_fit(context: Context) -> None:
    test, way = row("test?"), Way(Addition("Say BANANA."), "nearest")
    alone = way.addition.apply(test.prompt)
    needed = len(context.template.prompt_ids(alone)) + context.max_new_tokens
    for room, prompt in ((needed, alone), (needed - 1, test.prompt)):
        tight = replace(context, loaded=replace(context.loaded, max_tokens=room))
        assert Prompter(FewShot(shots=3), tight).prompt(test, way) == (prompt, 0)


def test_few_shot_needs_training_rows(context: Context) -> None:
    with pytest.raises(EvaluationError, match="takes its examples from the training rows"):
        FewShot().answer([row("test?")], replace(context, train=[]))


# the model


def test_fine_tuned_needs_weights(context: Context) -> None:
    with pytest.raises(EvaluationError, match="luthier train"):
        FineTuned().answer([row("test?")], context)


@pytest.mark.parametrize(
    ("word", "examples", "shown"),
    [("one question", "nearest", True), ("else", "diverse", True), ("BANANA", "none", False)],
)
def test_a_fine_tuned_model_is_shown_examples_where_they_help(
    context: Context, word: str, examples: str, shown: bool
) -> None:
    """Nothing is added to what was trained with, and where examples help as little as none, there are none."""
    near = [row(f"one question about validation number {i}") for i in range(4)]
    metric = WantsWord(word=word) if shown else WantsNoExample(word=word)
    train = [*near, row("something else entirely")]
    chosen = replace(context, train=train, primary_metric=metric, tuned_fingerprint="tuned")
    given = FineTunedFewShot(shots=2).answer([row("a question about validation?")], chosen)
    assert given.details["examples"] == examples
    assert [t["examples"] for t in given.details["tried"]] == ["nearest", "diverse", "none"]
    (prompt,) = [answer.prompt for answer in given.answers]
    assert (len(prompt) > 2) == shown and prompt[0].content == "Be brief."


class WantsNoExample(WantsWord):
    """1 for a prompt of a system message and a question."""

    def statistics(self, prediction: Prediction) -> tuple[float, ...]:
        return (float(len(prediction.prompt) == 2),)


def test_fine_tuned_few_shot_needs_weights(context: Context) -> None:
    with pytest.raises(EvaluationError, match="luthier train"):
        FineTunedFewShot().answer([row("test?")], replace(context, tuned_fingerprint=None))


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


def test_some_rows_are_timed_alone(context: Context) -> None:
    rows = [row(f"question {i}") for i in range(6)]
    given = ZeroShot(tune_rows=2).answer(rows, replace(context, alone_rows=3))
    timed = [index for index, answer in enumerate(given.answers) if answer.alone_seconds is not None]
    assert timed == [0, 2, 4]
    assert all(0 < (answer.alone_seconds or 1) < 60 for answer in given.answers)
    few = ZeroShot(tune_rows=0).answer(rows[:2], replace(context, alone_rows=5)).answers
    assert [answer.alone_seconds is not None for answer in few] == [True, True]
    none = ZeroShot(tune_rows=0).answer(rows, context).answers
    assert all(answer.alone_seconds is None for answer in none)


def test_target_scores_are_those_of_plain_forward_passes(context: Context) -> None:
    test = [row("What is the capital of France?", "Paris."), row("Write a letter to the team.", "no")] * 3
    found = score_targets_of(test, [r.prompt for r in test], context)
    for r, (score, rejected) in zip(test, found, strict=True):
        assert rejected is None and score.bytes == len(r.messages[-1].content)
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
    assert score_targets_of(test, [test[0].prompt], cut) == whole and whole[0][0].tokens > 20
    assert cut.template.max_tokens == 16
    room = room_for_answers(context.template, test)
    assert room == room_for_answers(cut.template, test) == (math.ceil(1.25 * whole[0][0].tokens), False)


def test_a_prompt_without_room_names_the_row(context: Context) -> None:
    short = replace(context, loaded=replace(context.loaded, max_tokens=12))
    with pytest.raises(EvaluationError, match=r"row long .*the model's context ends at 12"):
        FewShot(shots=1).answer([row("word " * 20, id="long")], short)


def test_longest_answer_needs_answers(context: Context) -> None:
    assert room_for_answers(context.template, [Conversation((Message("user", "?"),))]) == (0, False)
    assert room_for_answers(context.template, [row("?", "a")]) == (16, False)


def test_a_training_reply_that_repeats_itself_lets_answers_do_so(context: Context) -> None:
    assert room_for_answers(context.template, [row("?", "a"), row("?", "ab " * 200 + "and an end")])[1]


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
