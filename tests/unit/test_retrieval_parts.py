"""The parts of retrieval without a model: corpus, chunks, words, fusion, prompt, and how right passages are counted."""

import itertools
import json
import time
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from luthier.errors import DataError, EvaluationError, RecipeError
from luthier.evaluation.retrieval import judged_rows, measure_retrieval, require_gold, score
from luthier.examples import Conversation, Message, Preference
from luthier.rag.chunking import chunk
from luthier.rag.corpus import read_corpus
from luthier.rag.finder import Found
from luthier.rag.fusion import fuse
from luthier.rag.lexical import Bm25, words
from luthier.rag.passages import Hit, Passage, Source
from luthier.rag.prompt import last_question, with_passages
from luthier.rag.retriever import Retriever, read_passages
from luthier.recipe import RetrievalSettings

WriteJsonl = Callable[[str, list[dict[str, Any]]], Path]


# corpus


def test_rows_files_and_folders_become_sources(tmp_path: Path, write_jsonl: WriteJsonl) -> None:
    path = write_jsonl("facts.jsonl", [{"id": 7, "title": "Bridges", "text": "Long.", "url": "x"}, {"text": "Short."}])
    assert [(s.id, s.title, s.text) for s in read_corpus(path)] == [
        ("7", "Bridges", "Long."),
        ("facts.jsonl:2", "", "Short."),
    ]
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "guide.md").write_text("intro\n# The guide \ntext", encoding="utf-8")
    (tmp_path / "deep" / "notes.txt").write_text("\ufeffsome notes", encoding="utf-8")
    (tmp_path / "deep" / "photo.png").write_bytes(b"\x89PNG")
    (tmp_path / ".hidden.txt").write_bytes(b"\xff")
    (tmp_path / "table.csv").write_text("id,text\na,from a table\n", encoding="utf-8")
    said: list[str] = []
    found = list(read_corpus(tmp_path, said.append))
    assert [s.id for s in found] == ["deep/guide.md", "deep/notes.txt", "7", "facts.jsonl:2", "a"]
    assert [s.title for s in found[:2]] == ["The guide", "notes"] and found[1].text == "some notes"
    assert len(said) == 1 and "1 files" in said[0] and ".png" in said[0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "a"}, {"body": "b"}], "line 2: 'text' is missing; the row has 'body'"),
        ([{"text": "a"}, {"text": " \n"}], "line 2: the text is empty"),
        ([{"text": 5}], "line 1: 'text' is a number"),
        ([{"id": "x", "text": "a"}, {"id": "x", "text": "b"}], "line 2: the id 'x' is also that of .*line 1"),
        ([{"text": "a", "title": ["b"]}], "line 1: 'title' is a list"),
    ],
)
def test_a_row_that_cannot_be_a_source_is_named(
    rows: list[dict[str, Any]], message: str, write_jsonl: WriteJsonl
) -> None:
    with pytest.raises(DataError, match=message):
        list(read_corpus(write_jsonl("corpus.jsonl", rows)))


def test_what_is_no_corpus_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"fine\nthen \xff")
    (tmp_path / "x.pdf").write_bytes(b"%PDF")
    (tmp_path / "empty").mkdir()
    for path, message in [
        (tmp_path / "bad.txt", "line 2: not UTF-8"),
        (tmp_path / "x.pdf", "expected one of .txt, .md, .jsonl"),
        (tmp_path / "empty", "no file in this folder ends with"),
        (tmp_path / "absent.jsonl", "no such file"),
        (tmp_path / "absent.txt", "cannot be read: No such file"),
    ]:
        with pytest.raises(DataError, match=message):
            list(read_corpus(path))


# chunks

