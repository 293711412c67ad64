"""/v1/decisions of a real server, asked by the real `openai` client: probabilities are the model's own."""

import asyncio
import json
import math
from collections.abc import Iterator
from typing import Any

import openai
import pytest
import torch
from openai import OpenAI
from openai.types import decision_create_params
from tests.serving import Tiny, running

from luthier.data.templates import Template, build_template
from luthier.examples import Conversation, Message, Row
from luthier.serve.api_error import ApiError
from luthier.serve.backend import Backend
from luthier.serve.choices import GROUP_TOKENS, Choices, Reading, grouped
from luthier.serve.decision import NO_EFFECT, parse_decision
from luthier.serve.models import ServedModel, SharedBase

PREDICATE: Any = {"type": "predicate", "instructions": "The text is about numbers.", "name": "numbers"}
CHOICE: Any = {
    "type": "choice",
    "instructions": "Which one?",
    "choices": [{"value": "red", "description": "a color"}, {"value": "redder"}, {"value": True}, {"value": "true"}],
}
SCORE: Any = {"type": "score", "instructions": "How long?", "levels": [{"label": "short"}, {"label": "long"}]}


@pytest.fixture(scope="module")
def plain(tiny: Tiny) -> Template:
    """The base's own, which has no place for tools."""
    return build_template(tiny.base, "model")


