"""Rankings: pairs of answers to the same prompts by two models, and what raters say of them, one entry at a time.

A rater is a key. An entry is added and taken back, never changed, so whatever is killed in between loses none.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from luthier import registry
from luthier.data.formats.base import FORMATS
from luthier.data.read import Record
from luthier.examples import Message, Where
from luthier.jobs.database import Database, Row, keys, now, ranked_pairs, rankings, ratings
from luthier.jobs.file_store import missing
from luthier.jobs.ids import PAIR, RANKING, RATING, new_id
from luthier.jobs.rows import ACCEPTED
from luthier.serve.api_error import ApiError
from luthier.web.agreement import CHOICES, Choice, krippendorff_alpha, preferred
from luthier.web.edits import lines_of

MOST_READ = 20_000
"""Rows; all of a file would take minutes where there are millions."""
SPOKEN = ("system", "developer", "user", "assistant")


@dataclass(frozen=True)
class Standing:
    """What came of a ranking so far."""

    pairs: Sequence[Row]
    said: Mapping[str, Mapping[str, Choice]]
    """By pair, by rater."""
    raters: Mapping[str, str]
    """Names of keys."""

    @property
    def verdicts(self) -> dict[str, Choice]:
        """Of each pair that somebody rated, what most say."""
        found = {pair: preferred(said.values()) for pair, said in self.said.items()}
        return {pair: choice for pair, choice in found.items() if choice is not None}

    @property
    def counts(self) -> dict[str, int]:
        """Pairs by verdict."""
        verdicts = list(self.verdicts.values())
        return {choice: verdicts.count(choice) for choice in CHOICES if choice != "skip"}

    @property
    def alpha(self) -> float | None:
        """Krippendorff's, of all raters."""
        return krippendorff_alpha(
            [choice for choice in said.values() if choice != "skip"] for said in self.said.values()
        )

    @property
    def agreement(self) -> tuple[int, int]:
        """Pairs on which all who rated them say the same, and pairs that two or more rated."""
        several = [
            {choice for choice in said.values() if choice != "skip"}
            for said in self.said.values()
            if sum(choice != "skip" for choice in said.values()) > 1
        ]
        return sum(len(choices) == 1 for choices in several), len(several)

    def preferences(self) -> list[dict[str, Any]]:
        """Rows of OpenAI's format for dpo: the pairs with a winner, both of whose answers say something."""
        verdicts = self.verdicts
        rows = []
        for pair in self.pairs:
            choice = verdicts.get(pair["id"])
            if choice in ("first", "second") and pair["first"].strip() and pair["second"].strip():
                other = "second" if choice == "first" else "first"
                rows.append(
                    {
                        "input": {"messages": pair["messages"]},
                        "preferred_output": [{"role": "assistant", "content": pair[choice]}],
                        "non_preferred_output": [{"role": "assistant", "content": pair[other]}],
                    }
                )
        return rows