SENTENCES = st.lists(
    st.lists(st.text("abcé漢字1-", min_size=1, max_size=6), min_size=1, max_size=30).map(" ".join),
    min_size=1,
    max_size=12,
)
TEXTS = st.tuples(SENTENCES, st.sampled_from([". ", "! ", "。", "\n\n", ".\n \n"])).map(lambda t: t[1].join(t[0]))


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.integers(1, 40), st.integers(0, 39))
def test_passages_hold_every_word_in_order_and_are_no_longer_than_asked(text: str, size: int, overlap: int) -> None:
    overlap = min(overlap, size - 1)
    passages = chunk(Source("s", text, "T"), size, overlap)
    assert all(p.text == text[p.start : p.end] and p.text == p.text.strip() for p in passages)
    assert all(len(words(p.text)) <= size for p in passages)
    covered = np.zeros(len(text), dtype=int)
    for p in passages:
        covered[p.start : p.end] += 1
    lost = "".join(c for c, n in zip(text, covered, strict=True) if not n)
    assert not words(lost)
    for before, after in itertools.pairwise(passages):
        assert before.start < after.start and before.end < after.end
        assert len(words(text[after.start : max(after.start, before.end)])) <= overlap


def test_borders_are_those_of_sentences_and_paragraphs() -> None:
    text = "One two three. Four five six. Seven eight nine.\n\nTen eleven twelve. Thirteen."
    assert [p.text for p in chunk(Source("s", text), 12)] == [
        "One two three. Four five six. Seven eight nine.",  # another sentence would fit, but begins a paragraph
        "Ten eleven twelve. Thirteen.",
    ]
    assert [p.text for p in chunk(Source("s", text), 6, 3)][:2] == [
        "One two three. Four five six.",
        "Four five six. Seven eight nine.",
    ]


def test_a_passage_knows_its_source() -> None:
    first, second = chunk(Source("s", "One two. Three four.", "Numbers"), 2)
    assert (first.id, first.source_id, first.title, first.titled) == ("s#1", "s", "Numbers", "Numbers\nOne two.")
    assert (second.id, second.start, second.end) == ("s#2", 9, 20)
    (whole,) = chunk(Source("s", " One two. Three four.\n"), None)
    assert (whole.id, whole.text) == ("s", " One two. Three four.\n")
    (short,) = chunk(Source("s", "One."), 160, 30)
    assert short.id == "s"


def test_a_source_that_is_called_like_a_passage_of_another_is_refused(write_jsonl: WriteJsonl) -> None:
    rows = [{"id": "p", "text": "One two. Three four."}, {"id": "p#2", "text": "Five."}]
    settings = RetrievalSettings(corpus=str(write_jsonl("corpus.jsonl", rows)), chunk_words=2, overlap_words=0)
    with pytest.raises(DataError, match=r"the source 'p' was cut, one of its passages is 'p#2'"):
        read_passages(settings)


def test_a_text_of_marks_alone_is_a_passage_that_no_words_find() -> None:
    (only,) = chunk(Source("s", "*** --- ***"), 10)
    assert only.text == "*** --- ***"
    assert Bm25([only.text]).find(["anything"], 3) == [[]]


# words and fusion


def test_scripts_without_spaces_are_found_by_their_characters() -> None:
    assert words("Straße 12, NASA's 東京タワー") == ["straße", "12", "nasa", "s", *"東京タワ", "ー"]
    texts = ["東京は日本の首都です。", "大阪は商人の町です。", "Oslo is the capital of Norway."]
    ((first, *_),) = Bm25(texts).find(["日本の首都はどこ"], 3)
    assert first[0] == 0


def test_marks_belong_to_their_words_and_spellings_of_one_word_are_one() -> None:
    assert words("हिन्दी में क्या है") == ["हिन्दी", "में", "क्या", "है"]
    assert words(unicodedata.normalize("NFD", "Résumé aus Köln")) == ["résumé", "aus", "köln"]
    assert words("\u0301 ") == [], "a mark without a letter is no word"
    text = " ".join(["हिन्दी"] * 5)
    assert [p.text for p in chunk(Source("s", text), 2)] == ["हिन्दी हिन्दी", "हिन्दी हिन्दी", "हिन्दी"]


