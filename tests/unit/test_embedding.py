"""Vectors: what an encoder makes of a text, that they are kept, where they are searched, and a second look at pairs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.children import Child
from tests.small_encoders import POSITIONS, write_cross_encoder, write_encoder

from luthier.config import build
from luthier.errors import ModelError, RetrievalError, StorageError
from luthier.models.catalog import resolve
from luthier.models.encoders import encoders
from luthier.rag.dense import Dense, Flat
from luthier.rag.embedder import BATCH_TOKENS, Embedder
from luthier.rag.finder import Found
from luthier.rag.qdrant import Qdrant, connect
from luthier.rag.reranker import CrossEncoder, Reranked
from luthier.rag.retriever import Host, build_retriever, build_retrievers
from luthier.rag.vectors import VectorCache
from luthier.recipe import RetrievalSettings

CPU = torch.device("cpu")
TEXTS = ["the bridge", "a river and a city, a long way off", "?", "", "bridge bridge bridge", "city 12"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder") / "tiny-bert")


@pytest.fixture(scope="module")
def embedder(folder: Path) -> Embedder:
    return Embedder(resolve(str(folder)), CPU)


# the encoder


def test_a_vector_is_the_normalized_mean_of_the_hidden_states(embedder: Embedder) -> None:
    """Computed one text at a time and without padding, as the definition says."""
    found = embedder.embed(TEXTS)
    assert found.vectors_ND.shape == (len(TEXTS), 32) and found.vectors_ND.dtype == np.float32 and found.cut == 0
    for text, vector in zip(TEXTS, found.vectors_ND, strict=True):
        ids = torch.tensor([embedder.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            mean = embedder.model(input_ids=ids).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(vector, (mean / mean.norm()).numpy(), atol=1e-5)


def test_a_model_that_writes_text_is_no_encoder(tiny_model_folder: Path) -> None:
    with pytest.raises(ModelError, match="no encoder"):
        Embedder(resolve(str(tiny_model_folder)), CPU)


def test_neighbors_in_a_batch_change_nothing(embedder: Embedder) -> None:
    many = [f"{'city ' * (n % 50)}{n}" for n in range(BATCH_TOKENS // 20)]
    together = embedder.embed(many).vectors_ND
    for at in (0, 49, 123):
        np.testing.assert_allclose(together[at], embedder.embed([many[at]]).vectors_ND[0], atol=1e-5)


def test_a_long_text_is_cut_with_its_end_token_and_counted(embedder: Embedder) -> None:
    long = "city " * 200
    fits = "city " * (POSITIONS - 2)
    found = embedder.embed([long, fits, "city"])
    assert found.cut == 1
    np.testing.assert_allclose(found.vectors_ND[0], found.vectors_ND[1], atol=1e-6)


def test_a_folder_that_says_less_is_read_less(folder: Path, tmp_path: Path) -> None:
    other = write_encoder(tmp_path / "short")
    (other / "sentence_bert_config.json").write_text('{"max_seq_length": 8}', encoding="utf-8")
    short = Embedder(resolve(str(other)), CPU)
    assert short.max_tokens == 8
    assert short.embed(["city " * 20]).cut == 1
    assert short.fingerprint != Embedder(resolve(str(folder)), CPU).fingerprint


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "1_Pooling/config.json",
            {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True},
            "another pooling",
        ),
        ("1_Pooling/config.json", {"embedding_dimension": 32, "pooling_mode": "cls"}, "another pooling"),
        ("config_sentence_transformers.json", {"prompts": {"query": "query: "}}, "asks for prefixes of texts"),
        ("sentence_bert_config.json", [], "expected a JSON object"),
        ("modules.json", [{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}], "names a part 'Dense'"),
        ("modules.json", {}, "expected a JSON list of objects"),
    ],
)
def test_an_encoder_that_would_be_used_wrongly_is_refused(
    file: str, content: Any, message: str, tmp_path: Path
) -> None:
    odd = write_encoder(tmp_path / "odd")
    (odd / file).parent.mkdir(exist_ok=True)
    (odd / file).write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ModelError, match=message):
        Embedder(resolve(str(odd)), CPU)


def test_the_parts_of_a_folder_are_read_where_it_says(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "parts")
    kinds = ["Transformer", "Pooling", "Normalize"]
    parts = [
        {"type": f"sentence_transformers.models.{kind}", "path": f"{at}_{kind}"} for at, kind in enumerate(kinds, 5)
    ]
    (folder / "modules.json").write_text(json.dumps(parts), encoding="utf-8")
    Embedder(resolve(str(folder)), CPU)
    (folder / "6_Pooling").mkdir()
    (folder / "6_Pooling/config.json").write_text('{"pooling_mode_mean_tokens": false}', encoding="utf-8")
    with pytest.raises(ModelError, match="another pooling"):
        Embedder(resolve(str(folder)), CPU)


def test_an_encoder_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    broken = write_encoder(tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text(encoding="utf-8"))
    (broken / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}), encoding="utf-8")
    with pytest.raises(ModelError, match=r"missing keys in its weights, such as encoder\.layer\.2"):
        Embedder(resolve(str(broken)), CPU).embed(["a"])


# vectors on disk


class Counting(Embedder):
    """An embedder that remembers what it was given."""

    asked: tuple[str, ...] = ()

    def embed(self, texts: Sequence[str], *rest: Any) -> Any:
        self.asked += tuple(texts)
        return super().embed(texts, *rest)


def test_a_text_is_embedded_once_whatever_corpus_holds_it(folder: Path, tmp_path: Path) -> None:
    first = Counting(resolve(str(folder)), CPU)
    got = VectorCache(tmp_path / "v", first).vectors_of([*TEXTS, *TEXTS]).vectors_ND
    assert first.asked == tuple(TEXTS)
    np.testing.assert_array_equal(got[: len(TEXTS)], got[len(TEXTS) :])
    second = Counting(resolve(str(folder)), CPU)
    again = VectorCache(tmp_path / "v", second).vectors_of([TEXTS[4], "new", TEXTS[0]]).vectors_ND
    assert second.asked == ("new",)
    np.testing.assert_array_equal(again[[0, 2]], got[[4, 0]])
    third = VectorCache(tmp_path / "v", Counting(resolve(str(folder)), CPU)).vectors_of(TEXTS).vectors_ND
    assert isinstance(third, np.memmap), "vectors that lie together are not copied into memory"
    np.testing.assert_array_equal(third, got[: len(TEXTS)])


def test_what_a_killed_process_left_half_written_is_cut_off(folder: Path, tmp_path: Path) -> None:
    cache = VectorCache(tmp_path / "v", Embedder(resolve(str(folder)), CPU))
    got = np.array(cache.vectors_of(TEXTS[:3]).vectors_ND)
    with (tmp_path / "v" / "vectors.f32").open("ab") as file:
        file.write(b"\x00" * 77)  # vectors are written first, so only they can be there without a digest
    with (tmp_path / "v" / "digests.bin").open("ab") as file:
        file.write(b"\x01" * 5)
    again = np.array(cache.vectors_of(TEXTS).vectors_ND)
    np.testing.assert_array_equal(again[:3], got)
    np.testing.assert_allclose(again, cache.embedder.embed(TEXTS).vectors_ND, atol=1e-6)


@pytest.mark.slow
def test_two_processes_fill_one_cache(folder: Path, tmp_path: Path) -> None:
    program = (
        "import sys, torch\nfrom pathlib import Path\nfrom luthier.models.catalog import resolve\n"
        "from luthier.rag.embedder import Embedder\nfrom luthier.rag.vectors import VectorCache\n"
        "e = Embedder(resolve(sys.argv[1]), torch.device('cpu'))\n"
        "VectorCache(Path(sys.argv[2]), e).vectors_of([f'city {n % 40}' for n in range(int(sys.argv[3]), 60)])\n"
    )
    children = [Child(program, folder, tmp_path / "v", start) for start in ("0", "20")]
    assert [child.ended(300)[0] for child in children] == [0, 0]
    embedder = Counting(resolve(str(folder)), CPU)
    texts = [f"city {n}" for n in range(40)]
    got = VectorCache(tmp_path / "v", embedder).vectors_of(texts).vectors_ND
    assert embedder.asked == ()
    np.testing.assert_allclose(got, embedder.embed(texts).vectors_ND, atol=1e-6)


class Broken(Embedder):
    """An embedder whose weights are damaged."""

    def _encode(self, ids: list[list[int]]) -> Any:
        return np.full((len(ids), 32), np.nan, dtype=np.float32)


def test_a_vector_that_is_not_finite_is_never_kept(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="not finite"):
        VectorCache(tmp_path / "v", Broken(resolve(str(folder)), CPU)).vectors_of(TEXTS)
    assert VectorCache(tmp_path / "v", Embedder(resolve(str(folder)), CPU)).vectors_of(TEXTS).vectors_ND.shape[0] == 6


# stores


def random_vectors(count: int, seed: int = 0) -> Any:
    made = np.random.default_rng(seed).normal(size=(count, 32)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def test_the_flat_store_finds_the_nearest(embedder: Embedder) -> None:
    vectors, queries = random_vectors(500), random_vectors(7, seed=1)
    found = Flat(vectors).nearest(queries, 5)
    for query, hits in zip(queries, found, strict=True):
        cosines = vectors @ query
        assert [at for at, _ in hits] == np.argsort(-cosines)[:5].tolist()
        np.testing.assert_allclose([score for _, score in hits], np.sort(cosines)[::-1][:5], atol=1e-6)
    assert Flat(vectors[:3]).nearest(queries[:1], 10)[0][0][1] <= 1 + 1e-6
    assert Dense(embedder, Flat(vectors)).find(["city", " ", "river"], 2)[1] == []


def test_a_qdrant_collection_finds_what_the_flat_store_finds() -> None:
    """qdrant-client's local mode: the same calls as to a server, answered in this process."""
    qdrant_client = pytest.importorskip("qdrant_client")
    vectors, queries = random_vectors(300), random_vectors(5, seed=1)
    client = qdrant_client.QdrantClient(":memory:")
    ids = [f"p{n}" for n in range(300)]
    store = Qdrant(client, "c", vectors, ids)
    found, wanted = store.nearest(queries, 6), Flat(vectors).nearest(queries, 6)
    assert [[at for at, _ in one] for one in found] == [[at for at, _ in one] for one in wanted]
    np.testing.assert_allclose(
        [[score for _, score in one] for one in found], [[score for _, score in one] for one in wanted], atol=1e-5
    )
    (point,) = client.retrieve("c", ids=[299])
    assert point.payload == {"passage_id": "p299"}, "texts stay here"


