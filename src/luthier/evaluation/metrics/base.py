"""What a metric is: statistics of each row, and a value for any multiset of rows.

Corpus metrics (micro F1, macro F1, perplexity, chrF) are no means of row scores, so resampling scores would measure
something else. Here every metric says how to compute its value from per-row statistics and how often each row counts; a
bootstrap is then a matrix product for all resamples at once.

Shapes: N rows, S statistics a row, B resamples; `counts_BN[b, i]` is how often row i counts in resample b.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from luthier.config import Settings
from luthier.examples import Message

Array: TypeAlias = npt.NDArray[np.float64]
Needs: TypeAlias = Literal["generation", "logprobs", "pairs", "rewards", "steps"]


@dataclass(frozen=True)
class TargetScore:
    """A reply or text under a model that is told each token before it has to predict the next (teacher forcing)."""

    tokens: int
    """Tokens predicted, the end-of-turn or end-of-text token included."""
    logprob_sum: float
    """Natural logarithm of the probability of all of them."""
    correct: int
    """Tokens that were the model's first choice."""
    bytes: int
    """UTF-8 bytes of the text predicted; the token that ends it has none."""


@dataclass(frozen=True)
class Prediction:
    """What a system answered to one row, beside what was wanted."""

    id: str
    prompt: tuple[Message, ...]
    output: str
    """The answer as text; for tool calls, what `evaluation.systems.base.message_text` writes."""
    target: Any
    """The wanted answer: a text, or the object or label that the data gives."""
    expected: Message | None = None
    """The wanted assistant message."""
    reply: Message | None = None
    """The answer as a message, its tool calls parsed; None if the system has only text."""
    target_score: TargetScore | None = None
    """None for a system without log-probabilities."""
    rejected_score: TargetScore | None = None
    """The reply that was not wanted, for a preference pair; None for every other row."""
    rewards: tuple[float, ...] | None = None
    """Where rewards are measured: of the chosen and of the rejected reply, or of each step that it is right."""
    tools: Sequence[Mapping[str, Any]] = ()
    """What the row offers."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the row that no format claims, such as `acceptable` and `references`."""
    item: Mapping[str, Any] = field(default_factory=dict)
    """What graders see of a chat (`data.asked.item_of`)."""

    @property
    def target_text(self) -> str:
        """The wanted answer as text: the assistant message's content if there is one, else the target."""
        return self.expected.content if self.expected is not None else str(self.target)


class Metric(Settings, ABC):
    """Implement these in one new file beside this one; nothing else changes."""

    needs: ClassVar[Needs] = "generation"
    """What it looks at: the answer, the log-probabilities of what was wanted, those of both replies of a pair, or what
    a head reads of both or of each step. All but the first are known of model systems only."""
    higher_is_better: ClassVar[bool] = True
    worst: ClassVar[float] = 0.0
    """Value of the worst system; infinite where there is no bound."""
    best: ClassVar[float] = 1.0
    """Value of a perfect system."""
    binary: ClassVar[bool] = False
    """Every row is right (1) or wrong (0), and the value is their mean: exact tests apply."""
    counts_failures: ClassVar[bool] = False
    """It checks a format: failures are reported per million answers. Only for binary metrics."""
    reads_target: ClassVar[bool] = True
    """Whether targets can be unfit, which is found out before any answer. False too where asking costs."""
    scores_rows: ClassVar[bool] = True
    """Whether the value of a single row means something."""
    counts_tokens: ClassVar[bool] = False
    """Whether it is an average over tokens: then models with other tokenizers cannot be compared by it."""

    @abstractmethod
    def statistics(self, prediction: Prediction) -> tuple[float, ...]:
        """What the metric must know of a row; as many numbers for every row.

        Raises:
            EvaluationError: the row's target is not of the kind that the metric needs.
        """

    def statistics_of(self, predictions: Sequence[Prediction]) -> list[tuple[float, ...]]:
        """`statistics` of each row, for a metric that can look at several at once; raises as it does."""
        return [self.statistics(prediction) for prediction in predictions]

    @abstractmethod
    def values(self, statistics_NS: Array, counts_BN: Array) -> Array:
        """(B,) the metric for each resample; nan where a resample says nothing."""

    def value(self, statistics_NS: Array) -> float:
        """The metric over all rows; nan for no rows."""
        if not len(statistics_NS):
            return float("nan")
        return float(self.values(statistics_NS, np.ones((1, len(statistics_NS))))[0])

    def row_score(self, statistics: tuple[float, ...]) -> float | None:
        """The metric of one row, None where that means nothing."""
        value = self.value(np.array([statistics], dtype=np.float64)) if self.scores_rows else float("nan")
        return None if np.isnan(value) else value


class RatioMetric(Metric, ABC):
    """A sum over a sum: `statistics` gives a numerator and a denominator."""

    def values(self, statistics_NS: Array, counts_BN: Array) -> Array:
        """(B,) sum of numerators / sum of denominators."""
        return ratio(counts_BN @ statistics_NS)


def ratio(sums_B2: Array) -> Array:
    """(B,) first / second column; nan where the second is 0."""
    return divide(sums_B2[:, 0], sums_B2[:, 1], float("nan"))


def divide(a: Array, b: Array, otherwise: float) -> Array:
    """a / b, and `otherwise` where b is 0."""
    safe = np.where(b == 0, 1.0, b)
    return np.where(b == 0, otherwise, a / safe)
