"""Vectors in a served database: a Qdrant server, by its URL, through `qdrant-client` (the extra `qdrant`).

A collection holds the vectors of one corpus under one embedder, named by a digest of both, so another corpus never
finds the wrong one, and a second start uploads nothing. Vectors and ids go to the server; texts stay here. A server
that wants a key gets what the environment variable QDRANT_API_KEY holds.
"""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from luthier.errors import RetrievalError
from luthier.rag.embedder import Vectors
from luthier.rag.finder import Found

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

KEY_VARIABLE = "QDRANT_API_KEY"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
TIMEOUT_SECONDS = 60
BATCH = 256
"""Points sent at once."""


class Qdrant:
    """The vectors of one corpus in a collection of a server."""

    def __init__(self, client: "QdrantClient", collection: str, vectors_ND: Vectors, ids: Sequence[str]) -> None:
        """Make and fill the collection, unless it is there and whole.

        Args:
            client: connected, or a local one.
            collection: its name, which no other corpus has.
            vectors_ND: a vector of length 1 for each passage.
            ids: of the passages, kept beside the vectors for people who look.

        Raises:
            RetrievalError: the server does not answer or refuses.
        """
        self._client, self._collection = client, collection
        with _told(collection):
            if not self._is_whole(len(ids)):
                self._fill(vectors_ND, ids)
            if not self._is_whole(len(ids)):
                held = client.count(collection, exact=True).count
                raise RetrievalError(
                    f"the collection {collection} holds {held} points where {len(ids)} passages were sent; something "
                    "else writes into it: remove it on the server and run again"
                )

    def _is_whole(self, size: int) -> bool:
        there = self._client.collection_exists(self._collection)
        return there and self._client.count(self._collection, exact=True).count == size

    def _fill(self, vectors_ND: Vectors, ids: Sequence[str]) -> None:
        from qdrant_client import models

        if not self._client.collection_exists(self._collection):
            parameters = models.VectorParams(size=vectors_ND.shape[1], distance=models.Distance.COSINE)
            self._client.create_collection(self._collection, vectors_config=parameters)
        for start in range(0, len(ids), BATCH):
            some = ids[start : start + BATCH]
            points = models.Batch(
                ids=list(range(start, start + len(some))),
                vectors=vectors_ND[start : start + len(some)].tolist(),
                payloads=[{"passage_id": one} for one in some],
            )
            self._client.upsert(self._collection, points=points, wait=True)

    def nearest(self, queries_QD: Vectors, count: int) -> list[list[Found]]:
        """At most `count` places for each query; a server's index may miss one that the embedded store would find.

        Raises:
            RetrievalError: the server does not answer or refuses.
        """
        from qdrant_client import models

        found: list[list[Found]] = []
        with _told(self._collection):
            for start in range(0, len(queries_QD), BATCH):
                asked = [models.QueryRequest(query=q, limit=count) for q in queries_QD[start : start + BATCH].tolist()]
                for answer in self._client.query_batch_points(self._collection, requests=asked):
                    found.append([(int(point.id), float(point.score)) for point in answer.points])
        return found


def connect(url: str) -> "QdrantClient":
    """A client of the server at `url`; nothing is sent yet.

    Raises:
        RetrievalError: qdrant-client is not installed, or a key would be sent in the clear.
    """
    try:
        from qdrant_client import QdrantClient
    except ModuleNotFoundError:
        raise RetrievalError(
            f"retrieval.store = {url!r} is a server of vectors, for which qdrant-client is needed: "
            "pip install 'luthier[qdrant]'; or leave retrieval.store out, and vectors are kept in files"
        ) from None
    key = os.environ.get(KEY_VARIABLE) or None
    address = urlsplit(url)
    if key is not None and address.scheme == "http" and address.hostname not in LOOPBACK:
        raise RetrievalError(
            f"retrieval.store = {url!r}: the key in {KEY_VARIABLE} would cross the network unencrypted; use https, or "
            f"unset {KEY_VARIABLE} if the server wants no key"
        )
    with warnings.catch_warnings():  # the client warns of a key over http, which is refused above but for this machine
        warnings.filterwarnings("ignore", message="Api key is used with an insecure connection")
        return QdrantClient(url=url, api_key=key, timeout=TIMEOUT_SECONDS, check_compatibility=False)


@contextmanager
def _told(collection: str) -> Iterator[None]:
    from qdrant_client.http.exceptions import ApiException, UnexpectedResponse

    try:
        yield
    except UnexpectedResponse as error:
        told = " ".join(str(error).split())
        hint = f"; the key is read from {KEY_VARIABLE}" if error.status_code in (401, 403) else ""
        raise RetrievalError(
            f"the server of retrieval.store refused the collection {collection}: {told}{hint}"
        ) from None
    except ApiException as error:
        raise RetrievalError(
            f"the server of retrieval.store does not answer: {error}. Start it, correct the URL, or leave "
            "retrieval.store out, and vectors are kept in files"
        ) from None
