"""/v1/embeddings of a real server, asked by the real `openai` client: what retrieval's embedder makes, and refusals."""

import asyncio
import base64
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import torch
from openai import OpenAI
from openai.types import embedding_create_params
from safetensors.torch import load_file, save_file
from tests.serving import running
from tests.small_encoders import POSITIONS, write_encoder

from luthier.errors import ServeError
from luthier.models.catalog import resolve
from luthier.rag.embedder import Embedder
from luthier.serve.api_error import ApiError
from luthier.serve.backend import Backend
from luthier.serve.embedding import body_of
from luthier.serve.embedding_request import MAX_INPUTS, NO_EFFECT, parse_embedding
from luthier.serve.server import parse_encoders
from luthier.serving import open_embedders

TEXTS = ["the bridge", "a river and a city, a long way off", "?", "bridge bridge bridge", "city 12"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder") / "tiny-bert")


@pytest.fixture(scope="module")
def embedder(folder: Path) -> Embedder:
    return Embedder(resolve(str(folder)), torch.device("cpu"))


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[OpenAI]:
    backend = Backend([], embedders=open_embedders(parse_encoders([str(folder)], "--embedder", ""), "cpu"))
    with running([], backend=backend) as url, OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def test_the_vectors_are_those_of_retrieval_in_the_order_of_the_texts(client: OpenAI, embedder: Embedder) -> None:
    answer = client.embeddings.create(model="tiny-bert", input=TEXTS, user="me")
    np.testing.assert_array_equal([one.embedding for one in answer.data], embedder.embed(TEXTS).vectors_ND)
    assert [one.index for one in answer.data] == list(range(len(TEXTS))) and answer.model == "tiny-bert"
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(map(len, embedder.ids_of(TEXTS)))
    for at, text in enumerate(TEXTS):
        (alone,) = client.embeddings.create(model="tiny-bert", input=text).data
        np.testing.assert_allclose(alone.embedding, answer.data[at].embedding, atol=1e-6)


def test_base64_and_numbers_are_the_same_vectors(client: OpenAI) -> None:
    # what the client asks for when nothing is said is base64, which it decodes itself
    unsaid = client.embeddings.create(model="tiny-bert", input=TEXTS)
    numbers = client.embeddings.create(model="tiny-bert", input=TEXTS, encoding_format="float")
    coded: Any = client.embeddings.create(model="tiny-bert", input=TEXTS, encoding_format="base64")
    for one, other, text in zip(unsaid.data, numbers.data, coded.data, strict=True):
        assert one.embedding == other.embedding
        assert np.frombuffer(base64.b64decode(text.embedding), dtype="<f4").tolist() == one.embedding


def test_a_large_answer_is_written_while_others_run() -> None:
    asked = parse_embedding(json.dumps({"model": "m", "input": "a"}).encode())
    vectors_ND = np.random.default_rng(0).standard_normal((1024, 384), dtype=np.float32)

    async def scenario() -> tuple[str, float, float]:
        writing = asyncio.ensure_future(asyncio.to_thread(body_of, vectors_ND, asked, 7))
        started = last = time.monotonic()
        longest = 0.0
        while not writing.done():
            await asyncio.sleep(0)
            now = time.monotonic()
            longest, last = max(longest, now - last), now
        return await writing, longest, last - started

    text, longest, whole = asyncio.run(scenario())
    assert longest < whole / 4, "the event loop stood still while the answer was written"
    body = json.loads(text)
    assert [one["embedding"] for one in body["data"]] == vectors_ND.tolist()
    assert body["usage"] == {"prompt_tokens": 7, "total_tokens": 7}


def test_token_ids_mean_the_text_that_they_were(client: OpenAI, embedder: Embedder) -> None:
    bare = embedder.tokenizer(TEXTS, add_special_tokens=False)["input_ids"]
    of_ids = client.embeddings.create(model="tiny-bert", input=bare)
    of_texts = client.embeddings.create(model="tiny-bert", input=TEXTS)
    assert [one.embedding for one in of_ids.data] == [one.embedding for one in of_texts.data]
    assert of_ids.usage == of_texts.usage
    (single,) = client.embeddings.create(model="tiny-bert", input=bare[1]).data
    np.testing.assert_allclose(single.embedding, of_texts.data[1].embedding, atol=1e-6)


def test_dimensions_are_its_own_or_refused(client: OpenAI) -> None:
    (whole,) = client.embeddings.create(model="tiny-bert", input="a", dimensions=32).data
    assert len(whole.embedding) == 32
    with pytest.raises(openai.BadRequestError, match="not trained to give shorter vectors") as caught:
        client.embeddings.create(model="tiny-bert", input="a", dimensions=16)
    assert (caught.value.param, caught.value.code) == ("dimensions", "unsupported_parameter")


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ("bridge " * POSITIONS, "context_length_exceeded"),
        (["a", ""], None),
        ([[1], []], None),
        ([], "invalid_type"),
        ([["a"]], "invalid_type"),
        ([1, "a"], "invalid_type"),
        ([True], "invalid_type"),
        ([-1], "out_of_range"),
        ([10**6], "out_of_range"),
        (["a"] * (MAX_INPUTS + 1), None),
    ],
)
def test_what_has_no_vector_is_refused(client: OpenAI, given: Any, code: str | None) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model="tiny-bert", input=given)
    assert (caught.value.param, caught.value.code) == ("input", code)
    assert client.embeddings.create(model="tiny-bert", input="a").data


