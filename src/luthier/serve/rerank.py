"""/rerank: documents in the order in which they answer a query, by a cross-encoder of retrieval (`rag/reranker.py`).

The wire is that of vLLM, Jina and Cohere. A document's `relevance_score` is the sigmoid of the number that retrieval
orders by, between 0 and 1. A pair that is longer than the model reads is refused, not cut. A field is honored, or
refused.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

from luthier.rag.reranker import CrossEncoder
from luthier.serve.api_error import ApiError
from luthier.serve.embedding_request import MAX_TOKENS, NO_EFFECT
from luthier.serve.fields import NAME_LIMIT, Fields, parse_body
from luthier.serve.ids import new_id
from luthier.serve.own_thread import OwnThread, Tell

MAX_DOCUMENTS = 1000
SHAPES = "an array of strings, or of objects with a string `text`"


@dataclass(frozen=True, slots=True)
class RerankRequest:
    """A request."""

    model: str
    query: str
    documents: tuple[str, ...]
    top_n: int | None
    """How many are told; None: all."""
    return_documents: bool


def parse_rerank(body: bytes) -> RerankRequest:
    """Read and check a body.

    Raises:
        ApiError: 400, naming the field.
    """
    fields = Fields(parse_body(body))
    asked = RerankRequest(
        model=fields.required_text("model", NAME_LIMIT),
        query=fields.required_text("query"),
        documents=_documents(fields),
        top_n=fields.integer("top_n", 1, 2**31),
        return_documents=fields.get("return_documents") is None or fields.flag("return_documents"),
    )
    fields.without_effect(NO_EFFECT)
    fields.finish()
    return asked


def _documents(fields: Fields) -> tuple[str, ...]:
    value = fields.get("documents")
    if not isinstance(value, list) or not value:
        raise fields.wrong("documents", SHAPES)
    if len(value) > MAX_DOCUMENTS:
        raise ApiError(f"'documents' may hold at most {MAX_DOCUMENTS:,}; got {len(value):,}.", param="documents")
    texts = [one["text"] if isinstance(one, dict) and one.keys() == {"text"} else one for one in value]
    if not all(isinstance(text, str) for text in texts):
        raise fields.wrong("documents", SHAPES)
    return tuple(texts)


@dataclass(frozen=True, slots=True)
class Reranking:
    """What is answered."""

    body: dict[str, Any]
    tokens: int


class NonFiniteScores(RuntimeError):
    """The model answered with NaN or infinity."""


class RerankModel:
    """One cross-encoder, computed in a thread of its own."""

    def __init__(self, name: str, model: CrossEncoder) -> None:
        """`name`: what requests call it."""
        self.name, self._model = name, model
        self._longest = model.max_tokens  # loads the weights: whoever asks first shall not wait for them
        self._thread = OwnThread("luthier-rerank")

    def stop(self) -> None:
        """End the thread after the batch that is computed."""
        self._thread.stop()

    async def rerank(self, asked: RerankRequest, deadline_seconds: float) -> Reranking:
        """The documents in order; whoever stops to wait ends the work at the next batch.

        Raises:
            ApiError: 400: a document is too long, or all of them; 504: out of time.
            NonFiniteScores: of some document.
        """
        work = partial(self._rerank, asked)
        return await self._thread.compute(work, deadline_seconds, "Send fewer documents at a time.")

    def _rerank(self, asked: RerankRequest, tell: Tell) -> Reranking:
        pairs = self._model.read([(asked.query, text) for text in asked.documents], cut=False)
        for place, (ids, _) in enumerate(pairs):
            if len(ids) > self._longest:
                raise ApiError(
                    f"{self.name!r} reads {self._longest} tokens of query and document together; with document {place} "
                    f"they are {len(ids)}. Split it.",
                    param="documents",
                    code="context_length_exceeded",
                )
        tokens = sum(len(ids) for ids, _ in pairs)
        if tokens > MAX_TOKENS:
            raise ApiError(f"A request may have {MAX_TOKENS:,} tokens in all; send several.", param="documents")
        scores = self._model.score_read(pairs, tell)
        if not all(map(math.isfinite, scores)):
            raise NonFiniteScores
        order = sorted(range(len(scores)), key=lambda at: -scores[at])[: asked.top_n]
        results = [self._result(asked, at, scores[at]) for at in order]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return Reranking({"id": new_id("rerank"), "model": self.name, "usage": usage, "results": results}, tokens)

    def _result(self, asked: RerankRequest, at: int, score: float) -> dict[str, Any]:
        told = {"index": at, "relevance_score": _sigmoid(score)}
        return {**told, "document": {"text": asked.documents[at]}} if asked.return_documents else told


def _sigmoid(value: float) -> float:
    if value >= 0:
        return 1 / (1 + math.exp(-value))
    return math.exp(value) / (1 + math.exp(value))
