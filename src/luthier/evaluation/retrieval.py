"""Retrieval measured by itself: are the right passages among the first k that a search finds?

    recall@k   found right sources among the first k passages / all right sources of the question
    MRR        1 / rank of the first right passage, 0 if it is not among the first 10
    nDCG@10    sum of 1 / log2(rank + 1) over the right ones / the same if they all came first

(Järvelin and Kekäläinen 2002, TOIS 20(4), binary gains.) A source counts once, where its first passage stands. Each is
averaged over questions, with a bootstrap interval.

What is right comes from the row: `gold_passage_ids`, which are ids of sources or of passages. A row without them is
judged by its answer, if its target lists acceptable ones or is a few words long: right is the first passage that holds
one word for word. That is kinder, for a passage may name the answer and say nothing of the question, so how many rows
were judged how is told with the figures. A longer reply stands in no passage, and its row is left out.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from luthier.errors import EvaluationError, RecipeError
from luthier.evaluation.metrics._answers import answer_words
from luthier.evaluation.metrics.base import Array
from luthier.evaluation.significance import Groups, Interval, gain_interval, mean_interval
from luthier.examples import Conversation, Example
from luthier.rag.passages import Hit, Passage
from luthier.rag.prompt import last_question

DEPTH = 10
"""Passages looked at."""
RECALLS = (1, 3, 5, 10)
GOLD = "gold_passage_ids"
"""The field of a row that names the right passages."""
FEW_WORDS = 6
"""A reply of more is looked for in no passage: nobody would find it there word for word, however good the passage."""

if TYPE_CHECKING:  # the report reads this module, and needs no torch
    from luthier.rag.retriever import Retriever

Judge: TypeAlias = Literal["gold_passage_ids", "answer_text"]


@dataclass(frozen=True)
class Judged:
    """A question, and how a passage is known to be right."""

    row: Conversation
    by: Judge
    gold: frozenset[str] = frozenset()
    """Ids of sources or passages; of a source that is named, no passage is."""
    answers: tuple[tuple[str, ...], ...] = ()
    """The words of each acceptable answer."""

    def relevance(self, hits: Sequence[Hit]) -> list[str]:
        """For each hit the name of what was found there for the first time; empty where nothing was."""
        seen: set[str] = set()
        found = []
        for hit in hits:
            name = self._right(hit.passage)
            found.append("" if name in seen else name)
            seen.add(name)
        return found

    def _right(self, passage: Passage) -> str:
        if self.by == "answer_text":
            return "answer" if self.holds_answer(passage) else ""
        return next((name for name in (passage.source_id, passage.id) if name in self.gold), "")

    def is_of_gold(self, passage: Passage) -> bool:
        """Whether the row names the passage or its source."""
        return passage.source_id in self.gold or passage.id in self.gold

    def holds_answer(self, passage: Passage) -> bool:
        """Whether an acceptable answer stands in it word for word."""
        text = f" {' '.join(answer_words(passage.text))} "
        return any(f" {' '.join(answer)} " in text for answer in self.answers)

    @property
    def right(self) -> int:
        """How many right ones there are."""
        return len(self.gold) if self.by == "gold_passage_ids" else 1


def judged_rows(rows: Sequence[Conversation], passages: Sequence[Passage]) -> list[Judged]:
    """The rows whose right passages are known; without gold ids and without an answer a row is left out.

    Raises:
        EvaluationError: a row's gold ids are no list of texts, or name what the corpus does not hold.
    """
    sources = {passage.id: passage.source_id for passage in passages}
    sources |= {source: source for source in sources.values()}
    found = (_judged(row, sources) for row in rows)
    return [one for one in found if one is not None]


def require_gold(rows: Sequence[Example], passages: Sequence[Passage]) -> None:
    """Check before the first training that the second one can read these training rows with passages.

    Raises:
        RecipeError: none of them is a conversation.
        EvaluationError: as of `judged_rows`.
    """
    asked = [row for row in rows if isinstance(row, Conversation)]
    if rows and not asked:
        raise RecipeError(
            "evaluation.systems.fine_tuned_rag trains on rows with passages before their questions, and the training "
            f"rows are {type(rows[0]).__name__.lower()}s; expected conversations: leave the system out"
        )
    judged_rows(asked, passages)


def _judged(row: Conversation, sources: Mapping[str, str]) -> Judged | None:
    """`sources`: by id of a passage or source, the source."""
    gold = row.extra.get(GOLD)
    answers = tuple(words for text in _answers(row) if (words := tuple(answer_words(text))))
    if gold:
        if not isinstance(gold, list | tuple) or not all(isinstance(name, str) for name in gold):
            raise EvaluationError(f"row {row.id} ({row.where}): {GOLD} must be a list of ids, found {gold!r:.80}")
        if absent := sorted(set(gold) - sources.keys()):
            raise EvaluationError(
                f"row {row.id} ({row.where}): {GOLD} names {absent[0]!r}, and the corpus has no source or passage of "
                "that id; retrieval.corpus is another one than the rows were made for, or the id is misspelled"
            )
        whole = frozenset(name for name in gold if sources[name] == name or sources[name] not in gold)
        return Judged(row, "gold_passage_ids", whole, answers)
    short = isinstance(row.target, list | tuple) or all(len(words) <= FEW_WORDS for words in answers)
    return Judged(row, "answer_text", answers=answers) if answers and short else None


def _answers(row: Conversation) -> list[str]:
    """The acceptable answers: those of a target that is text or lists texts, else the reply."""
    listed = row.target if isinstance(row.target, list | tuple) else [row.target]
    texts = [text for text in listed if isinstance(text, str)]
    return texts or ([row.completion.content] if row.completion is not None else [])


def measure_retrieval(
    retrievers: "Mapping[str, Retriever]",
    rows: Sequence[Conversation],
    groups_N: Groups,
    used: str,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """The table of every retriever on the same questions, as `retrieval.json` holds it.

    Args:
        retrievers: by name, all over the same passages.
        rows: questions; those that nothing is known of are left out, and counted.
        groups_N: which rows ask the same.
        used: the retriever that systems use.
        confidence: coverage of the intervals.
        seed: decides the resamples.

    Raises:
        EvaluationError: no row says what is right, or gold ids are not those of the corpus.
        RetrievalError: passages cannot be searched.
    """
    passages = retrievers[used].passages
    judged = judged_rows(rows, passages)
    if not judged:
        raise EvaluationError(
            f"retrieval cannot be measured: none of {len(rows)} rows has {GOLD}, or a short answer to look for in "
            "passages"
        )
    kept = {id(one.row) for one in judged}
    numbers = np.unique(groups_N[[id(row) in kept for row in rows]], return_inverse=True)[1]
    mean = partial(mean_interval, confidence=confidence, seed=seed, groups_N=numbers)
    gain = partial(gain_interval, confidence=confidence, seed=seed, groups_N=numbers)
    scored = {name: _scored(retriever, judged) for name, retriever in retrievers.items()}
    measured = [_measured(retrievers[name], scored, mean, gain) for name in retrievers]
    by: list[str] = [one.by for one in judged]
    return {
        **nothing_judged(retrievers, rows, used, confidence),
        "n": len(judged),
        "groups": int(numbers.max()) + 1,
        "judged_by_gold": by.count(GOLD),
        "judged_by_answer": by.count("answer_text"),
        "not_judged": len(rows) - len(judged),
        "retrievers": measured,
    }


def nothing_judged(
    retrievers: "Mapping[str, Retriever]", rows: Sequence[Conversation], used: str, confidence: float
) -> dict[str, Any]:
    """The same table where no row says what is right: what was searched, and no figure."""
    passages = retrievers[used].passages
    return {
        "n": 0,
        "groups": 0,
        "judged_by_gold": 0,
        "judged_by_answer": 0,
        "not_judged": len(rows),
        "sources": len({passage.source_id for passage in passages}),
        "passages": len(passages),
        "confidence": confidence,
        "used": used,
        "top_k": retrievers[used].top_k,
        "retrievers": [],
    }


@dataclass(frozen=True)
class _Scored:
    """A retriever's figures of each question."""

    seconds_per_query: float
    values: Mapping[str, Array]
    """(N,) by metric."""


