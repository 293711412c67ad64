"""Retrieval by itself: how often the right passage is found, what titles are good for, and how long all of it takes.

Questions and corpus are those of `rag_qa` (300 test questions of XQuAD, 773 paragraphs of Wikipedia; `--data` names the
folder). Without it only times are taken, over passages of random words and random vectors, since time does not depend
on what they say. Exits with 1 where vectors over whole passages miss the recall that is known of this encoder on these
questions (0.817, 0.983 and 0.997 of the first 1, 5 and 10), or a second start embeds anything.

    python -m benchmarks.retrieval [--data FOLDER] [--sizes 20000 100000]
"""

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks._rows import WORDS
from luthier.data.formats.base import read_examples
from luthier.evaluation.retrieval import measure_retrieval, table
from luthier.examples import Conversation
from luthier.models.catalog import cache_folder, resolve
from luthier.rag.dense import Dense, Flat
from luthier.rag.embedder import Embedder
from luthier.rag.finder import Finder
from luthier.rag.fusion import fuse
from luthier.rag.lexical import Bm25
from luthier.rag.passages import Passage
from luthier.rag.retriever import Host, Retriever, build_retrievers, read_passages
from luthier.rag.vectors import VectorCache
from luthier.recipe import RetrievalSettings

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "rag_qa"
KNOWN = {"recall_at_1": 0.817, "recall_at_5": 0.983, "recall_at_10": 0.997}
"""Of the encoder all-MiniLM-L6-v2 on the test questions, passages whole, titles left out."""
TOLERANCE = 0.004
"""One question of 300 and the rounding: two passages that are nearly as near may change places."""
QUERIES = 200
PASSAGE_WORDS = 80


def questions(path: Path) -> list[Conversation]:
    return [row for row in read_examples(path) if isinstance(row, Conversation)]


def quality(data: Path) -> bool:
    """The three retrievers on the test questions, whole passages and cut ones; whether the known values are reached."""
    rows, reached = questions(data / "test.jsonl"), True
    for words in (None, 160):
        settings = RetrievalSettings(corpus=str(data / "corpus.jsonl"), chunk_words=words)
        retrievers = build_retrievers(settings, Host(say=print))
        found = measure_retrieval(retrievers, rows, np.arange(len(rows)), "hybrid")
        print(f"chunk_words = {'false' if words is None else words}: {table(found)}\n")
        if words is None:
            dense = next(one for one in found["retrievers"] if one["name"] == "dense")["metrics"]
            reached = all(abs(dense[name]["value"] - known) <= TOLERANCE for name, known in KNOWN.items())
    return reached


def titles(data: Path) -> None:
    """Titles before texts or not, on the training questions: what the default was chosen on."""
    rows = questions(data / "train.jsonl")
    passages = read_passages(RetrievalSettings(corpus=str(data / "corpus.jsonl")))
    embedder = Embedder(resolve(RetrievalSettings(corpus="-").embedder), torch.device("cpu"))
    cache = VectorCache(cache_folder() / "vectors" / embedder.fingerprint[:16], embedder)
    print(f"titles, {len(rows)} training questions     recall@1  recall@5")
    for name, texts in (("text", [p.text for p in passages]), ("title and text", [p.titled for p in passages])):
        finders: dict[str, Finder] = {
            "bm25": Bm25(texts),
            "dense": Dense(embedder, Flat(cache.vectors_of(texts).vectors_ND)),
        }
        for kind, finder in finders.items():
            retrievers = {kind: Retriever(kind, passages, finder, 5, "")}
            (found,) = measure_retrieval(retrievers, rows, np.arange(len(rows)), kind)["retrievers"]
            recalls = [found["metrics"][f"recall_at_{k}"]["value"] for k in (1, 5)]
            print(f"  {kind:6} over {name:16}           {recalls[0]:8.3f}  {recalls[1]:8.3f}")
    print()


class Told:
    """Remembers how many passages were embedded."""

    done = 0

    def __call__(self, _what: str, done: int, _total: int) -> None:
        self.done = done


def starts(data: Path) -> bool:
    """Seconds of a first start, which embeds every passage, and of a second; whether that one embeds nothing."""
    seconds, embedded = [], []
    kept = os.environ.get("LUTHIER_CACHE")
    files = resolve(RetrievalSettings(corpus="-").embedder)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LUTHIER_CACHE"] = folder
        settings = RetrievalSettings(corpus=str(data / "corpus.jsonl"), embedder=str(files.folder))
        for _ in range(2):
            told = Told()
            host = Host(on_progress=told)
            start = time.perf_counter()
            passages = len(build_retrievers(settings, host)["hybrid"].passages)
            seconds.append(time.perf_counter() - start)
            embedded.append(told.done)
    if kept is None:
        del os.environ["LUTHIER_CACHE"]
    else:
        os.environ["LUTHIER_CACHE"] = kept
    for name, took, count in zip(("first", "second"), seconds, embedded, strict=True):
        print(f"{name} start: {took:6.1f} s, {count} of {passages} passages embedded")
    print()
    return embedded[1] == 0


def search(size: int) -> None:
    """Milliseconds a query over `size` passages, searched one question at a time as a server would."""
    rng = random.Random(0)
    vocabulary = [f"{a}{b}{n}" for a in WORDS for b in WORDS for n in range(60)]
    texts = [" ".join(rng.choices(vocabulary, k=PASSAGE_WORDS)) for _ in range(size)]
    queries = [" ".join(rng.choices(vocabulary, k=10)) for _ in range(QUERIES)]
    vectors = np.random.default_rng(0).normal(size=(size + QUERIES, 384)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    flat, index = Flat(vectors[:size]), Bm25(texts)
    start = time.perf_counter()
    index.find(queries[:1], 10)
    build = time.perf_counter() - start
    start = time.perf_counter()
    lexical = [index.find([query], 100)[0] for query in queries]
    by_words = time.perf_counter() - start
    start = time.perf_counter()
    dense = [flat.nearest(query[None], 100)[0] for query in vectors[size:]]
    by_vectors = time.perf_counter() - start
    start = time.perf_counter()
    for both in zip(lexical, dense, strict=True):
        fuse(both)
    fusing = time.perf_counter() - start
    each = [f"{1000 * seconds / QUERIES:7.2f}" for seconds in (by_words, by_vectors, fusing)]
    print(f"{size:>9,} passages {build:9.1f} s {each[0]:>10} ms {each[1]:>10} ms {each[2]:>10} ms")


def embed_query(passage: Passage) -> None:
    """Milliseconds to embed one question."""
    embedder = Embedder(resolve(RetrievalSettings(corpus="-").embedder), torch.device("cpu"))
    embedder.embed([passage.text])
    start = time.perf_counter()
    for number in range(20):
        embedder.embed([f"In which year was bridge number {number} opened?"])
    print(f"\none question embedded in {1000 * (time.perf_counter() - start) / 20:.1f} ms")


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.retrieval", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of rag_qa")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[20_000, 100_000], help="passages of the timed searches"
    )
    args = parser.parse_args(argv)
    is_right = True
    if args.data.is_dir():
        is_right = quality(args.data)
        titles(args.data)
        is_right = starts(args.data) and is_right
    else:
        print(f"no questions at {args.data}: only times are taken\n")
    print("searched, 100 results each   bm25 built          bm25         dense          fused")
    for size in args.sizes:
        search(size)
    embed_query(Passage("warm", "A bridge over a river."))
    return int(not is_right)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