def test_only_passages_that_share_a_word_are_found_best_first() -> None:
    index = Bm25(["the cat sat", "the dog ran", "a bird"])
    ((best, *rest),) = index.find(["the dog"], 10)
    assert best[0] == 1 and [at for at, _ in rest] == [0]
    assert index.find(["zebra", "", "???"], 10) == [[], [], []]


def test_fusion_is_the_sum_of_reciprocal_ranks() -> None:
    one: list[Found] = [(3, 9.0), (1, 8.0)]
    two: list[Found] = [(1, 0.5), (2, 0.4)]
    fused = fuse([one, two])
    assert [at for at, _ in fused] == [1, 3, 2]
    assert [score for _, score in fused] == pytest.approx([1 / 62 + 1 / 61, 1 / 61, 1 / 62])


# prompt


def test_numbered_passages_stand_before_the_last_question() -> None:
    asked = (
        Message("system", "S"),
        Message("user", "old"),
        Message("assistant", "a"),
        Message("user", "When?", name="x"),
    )
    passages = [Passage("a", "Opened in 1851.", "Bridge"), Passage("b", "No title here.")]
    made = with_passages(asked, passages)
    assert made[:3] == asked[:3] and made[3].name == "x"
    assert made[3].content == (
        "Passages:\n\n[1] Bridge\nOpened in 1851.\n\n[2] No title here.\n\nAnswer from these passages.\n\nWhen?"
    )
    assert with_passages(asked, []) == asked
    assert last_question(asked) == "When?" and last_question(()) == ""
    assert with_passages(asked[:1], passages)[1].role == "user"


# measuring


def hits(*ids: str) -> list[Hit]:
    return [Hit(Passage(f"{id}#1", f"about {id}", "", id), 1.0) for id in ids]


def row(id: str, question: str = "?", answers: Any = None, **extra: Any) -> Conversation:
    listed = answers or ["x"]
    return Conversation(
        (Message("user", question), Message("assistant", listed[0])), id=id, target=answers, extra=extra
    )


def test_figures_by_hand() -> None:
    passages = [hit.passage for hit in hits(*"abcdefghijk")]
    (one,) = judged_rows([row("r", gold_passage_ids=["b", "d#1"])], passages)
    found = score(one.relevance(hits("a", "b", "b", "d")), one.right)
    assert found["recall_at_1"] == 0 and found["recall_at_3"] == 0.5 and found["recall_at_5"] == 1
    assert found["mrr"] == 0.5
    # the second passage of a source that was found already is nothing new
    assert found["ndcg_at_10"] == pytest.approx((1 / np.log2(3) + 1 / np.log2(5)) / (1 + 1 / np.log2(3)))
    assert score(one.relevance([]), one.right) == dict.fromkeys(found, 0.0)
    assert score(one.relevance(hits("b", "d")), one.right) == dict.fromkeys(found, 1.0) | {"recall_at_1": 0.5}


def test_without_gold_a_passage_that_holds_the_answer_is_right() -> None:
    passages = [Passage("p", "It opened, in The Year 1851!", "", "p"), Passage("q", "In 18512.", "", "q")]
    (one,) = judged_rows([row("r", answers=["the year 1851"])], passages)
    assert one.by == "answer_text"
    assert one.relevance([Hit(passages[1], 1.0), Hit(passages[0], 1.0)]) == ["", "answer"]
    assert judged_rows([row("r", answers=["the"])], passages) == [], "an answer of no words is found nowhere"


def test_a_long_reply_is_looked_for_in_no_passage_and_listed_answers_are() -> None:
    passages = [Passage("p", "One two three four five six seven.", "", "p")]
    reply = "one two three four five six seven"
    (listed,) = judged_rows([row("r", answers=[reply])], passages)
    assert listed.relevance([Hit(passages[0], 1.0)]) == ["answer"]
    free = Conversation((Message("user", "?"), Message("assistant", reply)), id="f")
    assert judged_rows([free], passages) == []
    assert len(judged_rows([replace(free, target="five six")], passages)) == 1


