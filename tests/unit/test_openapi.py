"""The service's OpenAPI document: made from the code, shipped, valid, and in agreement with what reads by hand."""

import json
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings, strategies as st
from jsonschema import Draft202012Validator
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsNonStreaming as TextParams
from openai.types.decision_create_params import DecisionCreateParams
from openai.types.embedding_create_params import EmbeddingCreateParams
from openapi_spec_validator import validate
from pydantic import BaseModel, ValidationError
from schemathesis import GenerationMode
from schemathesis.openapi import from_dict
from starlette.responses import JSONResponse
from starlette.testclient import TestClient
from tests.conforming import Conforming, generated
from tests.fuzz.sent import is_whole_float

from luthier.evaluation.graders.multi import MAX_GRADERS
from luthier.jobs.service import openapi_text
from luthier.serve.api_error import ApiError
from luthier.serve.bodies import ChatBody, CompletionBody, DecisionBody, EmbeddingBody
from luthier.serve.chat import parse_chat
from luthier.serve.completion import parse_completion
from luthier.serve.decision import parse_decision
from luthier.serve.embedding_request import parse_embedding

ROOT = Path(__file__).resolve().parents[2]
SHAPE = ("missing_required_parameter", "unknown_parameter", "invalid_type", "out_of_range")


def test_the_shipped_document_is_that_of_the_code() -> None:
    published = (ROOT / "docs" / "openapi.json").read_text(encoding="utf-8")
    assert published == openapi_text(), "run: luthier service openapi > docs/openapi.json"


def test_the_document_is_valid_and_tells_of_every_route() -> None:
    document = generated()
    validate(document)
    operations = {(path, method): one for path, methods in document["paths"].items() for method, one in methods.items()}
    assert len(operations) > 40
    for (path, method), one in operations.items():
        (answer,) = (found for status, found in one["responses"].items() if status in ("200", "201"))
        assert answer["content"], path
        assert "security" in one or path in ("/healthz", "/readyz"), path
        assert {"503", "507"} <= one["responses"].keys() or path == "/healthz", f"{path} needs the database"
        if method == "post" and not path.endswith(("/cancel", "/pause", "/resume")):
            assert "requestBody" in one, path
    assert {"409", "429"} <= operations["/v1/fine_tuning/jobs", "post"]["responses"].keys()
    limit = {one["name"]: one["schema"] for one in operations["/v1/files", "get"]["parameters"]}["limit"]
    assert (limit["minimum"], limit["maximum"], limit["default"]) == (0, 10_000, 10_000)
    form = operations["/v1/files", "post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["required"] == ["file", "purpose"] and "expires_after[seconds]" in form["properties"]
    assert not [name for name in document["components"]["schemas"] if "__" in name], "a path of modules for a name"


def test_an_answer_that_the_document_does_not_tell_of_is_noted() -> None:
    def gone(status: int) -> JSONResponse:
        return JSONResponse(ApiError("x", status=status).body(), status)

    app = FastAPI()
    app.add_api_route("/v1/models/{name}", gone, methods=["GET"], response_model=None)
    held = Conforming(app)
    with TestClient(held) as client:
        for status in (404, 418, 500, 507):
            client.get("/v1/models/m", params={"status": status})
    assert held.seen == 4 and [one.split(":")[0] for one in held.wrong] == [
        "GET /v1/models/{name} 418",
        "GET /v1/models/{name} 500",
    ]


@pytest.mark.parametrize(
    ("graders", "allowed"),
    [
        ({"a": {"type": "string_check"}}, True),
        ({"type": "string_check", "name": "a"}, True),
        ({}, False),
        ({"a": "string_check"}, False),
        ({"a": 1}, False),
        ({f"g{number}": {} for number in range(MAX_GRADERS)}, True),
        ({f"g{number}": {} for number in range(MAX_GRADERS + 1)}, False),
    ],
)
def test_what_graders_a_multi_grader_takes_is_told(graders: Any, allowed: bool) -> None:
    kinds = generated()["components"]["schemas"]["ValidateGrader"]["properties"]["grader"]["oneOf"]
    (multi,) = (one for one in kinds if one["properties"]["type"]["const"] == "multi")
    assert Draft202012Validator(multi["properties"]["graders"]).is_valid(graders) == allowed


def test_which_testing_criteria_have_a_threshold_is_told() -> None:
    kinds = generated()["components"]["schemas"]["CreateEval"]["properties"]["testing_criteria"]["items"]["oneOf"]
    told = {one["properties"]["type"]["const"]: one for one in kinds}
    assert {name for name, one in told.items() if "pass_threshold" in one["properties"]} == {
        "text_similarity",
        "python",
        "score_model",
    }
    assert [name for name, one in told.items() if "pass_threshold" in one["required"]] == ["text_similarity"]


@pytest.mark.parametrize(
    ("body", "param", "excused"),
    [
        ({"n": 1.0}, "n", True),
        ({"n": 1}, "n", False),
        ({"n": 1.5}, "n", False),
        ({"n": True}, "n", False),
        ({"n": 1.0, "m": 2}, "m", False),
        ({"n": 1.0}, None, False),
        ({"n": 1.0}, "n.m", False),
        ({"a": [{"n": 1}, {"n": 3.0}]}, "a[1].n", True),
        ({"a": [{"n": 1}, {"n": 3.0}]}, "a.0.n", False),
        ({"a": [1.0]}, "a[1]", False),
        ({"source": {"type": "kind", "n": 2.0}}, "source.kind.n", True),
        ({"source": {"type": "kind", "n": 2.0}}, "source.other.n", False),
        ({"expires_after[seconds]": 3600.0}, "expires_after.seconds", True),
        (b"1.0", "n", False),
    ],
)
def test_only_a_whole_number_with_a_fraction_excuses_a_refusal(body: Any, param: str | None, excused: bool) -> None:
    assert is_whole_float(body, param) == excused


READERS: dict[str, tuple[Callable[[bytes], Any], type[BaseModel], Any]] = {
    "/v1/chat/completions": (parse_chat, ChatBody, ChatParams),
    "/v1/completions": (parse_completion, CompletionBody, TextParams),
    "/v1/decisions": (parse_decision, DecisionBody, DecisionCreateParams),
    "/v1/embeddings": (parse_embedding, EmbeddingBody, EmbeddingCreateParams),
}
RIGHT: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "model": "m",
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "x"}]},
            {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "c", "content": "x"},
        ],
        "tools": [{"type": "function", "function": {"name": "f"}}],
    },
    "/v1/completions": {"model": "m", "prompt": "x"},
    "/v1/decisions": {
        "model": "m",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "x"}]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "x"},
        ],
        "questions": [
            {"type": "predicate", "instructions": "x"},
            {"type": "choice", "instructions": "x", "choices": [{"value": "a"}, {"value": True}]},
            {"type": "score", "instructions": "x", "levels": [{"label": "a"}, {"label": "b"}]},
        ],
    },
    "/v1/embeddings": {"model": "m", "input": "x"},
}


