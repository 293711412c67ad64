"""Questions, what answers them and what does not, from the rows of a run and a search over its passages.

Right passages come of the row as everywhere (`evaluation/retrieval.py`): those that it names, or those among the first
LOOKED_AT of the search that hold its answer word for word. Of several the question learns to find the one that holds
the answer and that the search ranks highest. Wrong ones are those that the row gives, and those that the search ranks
highest and that neither answer nor hold an acceptable answer: unlabelled answers are what hard negatives most often
are (Qu et al. 2021, arXiv:2010.08191, found 70 % of them in MS MARCO).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from luthier.errors import DataError
from luthier.evaluation.passage_groups import WRONG
from luthier.evaluation.retrieval import Judged, judged_rows
from luthier.examples import Conversation
from luthier.objectives._retriever import Sought
from luthier.rag.passages import Passage
from luthier.rag.prompt import last_question
from luthier.rag.retriever import Retriever

LOOKED_AT = 100
"""Places of a search in which wrong passages, and right ones that hold an answer, are looked for."""
MOST_PASSAGES = 2**24
"""The numbers of passages are told in float32, which counts so far."""


@dataclass(frozen=True)
class Found:
    """The questions of some rows."""

    sought: tuple[Sought, ...]
    unknown: int
    """Rows of which no passage is known to be right."""


def find(rows: Sequence[Conversation], retriever: Retriever, wrong: int) -> Found:
    """The questions of the rows, with as many wrong passages for each as there are, up to `wrong`.

    Raises:
        EvaluationError: a row names passages that the corpus does not hold.
        DataError: the corpus has too many passages, or a row names wrong ones that it does not hold.
        RetrievalError: passages cannot be searched.
    """
    passages = retriever.passages
    if len(passages) > MOST_PASSAGES:
        raise DataError(f"the corpus has {len(passages):,} passages; a retriever is trained over {MOST_PASSAGES:,}")
    places: dict[str, list[int]] = {}
    for place, passage in enumerate(passages):
        for name in {passage.id, passage.source_id}:
            places.setdefault(name, []).append(place)
    judged = judged_rows(rows, passages)
    at = {id(passage): place for place, passage in enumerate(passages)}
    hits = retriever.search([last_question(one.row.prompt) for one in judged], LOOKED_AT)
    sought = []
    for one, found in zip(judged, hits, strict=True):
        ranked = [at[id(hit.passage)] for hit in found]
        if (made := _sought(one, ranked, places, passages, wrong)) is not None:
            sought.append(made)
    return Found(tuple(sought), len(rows) - len(sought))


def _sought(
    judged: Judged, ranked: Sequence[int], places: Mapping[str, Sequence[int]], passages: Sequence[Passage], wrong: int
) -> Sought | None:
    """The question of a row; None where no passage is known to be right."""
    holding = {place for place in ranked if judged.holds_answer(passages[place])}
    right = {place for name in judged.gold for place in places[name]} if judged.gold else holding
    if not right:
        return None
    rank = {place: number for number, place in enumerate(ranked)}
    best = min(right, key=lambda place: (not judged.holds_answer(passages[place]), rank.get(place, len(ranked)), place))
    given = _given(judged.row, places)
    mined = [place for place in ranked if place not in holding and place not in given]
    others = [place for place in (*given, *mined) if place not in right]
    question = last_question(judged.row.prompt)
    return Sought(judged.row.id, question, best, tuple(sorted(right)), tuple(others[:wrong]), tuple(ranked))


def _given(row: Conversation, places: Mapping[str, Sequence[int]]) -> list[int]:
    """The places of the passages that the row says are wrong.

    Raises:
        DataError: it is no list of ids, or the corpus has no such passage.
    """
    named, where = row.extra.get(WRONG) or [], row.where
    if not isinstance(named, list | tuple) or not all(isinstance(name, str) for name in named):
        raise DataError(f"{WRONG} must be a list of ids, found {named!r:.80}", where.path, where.line, where.row)
    if absent := [name for name in named if name not in places]:
        raise DataError(
            f"{WRONG} names {absent[0]!r}, and the corpus has no source or passage of that id",
            *(where.path, where.line, where.row),
        )
    return [place for name in named for place in places[name]]


def pool_of(sought: Sequence[Sought], passages: int, most: int) -> list[int]:
    """The passages among which validation questions are to find theirs: the right ones, those that the search ranks
    highest for any of them, and then others spread evenly over the corpus.

    Args:
        sought: the questions.
        passages: of the corpus.
        most: passages; more only where the right ones alone are.
    """
    chosen = dict.fromkeys(number for one in sought for number in one.right)
    for place in range(max((len(one.found) for one in sought), default=0)):
        if len(chosen) >= most:
            break
        chosen |= dict.fromkeys(one.found[place] for one in sought if place < len(one.found))
    rest = [number for number in range(passages) if number not in chosen]
    missing = max(0, min(most, passages) - len(chosen))
    chosen |= dict.fromkeys(rest[at * len(rest) // missing] for at in range(missing))
    return sorted(chosen)