def test_a_gold_passage_of_a_gold_source_counts_once() -> None:
    passages = [hit.passage for hit in hits("a", "b")]
    (one,) = judged_rows([row("r", gold_passage_ids=["a", "a#1", "b#1"])], passages)
    assert one.right == 2
    assert score(one.relevance(hits("a", "b")), one.right)["recall_at_3"] == 1


def test_training_rows_are_looked_at_before_they_are_read_with_passages() -> None:
    passages = [hit.passage for hit in hits("a")]
    require_gold([row("r", gold_passage_ids=["a"])], passages)
    with pytest.raises(EvaluationError, match=r"row r .* names 'z'"):
        require_gold([row("r", gold_passage_ids=["z"])], passages)
    said = (Message("assistant", "x"),)
    pair = Preference((Message("user", "?"),), said, said)
    with pytest.raises(RecipeError, match=r"fine_tuned_rag .* are preferences; expected conversations"):
        require_gold([pair], passages)


def test_gold_that_the_corpus_lacks_is_an_error() -> None:
    passages = [hit.passage for hit in hits("a")]
    with pytest.raises(EvaluationError, match=r"row r .* names 'z', and the corpus has no source"):
        judged_rows([row("r", gold_passage_ids=["a", "z"])], passages)
    with pytest.raises(EvaluationError, match="must be a list of ids"):
        judged_rows([row("r", gold_passage_ids="a")], passages)


class Fixed:
    """Finds for the n-th query the n-th list."""

    def __init__(self, *found: list[int]) -> None:
        self.found = found

    def find(self, queries: Any, count: int) -> list[list[Found]]:
        return [[(at, 1.0) for at in self.found[int(query)]] for query in queries]


def test_the_table_counts_groups_and_says_how_rows_were_judged() -> None:
    passages = [hit.passage for hit in hits(*"abc")]
    rows = [
        row("0", "0", gold_passage_ids=["a"]),
        row("1", "1", gold_passage_ids=["a"]),
        row("2", "2", answers=["about c"]),
        row("3", "3", answers=["the"]),
    ]
    perfect = Retriever("bm25", passages, Fixed([0], [0], [2]), 5, "f")
    poor = Retriever("dense", passages, Fixed([1, 0], [2], [2]), 5, "g")
    found = measure_retrieval({"bm25": perfect, "dense": poor}, rows, np.array([0, 0, 1, 2]), "bm25")
    told = {key: found[key] for key in ("n", "groups", "judged_by_gold", "judged_by_answer", "not_judged", "passages")}
    assert told == dict(n=3, groups=2, judged_by_gold=2, judged_by_answer=1, not_judged=1, passages=3)
    first, second = found["retrievers"]
    assert first["metrics"]["recall_at_1"]["value"] == 1 and 0 < first["metrics"]["recall_at_1"]["low"] < 1
    assert second["metrics"]["recall_at_1"]["value"] == pytest.approx(1 / 3)
    assert second["metrics"]["mrr"]["value"] == pytest.approx((0.5 + 0 + 1) / 3)
    json.dumps(found, allow_nan=False)


class Slow(Fixed):
    """Builds something at the first search."""

    def find(self, queries: Any, count: int) -> list[list[Found]]:
        if not self.found:
            time.sleep(0.3)
            self.found = ([0],)
        return super().find(queries, count)


def test_the_time_of_a_query_is_without_that_of_the_index() -> None:
    slow = Retriever("bm25", [hit.passage for hit in hits("a")], Slow(), 5, "f")
    found = measure_retrieval({"bm25": slow}, [row("0", "0", gold_passage_ids=["a"])], np.array([0]), "bm25")
    assert found["retrievers"][0]["seconds_per_query"] < 0.2


def test_where_nothing_is_known_nothing_is_measured() -> None:
    passages = [hit.passage for hit in hits(*"abc")]
    rows = [row("3", "3", answers=["the"])]
    perfect = Retriever("bm25", passages, Fixed([0], [0], [2]), 5, "f")
    with pytest.raises(EvaluationError, match="none of 1 rows has gold_passage_ids"):
        measure_retrieval({"bm25": perfect}, rows, np.array([0]), "bm25")
