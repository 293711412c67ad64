"""Reward: what the graders of `[rollout.rewards]` say that an answer is worth, as in training; the mean over rows."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

from pydantic import Field

from luthier.config import Tree
from luthier.errors import EvaluationError
from luthier.evaluation.metrics.base import Prediction, RatioMetric
from luthier.examples import Message

Asked: TypeAlias = tuple[Mapping[str, Any], Message, float | None]
"""Fields of a row, the reply to it, and what an environment gave for it (of single answers None)."""


class Reward(RatioMetric):
    """Mean reward; any number, as graders and their weights have it."""

    worst: ClassVar[float] = -math.inf
    best: ClassVar[float] = math.inf
    reads_target: ClassVar[bool] = False

    rewards: Tree = Field(default_factory=dict)
    """What decides what it measures: the graders, the models that they ask, and the files of runs that judge."""
    worth: Callable[[Sequence[Asked]], list[float]] | None = Field(None, exclude=True)
    """What they say of replies; None: values of another process are added up."""

    def statistics(self, prediction: Prediction) -> tuple[float, ...]:
        """(what the answer is worth, 1).

        Raises:
            EvaluationError: no grader is there to say it.
        """
        return self.statistics_of([prediction])[0]

    def statistics_of(self, predictions: Sequence[Prediction]) -> list[tuple[float, ...]]:
        """The same of many answers: models that graders ask are asked several questions at once."""
        if self.worth is None:
            raise EvaluationError("the metric reward has no graders here: those of a recipe's [rollout.rewards]")
        asked = [(one.item, one.reply or Message("assistant", one.output), None) for one in predictions]
        return [(worth, 1.0) for worth in self.worth(asked)]
