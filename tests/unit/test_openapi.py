"""The service's OpenAPI document: made from the code, shipped, valid, and in agreement with what reads by hand."""

import json
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsNonStreaming as TextParams
from openai.types.decision_create_params import DecisionCreateParams
from openai.types.embedding_create_params import EmbeddingCreateParams
from openapi_spec_validator import validate
from pydantic import BaseModel, ValidationError
from schemathesis import GenerationMode
from schemathesis.openapi import from_dict
from tests.conforming import generated

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
        if method == "post" and not path.endswith(("/cancel", "/pause", "/resume")):
            assert "requestBody" in one, path
    limit = {one["name"]: one["schema"] for one in operations["/v1/files", "get"]["parameters"]}["limit"]
    assert (limit["minimum"], limit["maximum"], limit["default"]) == (0, 10_000, 10_000)
    form = operations["/v1/files", "post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["required"] == ["file", "purpose"] and "expires_after[seconds]" in form["properties"]
    assert not [name for name in document["components"]["schemas"] if "__" in name], "a path of modules for a name"


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
            in_words = error.message.endswith((".content' is required.", "must be an integer; got a number."))
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