def test_a_whole_collection_is_used_again_and_half_a_one_is_filled() -> None:
    qdrant_client = pytest.importorskip("qdrant_client")
    vectors, ids = random_vectors(300), [f"p{n}" for n in range(300)]
    client = qdrant_client.QdrantClient(":memory:")
    Qdrant(client, "c", vectors, ids)
    Qdrant(client, "c", -vectors, ids)  # would find other passages, had it been sent
    assert Qdrant(client, "c", vectors, ids).nearest(vectors[:1], 1)[0][0][0] == 0
    client.delete("c", points_selector=list(range(100, 300)))
    Qdrant(client, "c", vectors, ids)
    assert client.count("c").count == 300
    with pytest.raises(RetrievalError, match="holds 300 points where 200 passages were sent"):
        Qdrant(client, "c", vectors[:200], ids[:200])


def test_a_server_that_does_not_answer_is_an_error_that_says_so() -> None:
    pytest.importorskip("qdrant_client")
    with pytest.raises(RetrievalError, match=r"does not answer.*leave retrieval\.store out"):
        Qdrant(connect("http://127.0.0.1:9"), "c", random_vectors(2), ["a", "b"])


def test_a_key_is_never_sent_in_the_clear_over_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("qdrant_client")
    monkeypatch.setenv("QDRANT_API_KEY", "secret")
    with pytest.raises(RetrievalError, match="would cross the network unencrypted"):
        connect("http://vectors.example.com:6333")
    connect("http://localhost:6333")


