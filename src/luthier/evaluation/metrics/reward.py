"""Reward: what the graders of `[rollout.rewards]` say that an answer is worth, as in training; the mean over rows."""

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from pydantic import Field

from luthier.config import Tree
from luthier.errors import EvaluationError
from luthier.evaluation.metrics.base import Prediction, RatioMetric
from luthier.examples import Message


class Reward(RatioMetric):
    """Mean reward; any number, as graders and their weights have it."""

    worst: ClassVar[float] = -math.inf
    best: ClassVar[float] = math.inf
    reads_target: ClassVar[bool] = False

    rewards: Tree = Field(default_factory=dict)
    """What decides what it measures: the graders, the models that they ask, and the files of runs that judge."""
    worth: Callable[[Mapping[str, Any], Message], float] | None = Field(None, exclude=True)
    """What they say of a reply to a row with these fields; None: values of another process are added up."""

    def statistics(self, prediction: Prediction) -> tuple[float, float]:
        """(what the answer is worth, 1).

        Raises:
            EvaluationError: no grader is there to say it.
        """
        if self.worth is None:
            raise EvaluationError("the metric reward has no graders here: those of a recipe's [rollout.rewards]")
        return self.worth(prediction.item, prediction.reply or Message("assistant", prediction.output)), 1.0
