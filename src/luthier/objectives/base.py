"""What an objective is: a pure function from token log-probabilities to a summed loss.

It knows no device, optimizer, adapter or logger. The engine adds up `weight` over the whole step before the first
backward pass and divides once, so how a step is split over micro-batches and processes cannot change the result.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol, Self, TypeAlias

import torch
from torch import Tensor

from luthier.config import Settings
from luthier.data.templates import Template
from luthier.examples import Conversation, Document, Example, Message, Row
from luthier.models.forest import Batch, HeadValues, TokenScores
from luthier.models.heads import HeadShape

Memory: TypeAlias = Mapping[str, float]
"""What an objective carries from step to step; it is part of every checkpoint."""
REFERENCE = "reference"
"""Name of the tokens' values under the reference, where they were computed once and kept."""


@dataclass(frozen=True)
class Mean:
    """A metric as (sum, count), so that means of parts add up to the mean of the whole."""

    total: float
    count: float

    @classmethod
    def of(cls, values: Tensor) -> "Mean":
        """The mean of all entries of `values`."""
        return cls(float(in_float64(values).sum()), float(values.numel()))

    def __add__(self, other: "Mean") -> "Mean":
        return Mean(self.total + other.total, self.count + other.count)

    def value(self) -> float:
        """total / count; nan if nothing was counted."""
        return self.total / self.count if self.count else float("nan")


def in_float64(values: Tensor) -> Tensor:
    """The numbers alone, in float64 on the CPU: sums must not round, and not every device has the type (mps)."""
    return values.detach().cpu().double()


def merge_metrics(parts: list[Mapping[str, Mean]]) -> dict[str, Mean]:
    """Add up metrics of the same name."""
    merged: dict[str, Mean] = {}
    for part in parts:
        for name, mean in part.items():
            merged[name] = merged.get(name, Mean(0.0, 0.0)) + mean
    return merged


class Scorer(Protocol):
    """A language model as an objective sees it."""

    def token_logprobs(self, batch: Batch) -> Tensor:
        """(K,) float32: log-probability of each trained-on token of each row, in the order of `batch.row_K`."""
        ...

    def token_scores(self, batch: Batch) -> TokenScores:
        """The same, and whether each of these tokens is the likeliest at its place."""
        ...

    def logits(self, batch: Batch) -> Tensor:
        """(H, vocabulary) logits at the positions `batch.hidden_H`, in the type that the model computes in."""
        ...

    def at(self, temperature: float) -> "Scorer":
        """The same with all logits divided by a temperature."""
        ...


class Policy(Scorer, Protocol):
    """The model that trains, and its head."""

    def head_values(self, batch: Batch) -> HeadValues:
        """What the head reads at the end of each row and before each trained-on token; without a vocabulary."""
        ...

    def logprobs_and_values(self, batch: Batch) -> tuple[Tensor, HeadValues]:
        """`token_logprobs` and `head_values`, from one pass of the model."""
        ...

    def at(self, temperature: float) -> "Policy":
        """The same with all logits divided by a temperature."""
        ...


class Encoder(Protocol):
    """A model that reads a row as a whole and writes nothing, as an objective sees it."""

    def vectors(self, batch: Batch) -> Tensor:
        """(R, D) a vector of length 1 for each row."""
        ...

    def scores(self, batch: Batch) -> Tensor:
        """(R,) a number for each row."""
        ...


@dataclass(frozen=True)
class Lesson:
    """What an objective wants to be told of each trained-on token by a teacher."""

    top_k: int
    """How many of the likeliest tokens; the others are told as one."""
    temperature: float = 1.0
    """That the teacher's logits are divided by."""
    wants_every_token: bool = True
    """Whether nothing else is learned where it tells nothing."""


@dataclass(frozen=True)
class Told:
    """What a teacher would say at the places of the trained-on tokens of a batch, in the order of its `row_K`."""

    ids_KB: Tensor
    """(K, B) its likeliest tokens; -1 where it names no further one."""
    logprobs_KB: Tensor
    """(K, B + 1) their log-probabilities, and last that of all other tokens together; -inf for what is not there."""


class Teacher(Protocol):
    """A model to learn from, in memory or as what it said once."""

    def told(self, batch: Batch) -> Told:
        """What it says of the batch; without a graph."""
        ...

    def at(self, temperature: float) -> "Teacher":
        """The same with all logits divided by a temperature, too."""
        ...

    def held_bytes(self) -> int:
        """What it holds in memory beside the policy."""
        ...


@dataclass(frozen=True)
class Models:
    """The cast. With an adapter, `reference` is the policy with the adapter off and costs no memory; one that goes on
    from an earlier run keeps a copy of its tensors, as they began, to put in."""

    policy: Policy
    reference: Scorer | None = None
    encoder: Encoder | None = None
    """The policy where that is one; for objectives that train what finds passages."""
    teacher: Teacher | None = None

    def at(self, temperature: float) -> "Models":
        """The same at another temperature: what was sampled is scored as it was sampled."""
        reference = self.reference and self.reference.at(temperature)
        teacher = self.teacher and self.teacher.at(temperature)
        return replace(self, policy=self.policy.at(temperature), reference=reference, teacher=teacher)

    def told(self, batch: Batch) -> Told:
        """What the teacher says of a batch."""
        if self.teacher is None:
            raise ValueError("this objective needs a teacher")
        return self.teacher.told(batch)


@dataclass(frozen=True)
class Loss:
    """What one micro-batch contributes: a sum, never a mean, and metrics as (sum, count)."""

    total: Tensor
    metrics: Mapping[str, Mean] = field(default_factory=dict)


