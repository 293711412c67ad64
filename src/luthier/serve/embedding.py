"""/v1/embeddings: texts, or their tokens, to vectors, by an encoder of retrieval (`rag/embedder.py`).

The vectors are those that retrieval searches with. What an encoder cannot do is refused: a text that is longer than it
reads is not cut, and a vector of which it was never trained to give a part is not shortened.
"""

import base64
import json
from dataclasses import dataclass
from functools import partial

import numpy as np

from luthier.rag.embedder import Embedder, Vectors
from luthier.serve.api_error import ApiError, unsupported
from luthier.serve.embedding_request import MAX_TOKENS, EmbeddingRequest
from luthier.serve.own_thread import OwnThread, Tell


@dataclass(frozen=True, slots=True)
class Embeddings:
    """What is answered."""

    body: str
    tokens: int
    """Computed, those that begin and end a text included."""


def body_of(vectors_ND: Vectors, asked: EmbeddingRequest, tokens: int) -> str:
    """OpenAI's list as JSON; base64 is of little-endian float32.

    It is written a vector at a time: no other thread runs while Python's encoder writes one value, however large.
    """
    data = ",".join(
        json.dumps(
            {"object": "embedding", "index": i, "embedding": _coded(row_D) if asked.as_base64 else row_D.tolist()}
        )
        for i, row_D in enumerate(vectors_ND)
    )
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    rest = json.dumps({"object": "list", "model": asked.model, "usage": usage})
    return f'{rest[:-1]}, "data": [{data}]}}'


def _coded(row_D: Vectors) -> str:
    return base64.b64encode(row_D.astype("<f4").tobytes()).decode()


class NonFiniteVectors(RuntimeError):
    """The encoder answered with NaN or infinity."""


class EmbeddingModel:
    """One encoder, computed in a thread of its own."""

    def __init__(self, name: str, embedder: Embedder) -> None:
        """`name`: what requests call it."""
        self.name, self._embedder = name, embedder
        self._dimension = embedder.dimension  # loads the weights: whoever asks first shall not wait for them
        self._thread = OwnThread("luthier-embed")

    def stop(self) -> None:
        """End the thread after the batch that is computed."""
        self._thread.stop()

    async def embed(self, asked: EmbeddingRequest, deadline_seconds: float) -> Embeddings:
        """The vectors of a request; whoever stops to wait ends the work at the next batch.

        Raises:
            ApiError: 400: an input is too long, or all of them, or the model has no such dimensions; 504: out of time.
            NonFiniteVectors: of some input.
        """
        if asked.dimensions not in (None, self._dimension):
            raise unsupported(
                "dimensions",
                f"{self.name!r} was not trained to give shorter vectors; its own have {self._dimension} numbers",
            )
        work = partial(self._embed, asked)
        return await self._thread.compute(work, deadline_seconds, "Send fewer texts at a time.")

    def _embed(self, asked: EmbeddingRequest, tell: Tell) -> Embeddings:
        ids = self._ids(asked)
        vectors_ND = self._embedder.embed_ids(ids, tell)
        if not np.isfinite(vectors_ND).all():  # base64 would carry a NaN without a word
            raise NonFiniteVectors
        tokens = sum(map(len, ids))
        return Embeddings(body_of(vectors_ND, asked, tokens), tokens)

    def _ids(self, asked: EmbeddingRequest) -> list[list[int]]:
        texts = iter(self._embedder.ids_of([one for one in asked.inputs if isinstance(one, str)]))
        ids = [next(texts) if isinstance(one, str) else self._given(one) for one in asked.inputs]
        most = self._embedder.max_tokens
        for place, one in enumerate(ids):
            if len(one) > most:
                raise ApiError(
                    f"{self.name!r} reads {most} tokens; input {place} has {len(one)}. Split it.",
                    param="input",
                    code="context_length_exceeded",
                )
        if sum(map(len, ids)) > MAX_TOKENS:
            raise ApiError(f"A request may have {MAX_TOKENS:,} tokens in all; send several.", param="input")
        return ids

    def _given(self, ids: tuple[int, ...]) -> list[int]:
        vocabulary = len(self._embedder.tokenizer)
        if not all(0 <= one < vocabulary for one in ids):
            raise ApiError(f"Token ids must be between 0 and {vocabulary - 1}.", param="input", code="out_of_range")
        return self._embedder.marked(ids)
