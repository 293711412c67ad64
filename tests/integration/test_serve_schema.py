"""Answers held to a JSON schema, by the real client over HTTP; the model is random, so nothing is JSON by itself."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import pytest
from llguidance import LLMatcher
from openai import BadRequestError, OpenAI
from tests.serving import Tiny, running

from luthier.serve.constraint import KEPT, Grammars
from luthier.serve.fields import SCHEMA_BYTES
from luthier.serve.work import Held

ASKED: Any = [{"role": "user", "content": "Where does Anna live?"}]
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8, "pattern": "^[a-zé]{1,8}$"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "kind": {"enum": ["cat", "dog"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "age", "kind", "tags"],
    "additionalProperties": False,
}


def held_to(schema: Any) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}


YES_NO = held_to({"enum": ["yes", "no"]})


@pytest.fixture(scope="module")
def client(tiny: Tiny) -> Iterator[OpenAI]:
    with running(tiny.served()) as url, OpenAI(base_url=url, api_key="none", max_retries=0) as found:
        yield found


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("model", ["tiny-run", "base"])
def test_every_whole_answer_fits_the_schema(client: OpenAI, model: str, temperature: float) -> None:
    answer = client.chat.completions.create(
        model=model,
        messages=ASKED,
        n=4,
        seed=1,
        temperature=temperature,
        max_tokens=200,
        response_format=held_to(PERSON),
        logprobs=True,
    )
    whole = [choice for choice in answer.choices if choice.finish_reason == "stop"]
    assert whole
    for choice in whole:
        jsonschema.validate(json.loads(choice.message.content or ""), PERSON)
        assert choice.logprobs and choice.logprobs.content
    if temperature:
        assert len({choice.message.content for choice in answer.choices}) > 1


def test_a_stream_is_the_same_answer(client: OpenAI) -> None:
    asked: Any = {
        "model": "base",
        "messages": ASKED,
        "temperature": 0,
        "max_tokens": 200,
        "response_format": held_to(PERSON),
    }
    whole = client.chat.completions.create(**asked).choices[0].message.content
    chunks = client.chat.completions.create(**asked, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole


def test_an_object_without_a_schema_is_an_object(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="base", messages=ASKED, seed=3, max_tokens=400, response_format={"type": "json_object"}
    )
    text = answer.choices[0].message.content or ""
    assert text.startswith("{")
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)


def test_held_and_free_answers_share_a_batch(client: OpenAI) -> None:
    learned: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Count."}]

    def free(_: int) -> str:
        answer = client.chat.completions.create(model="tiny-run", messages=learned, temperature=0)
        return answer.choices[0].message.content or ""

    def held(seed: int) -> str:
        answer = client.chat.completions.create(
            model="tiny-run",
            messages=ASKED,
            seed=seed,
            max_tokens=200,
            response_format=YES_NO,
        )
        return answer.choices[0].message.content or ""

    with ThreadPoolExecutor(8) as pool:
        frees, helds = pool.map(free, range(4)), pool.map(held, range(8))
        assert len(set(frees)) == 1
        assert set(helds) <= {'"yes"', '"no"'}


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "strnig"}, "Invalid type"),
        ({"not": {"type": "string"}}, "not"),
        ({"$ref": "http://127.0.0.1:9/schema"}, "not present"),
        ({"$ref": "file:///etc/passwd"}, "not present"),
        ({"type": "string", "pattern": "("}, "regex"),
        ({"enum": ["x" * SCHEMA_BYTES]}, "at most"),
        (3, "an object"),
    ],
)
def test_what_answers_cannot_be_held_to_is_refused(client: OpenAI, schema: Any, message: str) -> None:
    with pytest.raises(BadRequestError, match=message):
        client.chat.completions.create(model="base", messages=ASKED, response_format=held_to(schema))


def test_a_schema_and_tools_together_are_refused(client: OpenAI) -> None:
    tool: Any = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    with pytest.raises(BadRequestError, match="cannot call tools"):
        client.chat.completions.create(model="tiny-run", messages=ASKED, tools=[tool], response_format=held_to(PERSON))


def nested(depth: int) -> Any:
    schema: Any = {"type": "integer"}
    for _ in range(depth):
        schema = {"anyOf": [schema, {"type": "object", "properties": {"a": schema}, "additionalProperties": False}]}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "^(a+)+$"},
        {"type": "string", "pattern": "^(([a-z])+.)+[A-Z]([a-z])+$"},
        {"type": "string", "pattern": "^(a?){60}a{60}$"},
        {"type": "array", "minItems": 1000, "maxItems": 100000, "items": {"type": "string"}},
        nested(9),
    ],
)
def test_a_schema_that_is_made_to_cost_much_does_not(client: OpenAI, schema: Any) -> None:
    started = time.perf_counter()
    try:
        client.chat.completions.create(model="base", messages=ASKED, max_tokens=20, response_format=held_to(schema))
    except BadRequestError as error:
        assert "cannot be held" in str(error) or "at most" in str(error)
    assert time.perf_counter() - started < 10
    assert client.models.list().data


def test_compiled_schemas_do_not_pile_up(tiny: Tiny) -> None:
    grammars, (served, *_) = Grammars(), tiny.served()
    for number in range(200):
        grammars.constraint(served, Held(LLMatcher.grammar_from_json_schema({"const": number}), "", ""))
    assert len(grammars._compiled) == KEPT