def _scored(retriever: "Retriever", judged: Sequence[Judged]) -> _Scored:
    questions = [last_question(one.row.prompt) for one in judged]
    retriever.search(questions[:1], DEPTH)  # builds the index and loads the models, which is no query's time
    start = time.perf_counter()
    hits = retriever.search(questions, DEPTH)
    seconds = time.perf_counter() - start
    values: dict[str, Array] = {name: np.zeros(len(judged)) for name in METRICS}
    for at, (one, found) in enumerate(zip(judged, hits, strict=True)):
        for name, value in score(one.relevance(found), one.right).items():
            values[name][at] = value
    return _Scored(seconds / len(judged), values)


def _measured(
    retriever: "Retriever",
    scored: Mapping[str, _Scored],
    mean: Callable[[Array], Interval],
    gain: Callable[[Array], Interval],
) -> dict[str, Any]:
    """A row of the table; where it is to be compared with another, with what it gains on the same questions."""
    own, against = scored[retriever.name], scored.get(retriever.against)
    found = {
        "name": retriever.name,
        "seconds_per_query": own.seconds_per_query,
        "metrics": {name: mean(values_N).dump() for name, values_N in own.values.items()},
    }
    if against is None:
        return found
    gains = {name: gain(values_N - against.values[name]).dump() for name, values_N in own.values.items()}
    return {**found, "against": retriever.against, "gains": gains}