class Objective(Settings, ABC):
    """Implement these in one new file beside this one; nothing else changes."""

    accepts: ClassVar[tuple[type, ...]] = (Conversation, Document)
    """Kinds of example it trains on."""
    keeps_reference: ClassVar[bool] = True
    """Whether the log-probabilities of its rows are all that it asks the reference for, so that they may be kept."""
    least_per_step: ClassVar[int] = 1
    """Fewest examples of a step, where it compares them with one another."""
    rate_factor: ClassVar[float] = 1.0
    """What an adapter's own learning rate is multiplied by where the recipe names none."""
    writes: ClassVar[bool] = True
    """Whether replies are read; else a head reads what was asked, and the trained model is not meant to write."""

    def settled(self, examples: Sequence[Example]) -> Self:
        """The same with what only training rows decide, such as the labels; as it is where nothing is left to decide.

        Raises:
            DataError: a row does not fit it.
        """
        return self

    def shown(self, example: Conversation) -> tuple[Message, ...]:
        """The messages that its rows show."""
        return example.messages

    def head(self) -> HeadShape | None:
        """The head that trains beside the adapter, for `Scorer.head_values` of the policy; None: none."""
        return None

    @property
    def uses_reference(self) -> bool:
        """Whether these settings need `Models.reference`."""
        return False

    def lesson(self) -> Lesson | None:
        """What is asked of `Models.teacher`; None: there is none."""
        return None

    @property
    def reads_probability(self) -> bool:
        """Whether a pair's own `probability` is a soft label to these settings."""
        return False

    @abstractmethod
    def rows(self, example: Example, template: Template) -> tuple[Row, ...]:
        """The training sequences of one example; they stay together in one micro-batch, in this order."""

    @abstractmethod
    def weight(self, batch: Batch) -> float:
        """How many things `loss` sums over: trained tokens, pairs, ..."""

    @abstractmethod
    def loss(self, models: Models, batch: Batch) -> Loss:
        """The summed loss of a micro-batch, with its graph."""

    def whole_step(self, models: Models, batches: Iterable[Batch], memory: Memory) -> Iterable[Batch]:
        """The micro-batches of a step, with what only all of them together, or earlier steps, tell as values of their
        rows. The engine calls it once a step, without a graph, before any loss; validation is one step."""
        return batches

    def remember(self, memory: Memory, metrics: Mapping[str, Mean]) -> Memory:
        """What the next step is told, from the metrics of all of this one."""
        return memory

    def loss_at_start(self) -> float | None:
        """The mean loss while the policy is its reference; None where the rows decide."""
        return None

    def validation_weight(self, batch: Batch) -> float:
        """How many things `validation` sums over."""
        return self.weight(batch)

    def validation(self, models: Models, batch: Batch) -> Loss:
        """What the best step is chosen by, summed over validation rows, and what else is told of them."""
        return self.loss(models, batch)


@dataclass(frozen=True)
class Reply:
    """A reply that the model wrote to a prompt, graded."""

    group: int
    """Replies of one group answer one prompt; groups are counted from 0, in the order of the rollout."""
    row: Row
    """Prompt and reply. Trained on are the tokens that the model wrote; their `token_values` are `sampled_logprob`, and
    what `OnlineObjective.measure` found."""
    reward: float
    truncated: bool
    """It ran into the limit of tokens."""


class OnlineObjective(Objective):
    """Learns from replies that the model writes while it trains (`engine.rollout`), by what they are worth."""

    keeps_reference: ClassVar[bool] = False
    needs_rewards: ClassVar[bool] = True
    """Whether replies are learned from by what graders, or an environment, give for them."""

    @property
    def least_group(self) -> int:
        """Replies to one prompt that it needs at least: 2 where a reply is worth only what the others are not."""
        return 1

    @abstractmethod
    def measure(self, models: Models, batch: Batch) -> Mapping[str, Tensor]:
        """(K,) numbers of the trained-on tokens under the models that sampled them, by name; without a graph."""

    @abstractmethod
    def credit(self, replies: Sequence[Reply], memory: Memory) -> list[Row]:
        """The row of each reply with what it has earned, for `loss`.

        Args:
            replies: a whole rollout, group after group.
            memory: of all steps before it.
        """


def with_value(batch: Batch, name: str, values_R: Tensor | float) -> Batch:
    """The batch with one more value for each of its rows, or the same for all of them."""
    if not isinstance(values_R, Tensor):
        values_R = torch.full((batch.row_count,), values_R, device=batch.row_K.device)
    return replace(batch, values_R={**batch.values_R, name: values_R})


def no_grad_logprobs(scorer: Scorer | None, batch: Batch) -> Tensor:
    """(K,) log-probabilities under a frozen model."""
    if scorer is None:
        raise ValueError("this objective needs a reference model")
    with torch.no_grad():
        return scorer.token_logprobs(batch)


def with_reference(models: Models, batch: Batch) -> Batch:
    """The batch with what the reference makes of it, where `whole_step` asks before `loss` does: it is asked once."""
    return replace(batch, values_K={**batch.values_K, REFERENCE: reference_logprobs(models, batch)})


def reference_logprobs(models: Models, batch: Batch) -> Tensor:
    """(K,) log-probabilities under the reference: those that were kept, where they were."""
    kept_K = batch.values_K.get(REFERENCE)
    return no_grad_logprobs(models.reference, batch) if kept_K is None else kept_K