@pytest.fixture(scope="module")
def client(tiny: Tiny, plain: Template) -> Iterator[OpenAI]:
    shared = SharedBase(tiny.base)
    models = [shared.adapted("tiny-run", tiny.template, tiny.again), shared.base(plain)]
    with running(models) as url, OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def _probability(model: Any, template: Template, words: str, options: list[str]) -> list[float]:
    """By the definition: each option's tokens and its end, one pass for each, no batch and no cache."""
    prompt = template.prompt_ids([Message("user", words)])
    sums = []
    for option in options:
        reply = [*template.text_ids(option), template.end_of_turn_id]
        logits = model(torch.tensor([[*prompt, *reply]])).logits[0, len(prompt) - 1 : -1]
        sums.append(float(torch.log_softmax(logits.double(), -1).gather(1, torch.tensor(reply)[:, None]).sum()))
    weights = [math.exp(one) for one in sums]
    return [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize("name", ["tiny-run", "base"])
def test_probabilities_are_the_models_own(client: OpenAI, tiny: Tiny, plain: Template, name: str) -> None:
    answer = client.decisions.create(model=name, input="one two", questions=[PREDICATE, CHOICE, SCORE])
    model, template = (tiny.loaded.model, tiny.template) if name == "tiny-run" else (tiny.base.model, plain)
    predicate, choice, score = (one for one in answer.answers)
    words = [question.words for question in _asked([PREDICATE, CHOICE, SCORE]).questions]
    with torch.no_grad():
        expected = [
            _probability(model, template, f"one two\n\n{text}", options)
            for text, options in zip(
                words, (["Yes", "No"], ["red", "redder", "true", '"true"'], ["short", "long"]), strict=True
            )
        ]
    assert predicate.type == "predicate" and predicate.name == "numbers"
    assert predicate.probability == pytest.approx(expected[0][0], abs=1e-4)
    assert choice.type == "choice" and choice.name is None
    assert [one.value for one in choice.probabilities] == ["red", "redder", True, "true"]
    assert [one.probability for one in choice.probabilities] == pytest.approx(expected[1], abs=1e-4)
    assert sum(one.probability for one in choice.probabilities) == pytest.approx(1)
    best = max(choice.probabilities, key=lambda one: one.probability)
    assert choice.choice == best.value and choice.confidence == best.probability
    assert score.type == "score" and score.score == pytest.approx(expected[2][1], abs=1e-4)
    assert [(one.label, one.value) for one in score.probabilities] == [("short", 0), ("long", 1)]
    assert answer.model == name and answer.usage.output_tokens == 0
    prompts = [template.prompt_ids([Message("user", f"one two\n\n{text}")]) for text in words]
    replies = ["Yes", "No", "red", "redder", "true", '"true"', "short", "long"]
    scored = sum(len(ids) for ids in prompts) + sum(len(template.text_ids(text)) + 1 for text in replies)
    assert answer.usage.input_tokens == answer.usage.total_tokens == scored


def test_many_questions_are_answered_as_alone_and_in_order(client: OpenAI) -> None:
    questions: list[Any] = [{**PREDICATE, "instructions": f"It is {n}. " * 20, "name": str(n)} for n in range(24)]
    together = client.decisions.create(model="tiny-run", input="three " * 40, questions=questions)
    assert [one.name for one in together.answers] == [str(n) for n in range(24)]
    for n in (0, 11, 23):
        alone = client.decisions.create(model="tiny-run", input="three " * 40, questions=[questions[n]])
        one, other = alone.answers[0], together.answers[n]
        assert one.type == other.type == "predicate" and one.probability == pytest.approx(other.probability, abs=1e-5)


def test_a_chat_and_its_calls_may_be_judged(client: OpenAI) -> None:
    chat: Any = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "input_text", "text": "Look"}, {"type": "input_json", "data": {"a": [1]}}],
        },
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Oslo"}'},
        {"type": "function_call_output", "call_id": "c1", "output": "cold"},
        {"role": "assistant", "content": [{"type": "output_text", "text": "It is cold."}], "phase": "final_answer"},
    ]
    (answer,) = client.decisions.create(model="tiny-run", input=chat, questions=[PREDICATE]).answers
    assert answer.type == "predicate" and 0 < answer.probability < 1
    asked = _asked([PREDICATE], chat)
    assert [message.role for message in asked.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert asked.messages[1].content == 'Look\n{"a": [1]}' and asked.messages[2].tool_calls[0].arguments == {
        "city": "Oslo"
    }
    assert asked.asked(asked.questions[0])[-1].content.startswith("Statement: ")
    with pytest.raises(openai.BadRequestError, match="no place for tool calls") as caught:
        client.decisions.create(model="base", input=chat, questions=[PREDICATE])
    assert caught.value.param == "input"


def _asked(questions: list[Any], given: Any = "one two", **more: Any) -> Any:
    return parse_decision(json.dumps({"model": "m", "input": given, "questions": questions, **more}).encode())


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"questions": []}, "questions"),
        ({"questions": [PREDICATE] * 401}, "questions"),
        ({"questions": [{"type": "yesno", "instructions": "x"}]}, "questions[0].type"),
        ({"questions": [{"type": "predicate"}]}, "questions[0].instructions"),
        ({"questions": [{**PREDICATE, "choices": []}]}, "questions[0].choices"),
        ({"questions": [{**CHOICE, "choices": [{"value": "a"}]}]}, "questions[0].choices"),
        ({"questions": [{**CHOICE, "choices": [{"value": "a"}] * 2}]}, "questions[0].choices"),
        ({"questions": [{**CHOICE, "choices": [{"value": 1}, {"value": 2}]}]}, "questions[0].choices[0].value"),
        ({"questions": [{**CHOICE, "choices": [{"value": " "}, {"value": "a"}]}]}, "questions[0].choices[0].value"),
        ({"questions": [{**SCORE, "levels": [{"label": "a"}] * 256}]}, "questions[0].levels"),
        ({"input": []}, "input"),
        ({"input": 1}, "input"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input[0].content[0].type",
        ),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input[0].call_id"),
        ({"input": [{"type": "custom_tool_call", "call_id": "c", "name": "f", "input": "x"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": "x", "phase": "commentary"}]}, "input[0].phase"),
        ({"temperature": 1}, "temperature"),
    ],
)
def test_what_cannot_be_asked_is_refused_and_named(fields: dict[str, Any], param: str) -> None:
    values = {"model": "m", "input": "x", "questions": [PREDICATE], **fields}
    with pytest.raises(ApiError) as caught:
        parse_decision(json.dumps(values).encode())
    assert caught.value.status == 400 and caught.value.param == param


def test_every_field_of_the_api_is_known() -> None:
    known = {"model", "input", "questions", *NO_EFFECT}
    assert known == set(decision_create_params.DecisionCreateParams.__annotations__)
    assert _asked([PREDICATE], **{name: {"a": 1} for name in NO_EFFECT}) == _asked([PREDICATE])


def test_too_long_an_input_is_refused_not_cut(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.decisions.create(model="base", input="x" * 4000, questions=[PREDICATE])
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError):
        client.decisions.create(model="gpt-6-luna", input="x", questions=[PREDICATE])


def test_groups_hold_what_fits_and_lose_nothing() -> None:
    shared = tuple(range(GROUP_TOKENS // 2))
    asked = [Choices((*shared, n, *(7,) * 99), ((1,), (2,))) for n in range(12)]
    groups = list(grouped(asked))
    assert [one for group in groups for one in group] == asked
    # 2 of the first one's replies, and 102 of each other: what they share is read once for eleven
    assert [len(group) for group in groups] == [11, 1]
    long = [Choices((n,) * (2 * GROUP_TOKENS), ((1,), (2,))) for n in range(2)]
    assert [len(group) for group in grouped(long)] == [1, 1]
    input = tuple(range(2 * GROUP_TOKENS))
    tiny = [Choices((*input, n, 7, 7), ((1,), (2,))) for n in range(400)]
    assert [len(group) for group in grouped(tiny)] == [205, 195], "a long input is read again for each question"


class _Counting(Template):
    """Counts the rows that it is asked for."""

    asked = 0

    def reply_row(self, conversation: Conversation, reply: tuple[Message, ...]) -> Row:
        self.asked += 1
        return super().reply_row(conversation, reply)


@pytest.fixture
def counting(tiny: Tiny, plain: Template) -> _Counting:
    return _Counting(tiny.base.tokenizer, plain.source, stop_ids=tiny.base.stop_ids)


def _many(given: str) -> Any:
    return _asked([{**SCORE, "levels": [{"label": f"level {n}"} for n in range(255)]}] * 2, given)


def test_options_are_refused_at_the_first_that_does_not_fit(tiny: Tiny, counting: _Counting) -> None:
    backend = Backend([ServedModel("base", tiny.base, counting)])
    with pytest.raises(ApiError) as caught:
        asyncio.run(backend.choices("base", _many("x" * 4000)))
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "input")
    assert counting.asked == 1


@pytest.mark.parametrize(("replies", "alike"), [(("b", "a", "b"), True), (("c", "cd", "a"), False)])
def test_options_that_read_alike_are_refused(
    tiny: Tiny, plain: Template, replies: tuple[str, ...], alike: bool
) -> None:
    reading = Reading(ServedModel("base", tiny.base, plain), [Message("user", "x")])
    for text in replies:
        reading.add(text)
    if alike:
        with pytest.raises(ApiError, match="cannot be told apart"):
            reading.choices()
    else:  # a token ends each
        assert len(reading.choices().replies) == len(replies)


def test_chats_are_rendered_between_options_and_who_leaves_ends_the_reading(tiny: Tiny, counting: _Counting) -> None:
    backend = Backend([ServedModel("base", tiny.base, counting)])

    async def scenario() -> tuple[int, int]:
        reading = asyncio.ensure_future(backend.choices("base", _many("one two")))
        while not counting.asked:
            await asyncio.sleep(0)
        await backend.prompt_ids("base", [Message("user", "hello")], ())
        beside = counting.asked
        reading.cancel()
        await backend.prompt_ids("base", [Message("user", "hello")], ())
        left = counting.asked
        await asyncio.sleep(0.05)
        assert counting.asked == left
        return beside, left

    beside, left = asyncio.run(scenario())
    assert beside < 50 and left < 100, "a chat waited for all options of a question"
