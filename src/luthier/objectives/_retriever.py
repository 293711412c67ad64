"""What objectives that train a retriever share: rows of questions and passages, which no chat template makes.

A question knows by number which passages answer it, so that none of them is taken for a wrong one because another
question brought it into the step. Numbers are told as values of rows: `passage` of a passage, -1 of a question;
`positive`, the passage that a question is to find, -1 of a passage; and in `right_0_from`, `right_0_to` and so on the
ranges of all passages that answer it, ends included, as passages of one source follow one another.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Generic, Literal, NoReturn, Protocol, TypeAlias, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from luthier import registry
from luthier.config import Settings
from luthier.data.templates import Template
from luthier.errors import RecipeError
from luthier.examples import Conversation, Example, Row
from luthier.models.encoder import SEGMENT
from luthier.models.forest import Batch
from luthier.objectives.base import Encoder, Models, Objective

Part: TypeAlias = Literal["embedder", "reranker"]
PASSAGE, POSITIVE = "passage", "positive"
NONE = -1
DEPTH = 10
"""Places beyond which a passage counts as not found."""


@dataclass(frozen=True)
class Sought:
    """A question, what answers it, and what does not although a search says so. Passages are numbers."""

    id: str
    question: str
    positive: int
    """The passage that it is to find."""
    right: tuple[int, ...]
    """All that answer it, ascending, `positive` among them."""
    wrong: tuple[int, ...] = ()
    """Some that do not, the hardest first."""
    found: tuple[int, ...] = ()
    """What a search finds, the best first, right or wrong."""


class Singles(Protocol):
    """Questions and passages as an embedder reads them, each by itself."""

    def question(self, text: str) -> tuple[int, ...]:
        """Its tokens."""
        ...

    def passage(self, number: int) -> tuple[int, ...]:
        """Its tokens."""
        ...


class Pairs(Protocol):
    """Questions beside passages, as a reranker reads them."""

    def pair(self, question: str, number: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The tokens of a question and a passage together, and of which of the two each is (0, 1)."""
        ...


Texts = TypeVar("Texts")
"""`Singles` or `Pairs`: how what is trained reads."""


class RetrieverObjective(Objective, Generic[Texts]):
    """Trains what finds passages, on questions whose right passages are known."""

    accepts: ClassVar[tuple[type, ...]] = (Conversation,)
    trains: ClassVar[Part]
    """Which setting of `[retrieval]` takes what was trained."""

    negatives: int = Field(2, ge=0)
    """Wrong passages beside each right one: those that the search of `[retrieval]` ranks highest."""
    validation_passages: int = Field(1000, ge=2)
    """Among how many passages the validation questions are to find theirs, which chooses the best step: the right ones,
    those that the search ranks highest, and others."""

    def rows(self, example: Example, template: Template) -> NoReturn:
        """Refused: a question's rows come of the corpus too.

        Raises:
            RecipeError: always.
        """
        raise self.refusal()

    @classmethod
    def refusal(cls) -> RecipeError:
        """What is said where a model that writes is wanted."""
        return RecipeError(
            f"objective.type = {registry.name_of(cls)!r} trains {cls.trains}s, which write nothing: `luthier train` "
            f"and `luthier run` take such a recipe, `luthier serve --{cls.trains} RUN` what it trained, and "
            "RUN/retrieval.json tells what that finds (docs/retrievers.md)"
        )

    @abstractmethod
    def training(self, sought: Sequence[Sought], texts: Texts) -> list[tuple[Row, ...]]:
        """The rows of each question that is learned from; they stay together in one micro-batch."""

    @abstractmethod
    def validating(self, sought: Sequence[Sought], pool: Sequence[int], texts: Texts) -> list[tuple[Row, ...]]:
        """The rows by which the best step is chosen.

        Args:
            sought: questions that are not trained on.
            pool: passages among which they are to find the right ones.
            texts: of both.
        """


class EmbedderObjective(RetrieverObjective[Singles]):
    """Trains vectors of questions and passages."""

    trains: ClassVar[Part] = "embedder"


class RerankerObjective(RetrieverObjective[Pairs]):
    """Trains numbers for questions beside passages."""

    trains: ClassVar[Part] = "reranker"


def require_writes(objective: Settings) -> None:
    """Check that an objective trains a model that writes.

    Raises:
        RecipeError: it trains a retriever.
    """
    if isinstance(objective, RetrieverObjective):
        raise objective.refusal()


def encoder_of(models: Models) -> Encoder:
    """What is trained."""
    if models.encoder is None:
        raise ValueError("this objective needs an encoder")
    return models.encoder


def ranges(right: Sequence[int]) -> list[tuple[int, int]]:
    """The same numbers as ranges, ends included."""
    found: list[tuple[int, int]] = []
    for number in right:
        if found and number == found[-1][1] + 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found


def text_row(ids: Sequence[int], id: str, values: Mapping[str, float]) -> Row:
    """A text as a row. What is trained is its vector, and no token of it is predicted: that the last one is marked says
    to the engine that the row has something to learn."""
    return Row(tuple(ids), (*[0.0] * (len(ids) - 1), 1.0), id, values)


def pair_row(ids: Sequence[int], segments: Sequence[int], id: str, values: Mapping[str, float]) -> Row:
    """A question and a passage as a row."""
    row = text_row(ids, id, values)
    return replace(row, token_values={SEGMENT: tuple(map(float, segments))} if segments else {})


def told(most: int, positive: int = NONE, right: Sequence[int] = (), passage: int = NONE) -> dict[str, float]:
    """The values of a row; `most`: ranges that any row of the run has."""
    known = ranges(right)
    values = {PASSAGE: float(passage), POSITIVE: float(positive)}
    for at in range(most):
        first, last = known[at] if at < len(known) else (NONE, NONE)
        values |= {f"right_{at}_from": float(first), f"right_{at}_to": float(last)}
    return values


def rights(values_Q: Mapping[str, Tensor], numbers_P: Tensor) -> Tensor:
    """(Q, P) whether a passage is one that answers a question; `values_Q`: of the questions, by name."""
    found_QP = torch.zeros(len(values_Q[POSITIVE]), len(numbers_P), dtype=torch.bool, device=numbers_P.device)
    for name in values_Q:
        if name.startswith("right_") and name.endswith("_from"):
            first_Q, last_Q = values_Q[name], values_Q[name.replace("_from", "_to")]
            found_QP |= (numbers_P >= first_Q[:, None]) & (numbers_P <= last_Q[:, None])
    return found_QP


def questions_of(batch: Batch) -> Tensor:
    """(R,) whether a row is a question."""
    return batch.values_R[POSITIVE] >= 0