def test_vectors_that_are_no_numbers_are_a_failure_with_its_line_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("luthier.serve").propagate = True
    file = write_encoder(tmp_path / "tiny-bert") / "model.safetensors"
    weights = load_file(file)
    weights["embeddings.LayerNorm.bias"] = torch.full_like(weights["embeddings.LayerNorm.bias"], torch.nan)
    save_file(weights, file, {"format": "pt"})
    backend = Backend([], embedders=open_embedders(parse_encoders([str(file.parent)], "--embedder", ""), "cpu"))
    with running([], backend=backend) as url, pytest.raises(openai.InternalServerError) as caught:
        OpenAI(base_url=url, api_key="none", max_retries=2).embeddings.create(model="tiny-bert", input="a secret")
    told = [line for line in caplog.messages if "failed: NonFiniteVectors in embedding.py" in line]
    assert len(told) == 1  # and not asked again
    assert f"id={caught.value.response.headers['x-request-id']}" in told[0] and "secret" not in caplog.text


def test_every_field_of_the_api_is_known_and_no_other() -> None:
    values = {"model": "m", "input": "a", "dimensions": 3, "encoding_format": "float"}
    assert set(values) | set(NO_EFFECT) == set(embedding_create_params.EmbeddingCreateParams.__annotations__)
    assert parse_embedding(json.dumps(values).encode()).dimensions == 3
    for wrong, param in (
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"dimensions": 0}, "dimensions"),
        ({"input_type": "query"}, "input_type"),
    ):
        with pytest.raises(ApiError) as caught:
            parse_embedding(json.dumps({**values, **wrong}).encode())
        assert caught.value.param == param


def test_an_encoder_is_listed_and_does_not_chat(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny-bert"]
    assert client.models.retrieve("tiny-bert").owned_by == "luthier"
    with pytest.raises(openai.BadRequestError, match="makes vectors of texts") as caught:
        client.chat.completions.create(model="tiny-bert", messages=[{"role": "user", "content": "a"}])
    assert caught.value.param == "model"
    with pytest.raises(openai.NotFoundError, match="This server has: tiny-bert"):
        client.models.retrieve("tiny-bart")
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="text-embedding-3-small", input="a")


def test_two_encoders_of_one_name_are_refused(folder: Path) -> None:
    with pytest.raises(ServeError, match="same name"):
        parse_encoders([str(folder), f"tiny-bert={folder}"], "--embedder", "")
    assert parse_encoders([f"text-embedding-3-small={folder}"], "--embedder", "") == {
        "text-embedding-3-small": str(folder)
    }
    with pytest.raises(ServeError, match="NAME=MODEL"):
        parse_encoders(["=x"], "--embedder", "")