METRICS = (*(f"recall_at_{k}" for k in RECALLS), "mrr", "ndcg_at_10")


def score(relevance: Sequence[str], right: int) -> dict[str, float]:
    """The figures of one question.

    Args:
        relevance: what each of the first DEPTH passages found for the first time, empty for nothing.
        right: how many there were to find.
    """
    places = [rank for rank, name in enumerate(relevance[:DEPTH], 1) if name]
    recalls = {f"recall_at_{k}": sum(rank <= k for rank in places) / right for k in RECALLS}
    gain = sum(1 / math.log2(rank + 1) for rank in places)
    ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(right, DEPTH) + 1))
    return {**recalls, "mrr": 1 / places[0] if places else 0.0, "ndcg_at_10": gain / ideal}


def recall_sentence(metrics: Mapping[str, Mapping[str, float | None]]) -> str:
    """Recall of one retriever in a line."""
    shown = (f"{metrics[f'recall_at_{k}']['value']:.3f} of the first {k}" for k in RECALLS if k != 3)
    return "recall " + ", ".join(shown)


def how_judged(found: Mapping[str, Any]) -> str:
    """How many questions were judged, and by what, in words; `found` is what `measure_retrieval` returns."""
    said = [f"{found['n']:,} questions"]
    if found["judged_by_gold"]:
        said.append(f"{found['judged_by_gold']:,} by the passages that their rows name")
    if found["judged_by_answer"]:
        said.append(f"{found['judged_by_answer']:,} by whether a passage holds the answer word for word")
    if found["not_judged"]:
        said.append(f"{found['not_judged']:,} more left out, of which nothing is known")
    return ", ".join(said)


def table(found: Mapping[str, Any]) -> str:
    """What `measure_retrieval` found, for a terminal."""
    heads = [label(name) for name in METRICS]
    lines = [
        f"{found['passages']:,} passages of {found['sources']:,} sources; {how_judged(found)}",
        "",
        f"{'':15}" + "".join(f"{head:>25}" for head in heads) + f"{'ms a query':>12}",
    ]
    for one in found["retrievers"]:
        name = one["name"] + ("*" if one["name"] == found["used"] else "")
        cells = "".join(f"{_interval(one['metrics'][metric]):>25}" for metric in METRICS)
        lines.append(f"{name:15}{cells}{1000 * one['seconds_per_query']:>12.1f}")
    for one in found["retrievers"]:
        if "against" in one:
            cells = "".join(f"{_interval(one['gains'][metric], '+'):>25}" for metric in METRICS)
            lines.append(f"{one['name']:15}{cells}  beside {one['against']}")
    return "\n".join([*lines, "", f"* used by systems; intervals at {100 * found['confidence']:g} %"])


def _interval(found: Mapping[str, float], sign: str = "") -> str:
    return f"{found['value']:{sign}.3f} [{found['low']:{sign}.3f}, {found['high']:{sign}.3f}]"


def label(metric: str) -> str:
    """The name of a figure as people write it."""
    return metric.replace("recall_at_", "recall@").replace("ndcg_at_", "nDCG@").replace("mrr", "MRR")