# a second look


class InOrder:
    """Finds all, in their order."""

    def find(self, queries: Sequence[str], count: int) -> list[list[Found]]:
        return [[(at, 1.0) for at in range(4)] for _ in queries]


@pytest.mark.parametrize("labels", [1, 2])
def test_a_cross_encoder_puts_its_pairs_in_order(labels: int, tmp_path: Path) -> None:
    kinds = ["bridge", "river", "city", "7"]
    pairs = [(a, b, float(a == b)) for a in kinds for b in kinds]
    model = CrossEncoder(resolve(str(write_cross_encoder(tmp_path / "c", pairs, labels))), CPU)
    ranked = Reranked(InOrder(), kinds, model).find(["city", "bridge"], 2)
    assert [one[0][0] for one in ranked] == [2, 0] and all(len(one) == 2 for one in ranked)
    assert ranked[0][0][1] > ranked[0][1][1]
    assert len(model.score([("city " * 300, "river " * 300)])) == 1, "pairs that are too long are cut"


def test_an_encoder_is_no_cross_encoder(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="missing keys in its weights, such as classifier"):
        CrossEncoder(resolve(str(folder)), CPU).score([("a", "b")])
    many = write_cross_encoder(tmp_path / "c", [("a", "b", 1.0)], labels=3, steps=0)
    with pytest.raises(ModelError, match="has 3 scores; expected a cross-encoder"):
        CrossEncoder(resolve(str(many)), CPU).score([("a", "b")])


# put together


def settings_of(**values: Any) -> RetrievalSettings:
    return build(RetrievalSettings, values)


