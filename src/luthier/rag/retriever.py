"""From the settings of `[retrieval]` to something that answers queries with passages.

Which passages there are, how they are searched and where vectors are kept are put together here and nowhere else.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from luthier.config import canonical_hash
from luthier.errors import DataError, ModelError, RecipeError
from luthier.models.catalog import cache_folder, resolve
from luthier.rag.chunking import chunk
from luthier.rag.corpus import read_corpus
from luthier.rag.dense import Dense, Flat, VectorStore
from luthier.rag.embedder import Embedder, Vectors
from luthier.rag.finder import Finder
from luthier.rag.fusion import Fused
from luthier.rag.lexical import RULE, Bm25
from luthier.rag.passages import Hit, Passage
from luthier.rag.qdrant import Qdrant, connect
from luthier.rag.reranker import CrossEncoder, Reranked
from luthier.rag.trained import model_of, record_of
from luthier.rag.vectors import VectorCache
from luthier.recipe import RetrievalSettings

RERANKED, BEFORE = "reranked", "_before"
"""`dense_before` searches with what a run trained its embedder from."""


@dataclass(frozen=True)
class Host:
    """Where models run, and who is told what takes long."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    say: Callable[[str], None] = lambda _text: None
    on_progress: Callable[[str, int, int], None] = lambda _what, _done, _all: None
    """Told (what is being done, how many are done, how many in all)."""


@dataclass(frozen=True)
class Retriever:
    """Passages, and a way to find those that answer a query."""

    name: str
    """`bm25`, `dense`, `hybrid` or `reranked`; with `_before`, what a trained embedder began as."""
    passages: Sequence[Passage]
    finder: Finder
    top_k: int
    """How many passages stand in a prompt, at most."""
    fingerprint: str
    """Changes when what is found may."""
    against: str = ""
    """The retriever that it is compared with, question by question; empty: none."""

    def search(self, queries: Sequence[str], top_k: int) -> list[list[Hit]]:
        """At most `top_k` passages for each query, the best first; fewer where fewer have anything to do with it.

        Raises:
            RetrievalError: the server that holds the vectors does not answer.
        """
        found = self.finder.find(queries, top_k)
        return [[Hit(self.passages[at], score) for at, score in of_query] for of_query in found]


def build_retriever(settings: RetrievalSettings, host: Host | None = None) -> Retriever:
    """The retriever that the settings name; the corpus is read, and what was never embedded before is embedded.

    Raises:
        RecipeError: the settings contradict each other.
        DataError: the corpus cannot be read; carries file and line.
        ModelError: the embedder or reranker cannot be had or used.
        RetrievalError: the server that holds the vectors does not answer.
        StorageError: vectors cannot be kept.
    """
    return build_retrievers(settings, host)[used_name(settings)]


def used_name(settings: RetrievalSettings) -> str:
    """The name of the retriever that systems use."""
    return RERANKED if settings.reranker else settings.retriever


def build_retrievers(settings: RetrievalSettings, host: Host | None = None) -> Mapping[str, Retriever]:
    """The retriever that the settings name and every simpler one that it is made of or costs nothing, to compare.

    Arguments and errors are those of `build_retriever`.
    """
    host = host or Host()
    passages = read_passages(settings, host.say)
    texts = [passage.titled for passage in passages]
    corpus = canonical_hash([[passage.id, passage.title, passage.text] for passage in passages])
    finders: dict[str, Finder] = {"bm25": Bm25(texts)}
    keys, against = {"bm25": canonical_hash([corpus, "bm25", RULE])}, dict[str, str]()

    def add_dense(embedder: Embedder, after: str) -> None:
        """Search by vectors of this embedder, alone and beside words; `after`: what is added to the names."""
        finders["dense" + after] = _dense(settings, embedder, passages, corpus, host)
        keys["dense" + after] = canonical_hash([corpus, embedder.fingerprint, settings.store])
        if settings.retriever == "hybrid":
            finders["hybrid" + after] = Fused([finders["bm25"], finders["dense" + after]])
            keys["hybrid" + after] = canonical_hash([keys["bm25"], keys["dense" + after]])

    if settings.retriever != "bm25":
        name = model_of(settings.embedder, "embedder")
        if (before := _base_of(name, host)) is not None:
            add_dense(before, BEFORE)
            against |= {"dense": "dense" + BEFORE, "hybrid": "hybrid" + BEFORE}
        add_dense(Embedder(resolve(name, say=host.say), host.device), "")
    if settings.reranker:
        model = CrossEncoder(resolve(model_of(settings.reranker, "reranker"), say=host.say), host.device)
        finders[RERANKED] = Reranked(finders[settings.retriever], texts, model)
        keys[RERANKED] = canonical_hash([keys[settings.retriever], model.fingerprint])
        against[RERANKED] = settings.retriever
    return {
        name: Retriever(name, passages, finder, settings.top_k, keys[name], against.get(name, ""))
        for name, finder in finders.items()
    }


