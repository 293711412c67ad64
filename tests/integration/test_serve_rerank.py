"""/rerank of a real server: what retrieval's reranker orders, in the wire of vLLM, Jina and Cohere, and refusals."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from tests.serving import running
from tests.small_encoders import POSITIONS, write_cross_encoder, write_encoder

from luthier.models.catalog import resolve
from luthier.rag.reranker import CrossEncoder
from luthier.serve.backend import Backend
from luthier.serve.server import parse_encoders
from luthier.serving import open_embedders, open_rerankers

QUERY, DOCUMENTS = "the bridge?", ["a river", "bridge 12", "city, city", "the bridge of the city"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pairs = [(QUERY, "a bridge", 1.0), (QUERY, "a river", 0.0), (QUERY, "city", 0.0)]
    return write_cross_encoder(tmp_path_factory.mktemp("cross") / "tiny-cross", pairs, steps=20)


@pytest.fixture(scope="module")
def client(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    encoder = write_encoder(tmp_path_factory.mktemp("encoder") / "tiny-bert")
    rerankers = open_rerankers(parse_encoders([str(folder)], "--reranker", ""), "cpu")
    embedders = open_embedders({"tiny-bert": str(encoder)}, "cpu")
    with (
        running([], backend=Backend([], embedders=embedders, rerankers=rerankers)) as url,
        httpx.Client(base_url=url.removesuffix("/v1"), timeout=60) as client,
    ):
        yield client


def ask(client: httpx.Client, path: str = "/rerank", **more: Any) -> httpx.Response:
    return client.post(path, json={"model": "tiny-cross", "query": QUERY, "documents": DOCUMENTS, **more})


def test_the_order_and_the_scores_are_those_of_retrieval(client: httpx.Client, folder: Path) -> None:
    cross = CrossEncoder(resolve(str(folder)), torch.device("cpu"))
    wanted = [1 / (1 + math.exp(-score)) for score in cross.score([(QUERY, text) for text in DOCUMENTS])]
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        body = ask(client, path).json()
        told = {one["index"]: one["relevance_score"] for one in body["results"]}
        assert [told[at] for at in range(4)] == pytest.approx(wanted, abs=1e-9)
        scores = [one["relevance_score"] for one in body["results"]]
        assert scores == sorted(scores, reverse=True) and body["model"] == "tiny-cross"
        assert all(one["document"]["text"] == DOCUMENTS[one["index"]] for one in body["results"])
        assert body["usage"]["total_tokens"] == sum(len(ids) for ids, _ in cross.read([(QUERY, t) for t in DOCUMENTS]))


def test_only_the_first_are_told_and_documents_may_be_objects(client: httpx.Client) -> None:
    whole = ask(client).json()["results"]
    some = ask(client, top_n=2, return_documents=False, documents=[{"text": text} for text in DOCUMENTS]).json()
    assert some["results"] == [{k: one[k] for k in ("index", "relevance_score")} for one in whole[:2]]


@pytest.mark.parametrize(
    ("more", "param", "status"),
    [
        ({"documents": []}, "documents", 400),
        ({"documents": ["a", 1]}, "documents", 400),
        ({"documents": [{"text": "a", "title": "b"}]}, "documents", 400),
        ({"documents": ["a"] * 1001}, "documents", 400),
        ({"documents": ["a " * POSITIONS]}, "documents", 400),
        ({"query": None}, "query", 400),
        ({"top_n": 0}, "top_n", 400),
        ({"rank_fields": ["a"]}, "rank_fields", 400),
        ({"model": "tiny-bert"}, "model", 400),
        ({"model": "nobody"}, "model", 404),
    ],
)
def test_what_cannot_be_done_is_refused(client: httpx.Client, more: Any, param: str, status: int) -> None:
    answer = ask(client, **more)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text


def test_a_reranker_makes_no_vectors_and_writes_no_words(client: httpx.Client) -> None:
    answer = client.post("/v1/embeddings", json={"model": "tiny-cross", "input": "a"})
    assert answer.status_code == 400 and "/rerank" in json.dumps(answer.json())
    chat = {"model": "tiny-cross", "messages": [{"role": "user", "content": "a"}]}
    assert client.post("/v1/chat/completions", json=chat).status_code == 400
    assert "tiny-cross" in [one["id"] for one in client.get("/v1/models").json()["data"]]
