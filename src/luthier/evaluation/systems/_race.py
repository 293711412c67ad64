"""Successive halving on paired rows: many ways to ask start, the better half goes on, and fewer are asked more.

    rows r, 2r, 4r, ... up to all;  after each, at most half of those still in the race go on

(Jamieson and Talwalkar 2016, arXiv:1502.07943). All of a heat answer the same rows, so they are compared in pairs: one
whose paired interval to the leader leaves zero out on the wrong side is out even if it is in the better half. What a
way to ask has answered is kept, so a champion that meets new challengers costs nothing. The last heat is all rows, so
the winner's score is over all of them; it is the best of many, and so looks better than it is.

A race goes by the primary metric of what is written, or by the probability of what was wanted. The second costs one
pass over each row instead of one for every word of its answer, and moves less by chance.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from luthier.evaluation.answering import Prompts, answer_with_model, score_targets_of
from luthier.evaluation.metrics.base import Array, Metric
from luthier.evaluation.metrics.perplexity import Perplexity
from luthier.evaluation.significance import compare
from luthier.evaluation.systems.base import Answer, Context, prediction
from luthier.examples import Conversation, Message

CONFIDENCE = 0.9
"""Of the paired interval that puts a candidate out of the race."""

C = TypeVar("C")


@dataclass
class _Lane:
    """What one candidate has answered so far."""

    answers: list[Answer] = field(default_factory=list)
    statistics: list[tuple[float, ...]] = field(default_factory=list)


class Race(Generic[C]):
    """Candidates on the same rows.

    Args:
        rows: to answer, in their order.
        ask: the prompts of rows under a candidate; candidates must be hashable.
        context: the model that answers, and the metric.
        name: for the progress display.
        by_likelihood: nothing is answered; the perplexity of the wanted replies decides.
    """

    def __init__(
        self,
        rows: Sequence[Conversation],
        ask: Callable[[Sequence[Conversation], C], Prompts],
        context: Context,
        name: str,
        by_likelihood: bool = False,
    ) -> None:
        self.rows, self._ask, self._context, self._name = rows, ask, context, name
        self.by_likelihood = by_likelihood
        self.metric: Metric = Perplexity() if by_likelihood else context.primary_metric
        self._lanes: dict[C, _Lane] = {}

    @property
    def calls(self) -> int:
        """Answers that were asked for, or wanted replies whose probability was."""
        return sum(len(lane.answers) for lane in self._lanes.values())

    @property
    def seen(self) -> list[C]:
        """All candidates, those that answered most rows first, and of these the best first."""
        return sorted(self._lanes, key=lambda c: (-len(self._lanes[c].answers), -self.rank(c, None)))

    def run(self, candidates: Sequence[C], first_rows: int) -> C:
        """The best of the candidates; of equals the earlier one.

        Args:
            candidates: at least one; the first is the one to beat.
            first_rows: that all answer.
        """
        alive, count = list(dict.fromkeys(candidates)), min(first_rows, len(self.rows))
        while True:
            self._advance(alive, count)
            alive.sort(key=lambda c: -self.rank(c, count))
            if count == len(self.rows):
                # whoever has answered all rows counts, also a champion that was behind on the first of them
                whole = [c for c in dict.fromkeys(candidates) if self.rows_answered(c) == count]
                return max(whole, key=lambda c: self.rank(c, count))
            alive = self._survivors(alive, count)
            count = min(2 * count, len(self.rows))

    def score(self, candidate: C, count: int | None = None) -> float:
        """The metric over the first `count` rows, or all that it answered; nan where that says nothing."""
        return self.metric.value(self._statistics(candidate, count))

    def rank(self, candidate: C, count: int | None) -> float:
        """The score with the sign that makes more better; what says nothing is worst."""
        score = self.score(candidate, count)
        sign = 1 if self.metric.higher_is_better else -1
        return -math.inf if math.isnan(score) else sign * score

    def rows_answered(self, candidate: C) -> int:
        """How many rows it answered."""
        return len(self._lanes[candidate].answers)

    def failures(self, candidate: C) -> list[tuple[Conversation, Answer]]:
        """Rows that it did not answer perfectly, the worst first; without answers where none were asked for."""
        metric, lane = self.metric, self._lanes[candidate]
        sign = 1 if metric.higher_is_better else -1
        scored = [
            (metric.row_score(s), row, a) for s, row, a in zip(lane.statistics, self.rows, lane.answers, strict=False)
        ]
        failed = [(sign * score, row, a) for score, row, a in scored if score is not None and score != metric.best]
        return [(row, answer) for _, row, answer in sorted(failed, key=lambda one: one[0])]

    def _statistics(self, candidate: C, count: int | None) -> Array:
        return np.array(self._lanes[candidate].statistics[:count], dtype=np.float64)

    def _advance(self, alive: Sequence[C], count: int) -> None:
        """Let each answer the rows up to `count`, all at once: a large batch costs little more than a small one."""
        asked: list[tuple[C, Conversation]] = []
        prompts: list[tuple[Message, ...]] = []
        for candidate in alive:
            rows = self.rows[len(self._lanes.setdefault(candidate, _Lane()).answers) : count]
            asked += [(candidate, row) for row in rows]
            prompts += self._ask(rows, candidate)
        if not asked:
            return
        what = f"{self._name}: {len(alive)} prompts on {count} rows"
        answers = self._answers([row for _, row in asked], prompts, what)
        for (candidate, row), answer in zip(asked, answers, strict=True):
            self._lanes[candidate].answers.append(answer)
            self._lanes[candidate].statistics.append(self.metric.statistics(prediction(row, answer)))

    def _answers(self, rows: Sequence[Conversation], prompts: Prompts, what: str) -> list[Answer]:
        if self.by_likelihood:
            scores = score_targets_of(rows, prompts, self._context, what)
            return [
                Answer(row.id, prompt, "", target_score=score)
                for row, prompt, (score, _) in zip(rows, prompts, scores, strict=True)
            ]
        scoring = self.metric.needs == "logprobs"
        return answer_with_model(rows, prompts, self._context, what, score_targets=scoring)[0]

    def _survivors(self, ranked: Sequence[C], count: int) -> list[C]:
        leader = ranked[0]
        rest = ranked[1 : math.ceil(len(ranked) / 2)] if len(ranked) > 2 else ranked[1:]
        return [leader, *(c for c in rest if not self._clearly_worse(c, leader, count))]

    def _clearly_worse(self, candidate: C, leader: C, count: int) -> bool:
        metric = self.metric
        found = compare(metric, self._statistics(candidate, count), self._statistics(leader, count), CONFIDENCE)
        return found.high < 0 if metric.higher_is_better else found.low > 0