def _base_of(name: str, host: Host) -> Embedder | None:
    """What a run trained its embedder from, to compare; None where it is no run's, or its base cannot be had."""
    base = record_of(Path(name)).get("model", {})
    if not base:
        return None
    try:
        files = resolve(base["name"], say=host.say)
    except ModelError as error:
        host.say(f"what {name} was trained from is not compared with it: {error}")
        return None
    if files.fingerprint != base["fingerprint"]:
        host.say(f"what {name} was trained from is not compared with it: {base['name']} is another model than it was")
        return None
    return Embedder(files, host.device)


def read_passages(settings: RetrievalSettings, say: Callable[[str], None] = lambda _text: None) -> list[Passage]:
    """The corpus, cut into passages.

    Raises:
        RecipeError: passages would repeat more than they hold.
        DataError: the corpus cannot be read, or a passage would be called like another source.
    """
    size, overlap = settings.chunk_words, settings.overlap_words
    if size is not None and overlap >= size:
        raise RecipeError(
            f"retrieval.overlap_words = {overlap}: expected less than retrieval.chunk_words, which is {size}"
        )
    passages = [piece for source in read_corpus(Path(settings.corpus), say) for piece in chunk(source, size, overlap)]
    _require_told_apart(passages, settings.corpus)
    return passages


def _require_told_apart(passages: Sequence[Passage], corpus: str) -> None:
    """Check that an id means one thing; those of sources differ already, and a passage's may be that of a source."""
    sources = {passage.source_id for passage in passages}
    for passage in passages:
        if passage.id != passage.source_id and passage.id in sources:
            raise DataError(
                f"the source {passage.source_id!r} was cut, one of its passages is {passage.id!r}, and so is another "
                "source; ids tell passages apart: call that source otherwise",
                corpus,
            )


def _dense(
    settings: RetrievalSettings, embedder: Embedder, passages: Sequence[Passage], corpus: str, host: Host
) -> Dense:
    cache = VectorCache(cache_folder() / "vectors" / embedder.fingerprint[:16], embedder)
    texts = [passage.text for passage in passages]  # a title helps words, and hurt vectors (benchmarks/retrieval.py)
    embedded = cache.vectors_of(texts, lambda done, total: host.on_progress("embedding passages", done, total))
    if embedded.cut:
        host.say(
            f"{embedded.cut:,} of {len(passages):,} passages are longer than the {embedder.max_tokens} tokens that "
            f"{settings.embedder} reads; what stands behind is found by its words alone. Lower retrieval.chunk_words"
        )
    return Dense(embedder, _store(settings, embedder, embedded.vectors_ND, passages, corpus))


def _store(
    settings: RetrievalSettings, embedder: Embedder, vectors_ND: Vectors, passages: Sequence[Passage], corpus: str
) -> VectorStore:
    if not settings.store:
        return Flat(vectors_ND)
    collection = f"luthier-{canonical_hash([corpus, embedder.fingerprint])[:24]}"
    return Qdrant(connect(settings.store), collection, vectors_ND, [passage.id for passage in passages])