class Rankings:
    """Those of all projects."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self, project: str, name: str, models: tuple[str, str], sampling: Mapping[str, Any], prompts: Sequence[Any]
    ) -> str:
        """A ranking whose pairs are still to be answered; its id."""
        ranking, at = new_id(RANKING), now()
        values = {"id": ranking, "created_at": at, "project_id": project, "name": name, "sampling": dict(sampling)}
        pairs = [
            {"id": new_id(PAIR), "created_at": at, "ranking_id": ranking, "number": number, "messages": messages}
            for number, messages in enumerate(prompts, start=1)
        ]
        with self._database.writing() as connection:
            connection.execute(rankings.insert().values(**values, first=models[0], second=models[1]))
            connection.execute(ranked_pairs.insert(), pairs)
        return ranking

    def listed(self, project: str) -> list[dict[str, Any]]:
        """A project's rankings, the newest first, with how many pairs each has and how many are answered."""
        answered = sa.func.count(ranked_pairs.c.first)
        query = (
            sa.select(rankings, sa.func.count(ranked_pairs.c.id).label("pairs"), answered.label("answered"))
            .join(ranked_pairs, ranked_pairs.c.ranking_id == rankings.c.id)
            .where(rankings.c.project_id == project)
            .group_by(rankings.c.seq)  # PostgreSQL compares no JSON, and knows what hangs on a primary key
            .order_by(rankings.c.seq.desc())
        )
        with self._database.reading() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def get(self, project: str, ranking: str) -> Row:
        """One of them.

        Raises:
            ApiError: 404.
        """
        query = sa.select(rankings).where(rankings.c.project_id == project, rankings.c.id == ranking)
        with self._database.reading() as connection:
            row = connection.execute(query).mappings().first()
        if row is None:
            raise missing("ranking", ranking)
        return row

    def unanswered(self, ranking: str) -> list[Row]:
        """Pairs without answers."""
        query = sa.select(ranked_pairs).where(ranked_pairs.c.ranking_id == ranking, ranked_pairs.c.first.is_(None))
        with self._database.reading() as connection:
            return list(connection.execute(query.order_by(ranked_pairs.c.number)).mappings())

    def keep_answers(self, pair: str, first: str, second: str) -> None:
        """Both answers of a pair at once."""
        with self._database.writing() as connection:
            connection.execute(
                ranked_pairs.update().where(ranked_pairs.c.id == pair).values(first=first, second=second)
            )

    def standing(self, ranking: str) -> Standing:
        """All pairs that are answered, and what is said of them."""
        of_ranking = (
            sa.select(ratings.c.pair_id, ratings.c.key_id, ratings.c.choice, keys.c.name)
            .join(ranked_pairs, ranked_pairs.c.id == ratings.c.pair_id)
            .join(keys, keys.c.id == ratings.c.key_id)
            .where(ranked_pairs.c.ranking_id == ranking, ratings.c.undone_at.is_(None))
            .order_by(ratings.c.seq)
        )
        pairs = sa.select(ranked_pairs).where(ranked_pairs.c.ranking_id == ranking, ranked_pairs.c.first.is_not(None))
        said: dict[str, dict[str, Choice]] = {}
        raters: dict[str, str] = {}
        with self._database.reading() as connection:
            for row in connection.execute(of_ranking):
                said.setdefault(row.pair_id, {})[row.key_id] = row.choice
                raters[row.key_id] = row.name
            return Standing(list(connection.execute(pairs.order_by(ranked_pairs.c.number)).mappings()), said, raters)

    def rate(self, ranking: str, pair: str, rater: str, choice: Choice) -> None:
        """What a rater says of a pair; once more in its place.

        Raises:
            ApiError: 404: the ranking has no such pair.
        """
        is_its = sa.exists().where(ranked_pairs.c.id == pair, ranked_pairs.c.ranking_id == ranking)
        values = {"id": new_id(RATING), "created_at": now(), "pair_id": pair, "key_id": rater, "choice": choice}
        with self._database.writing() as connection:
            if not connection.scalar(sa.select(is_its)):
                raise missing("pair", pair)
            before = ratings.c.pair_id == pair, ratings.c.key_id == rater, ratings.c.undone_at.is_(None)
            connection.execute(ratings.update().where(*before).values(undone_at=now()))
            connection.execute(ratings.insert().values(**values))

    def undo(self, ranking: str, rater: str) -> None:
        """Take back what a rater said last."""
        mine = sa.select(ranked_pairs.c.id).where(ranked_pairs.c.ranking_id == ranking)
        last = (
            sa.select(ratings.c.seq)
            .where(ratings.c.pair_id.in_(mine), ratings.c.key_id == rater, ratings.c.undone_at.is_(None))
            .order_by(ratings.c.seq.desc())
            .limit(1)
        )
        with self._database.writing() as connection:
            seq = connection.scalar(last)
            connection.execute(ratings.update().where(ratings.c.seq == seq).values(undone_at=now()))


def prompts_of(path: Path, count: int) -> list[list[dict[str, str]]]:
    """Prompts of a training file, chosen by their digests, in the file's order: rows without tools, each prompt once.

    Of a file with more than MOST_READ rows, these are of the first.

    Raises:
        ApiError: 400: there are none.
    """
    found = {json.dumps(prompt): prompt for prompt in map(_prompt, islice(lines_of(path), MOST_READ)) if prompt}
    if not found:
        raise ApiError("No row of the file has a prompt of texts alone.", param="file")
    chosen = set(sorted(found, key=lambda text: sha256(text.encode()).digest())[:count])
    return [prompt for text, prompt in found.items() if text in chosen]


def _prompt(numbered: tuple[int, str]) -> list[dict[str, str]]:
    number, line = numbered
    values = json.loads(line)
    for name in ACCEPTED:
        module = registry.load(FORMATS, name)
        if module.matches(values):
            example = module.parse(Record(values, Where("file", number)))
            return [] if example.tools else _spoken(example.prompt)
    return []


def _spoken(messages: Iterable[Message]) -> list[dict[str, str]]:
    messages = list(messages)
    if any(message.role not in SPOKEN or message.tool_calls for message in messages):
        return []
    return [{"role": message.role, "content": message.content} for message in messages]