@pytest.mark.parametrize("path", READERS)
def test_what_the_document_allows_is_not_refused_for_its_shape(path: str) -> None:
    parse = READERS[path][0]
    taken = []

    @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(case=from_dict(generated())[path]["POST"].as_strategy(generation_mode=GenerationMode.POSITIVE))
    def ask(case: Any) -> None:
        try:
            parse(json.dumps(case.body).encode())
        except ApiError as error:
            # no content and no calls; and to JSON Schema 1.0 is an integer: both are said in words
            in_words = error.message.endswith(".content' is required.") or is_whole_float(case.body, error.param)
            assert error.code not in SHAPE or in_words, (error.message, case.body)
            assert error.code != "unsupported_parameter" or error.param in ("response_format", "best_of"), error.message
        else:
            taken.append(case)

    ask()
    assert len(taken) > 30


_values: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, False, 0, 1, -1, 1.5, 9, 10**12, "", "x", "auto", "none", "x" * 300, [], {}]
)
_values |= st.sampled_from([["x"], [""], [1], [[1]], [[]], {"1": 2}, {"1": None}, {"x": 1}, {"type": "text"}, ["text"]])
_values |= st.sampled_from([{"type": "json_object"}, {"include_usage": True}, [{"role": "user", "content": "x"}]])


def _places(node: Any) -> list[Any]:
    """All objects within a body."""
    inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return [*([node] if isinstance(node, dict) else []), *(one for part in inner for one in _places(part))]


@pytest.mark.parametrize("path", READERS)
def test_what_is_not_refused_stands_in_the_document(path: str) -> None:
    parse, kind, client = READERS[path]
    names = sorted({*typing.get_type_hints(client), *kind.model_fields, "role", "content", "name", "index", "strict"})
    taken = 0

    @settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(name=st.sampled_from(names), value=_values, place=st.integers(0, 9))
    def ask(name: str, value: Any, place: int) -> None:
        nonlocal taken
        body = json.loads(json.dumps(RIGHT[path]))
        places = _places(body)
        places[place % len(places)][name] = value
        try:
            parse(json.dumps(body).encode())
        except ApiError:
            return
        taken += 1
        try:
            kind.model_validate(body)
        except ValidationError as error:
            pytest.fail(f"it is taken, and the document does not allow it: {body}: {error}")

    ask()
    assert taken > 40