def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    rows = [
        {"id": f"s{n}", "text": f"{word} number {n}."} for n, word in enumerate(["bridge", "river", "city", "city"])
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_retrievers_share_passages_and_a_second_start_embeds_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    told: list[tuple[str, int, int]] = []
    host = Host(CPU, on_progress=lambda *what: told.append(what))
    settings = RetrievalSettings(corpus=str(corpus(tmp_path)), embedder=str(folder), top_k=2)
    made = build_retrievers(settings, host)
    assert list(made) == ["bm25", "dense", "hybrid"] and told == [("embedding passages", 4, 4)]
    ((hit, *_),) = made["hybrid"].search(["river"], 3)
    assert (hit.passage.id, hit.passage.source_id) == ("s1", "s1")
    again = build_retrievers(settings, host)
    assert len(told) == 1
    assert {name: one.fingerprint for name, one in made.items()} == {n: one.fingerprint for n, one in again.items()}
    assert list(build_retrievers(RetrievalSettings(corpus=settings.corpus, retriever="bm25"))) == ["bm25"]


def test_vectors_at_a_url_find_what_vectors_in_files_find(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    small_qdrant = pytest.importorskip("tests.small_qdrant")
    base = {"corpus": str(corpus(tmp_path)), "embedder": str(folder), "retriever": "dense"}
    with small_qdrant.served(key="secret") as (url, asked):
        with pytest.raises(RetrievalError, match=r"refused.*the key is read from QDRANT_API_KEY"):
            build_retriever(settings_of(**base, store=url))
        monkeypatch.setenv("QDRANT_API_KEY", "secret")
        there = build_retriever(settings_of(**base, store=url))
        here = build_retriever(settings_of(**base))
        for one, other in zip(there.search(["river 1", "city"], 4), here.search(["river 1", "city"], 4), strict=True):
            assert [hit.passage.id for hit in one] == [hit.passage.id for hit in other]
        assert any(call.startswith("PUT") for call in asked)
        asked.clear()
        build_retriever(settings_of(**base, store=url)).search(["city"], 1)
        assert not any(call.startswith("PUT") for call in asked), "a second start sends nothing"


def test_a_reranker_is_the_last_word(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    # it wants the number that the words do not ask for
    pairs = [("city", f"{w} number {n}.", float(n == 2)) for n, w in enumerate(["bridge", "river", "city", "city"])]
    model = write_cross_encoder(tmp_path / "cross", pairs)
    settings = RetrievalSettings(corpus=str(corpus(tmp_path)), embedder=str(folder), reranker=str(model))
    retriever = build_retriever(settings)
    assert retriever.name == "reranked"
    assert [hit.passage.id for hit in retriever.search(["city"], 1)[0]] == ["s2"]
    plain = RetrievalSettings(corpus=settings.corpus, embedder=str(folder))
    assert build_retriever(plain).fingerprint != retriever.fingerprint


def test_the_fingerprint_follows_what_is_found(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    path = corpus(tmp_path)
    base = {"corpus": str(path), "embedder": str(folder)}
    other = write_encoder(tmp_path / "other", seed=1)
    prints = [
        build_retriever(settings_of(**{**base, **change})).fingerprint
        for change in ({}, {"retriever": "dense"}, {"retriever": "bm25"}, {"chunk_words": 2, "overlap_words": 1})
    ]
    prints.append(build_retriever(settings_of(**{**base, "embedder": str(other)})).fingerprint)
    path.write_text(path.read_text(encoding="utf-8").replace("river", "creek"), encoding="utf-8")
    prints.append(build_retriever(settings_of(**base)).fingerprint)
    assert len(set(prints)) == len(prints)


# the real encoder


@pytest.mark.slow
def test_the_catalogue_encoder_reaches_its_known_recall(shared_data: Path) -> None:
    """0.817 / 0.983 / 0.997 of the right passages among the first 1, 5 and 10, over passages that are not cut."""
    from luthier.data.formats.base import read_examples
    from luthier.evaluation.retrieval import measure_retrieval
    from luthier.examples import Conversation

    (name,) = encoders()
    try:
        resolve(name)
    except ModelError as error:
        pytest.skip(f"{name} cannot be obtained here: {error}")
    folder = shared_data / "rag_qa"
    settings = RetrievalSettings(corpus=str(folder / "corpus.jsonl"), chunk_words=None)
    rows = [row for row in read_examples(folder / "test.jsonl") if isinstance(row, Conversation)]
    found = measure_retrieval(build_retrievers(settings), rows, np.arange(len(rows)), "hybrid")
    recalls = {
        one["name"]: [one["metrics"][f"recall_at_{k}"]["value"] for k in (1, 5, 10)] for one in found["retrievers"]
    }
    assert recalls["dense"] == pytest.approx([0.817, 0.983, 0.997], abs=0.004)
    assert recalls["hybrid"][0] > max(recalls["bm25"][0], recalls["dense"][0])
