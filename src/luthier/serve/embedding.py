"""/v1/embeddings: texts, or their tokens, to vectors, by an encoder of retrieval (`rag/embedder.py`).

The vectors are those that retrieval searches with. What an encoder cannot do is refused: a text that is longer than it
reads is not cut, and a vector of which it was never trained to give a part is not shortened.
"""

import asyncio
import base64
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event
from typing import Any

import numpy as np

from luthier.rag.embedder import Embedder, Vectors
from luthier.serve.api_error import ApiError, deadline_passed, unsupported
from luthier.serve.embedding_request import EmbeddingRequest

MAX_TOKENS = 300_000
"""Of all inputs of a request: OpenAI's own limit."""


@dataclass(frozen=True, slots=True)
class Embeddings:
    """What is answered."""

    vectors_ND: Vectors
    tokens: int
    """Computed, those that begin and end a text included."""

    def body(self, asked: EmbeddingRequest) -> dict[str, Any]:
        """OpenAI's list; base64 is of little-endian float32."""
        rows: list[Any] = self.vectors_ND.tolist()
        if asked.as_base64:
            rows = [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in self.vectors_ND]
        return {
            "object": "list",
            "data": [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)],
            "model": asked.model,
            "usage": {"prompt_tokens": self.tokens, "total_tokens": self.tokens},
        }


class NonFiniteVectors(RuntimeError):
    """The encoder answered with NaN or infinity."""


class _GivenUp(Exception):
    """Nobody waits for the vectors any more."""


class EmbeddingModel:
    """One encoder, computed in a thread of its own."""

    def __init__(self, name: str, embedder: Embedder) -> None:
        """`name`: what requests call it."""
        self.name, self._embedder = name, embedder
        self._dimension = embedder.dimension  # loads the weights: whoever asks first shall not wait for them
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="luthier-embed")

    def stop(self) -> None:
        """End the thread after the batch that is computed."""
        self._thread.shutdown(cancel_futures=True)

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
        given_up = Event()
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(deadline_seconds):
                return await loop.run_in_executor(self._thread, self._embed, asked, given_up)
        except TimeoutError:
            raise deadline_passed(deadline_seconds, "Send fewer texts at a time.") from None
        finally:
            given_up.set()

    def _embed(self, asked: EmbeddingRequest, given_up: Event) -> Embeddings:
        ids = self._ids(asked)
        vectors_ND = self._embedder.embed_ids(ids, _unless(given_up))
        if not np.isfinite(vectors_ND).all():  # base64 would carry a NaN without a word
            raise NonFiniteVectors
        return Embeddings(vectors_ND, sum(map(len, ids)))

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


def _unless(given_up: Event) -> Callable[[int, int], None]:
    def check(_done: int, _all: int) -> None:
        if given_up.is_set():
            raise _GivenUp

    return check
