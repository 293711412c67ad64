"""Replies to choose from, as tokens, and their log-probabilities under a served model."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from luthier.examples import Conversation, Message
from luthier.models.generate import Question, score_choices_batch
from luthier.serve.api_error import ApiError
from luthier.serve.models import ServedModel

GROUP_TOKENS = 1024
"""Most that is scored with a first prompt between two tokens of running completions; its own replies may be more."""


@dataclass(frozen=True, slots=True)
class Choices:
    """A prompt and the replies to choose from, each with the token that ends it."""

    prompt: tuple[int, ...]
    replies: tuple[tuple[int, ...], ...]

    @property
    def tokens(self) -> int:
        """All that is read for it."""
        return len(self.prompt) + sum(map(len, self.replies))


class Reading:
    """Reads the options of one question, one at a time: each needs the whole chat rendered anew."""

    def __init__(self, served: ServedModel, messages: Sequence[Message]) -> None:
        self._served, self._messages = served, messages
        self._prompt: tuple[int, ...] | None = None
        self._replies: list[tuple[int, ...]] = []

    def add(self, text: str) -> None:
        """The tokens of one more reply, cut as in a training row of this chat.

        Raises:
            TemplateError: the template cannot render these messages.
            ApiError: 400: the prompt with this reply does not fit in the context, or the prompt is another than before.
        """
        reply = Message("assistant", text)
        row = self._served.template.reply_row(Conversation((*self._messages, reply)), (reply,))
        trained = [i for i, weight in enumerate(row.loss_mask) if weight]
        start, end = trained[0], trained[-1] + 1
        if end > self._served.max_tokens:
            raise ApiError(
                f"This model's context is {self._served.max_tokens} tokens: a question with its input has {end}.",
                param="input",
                code="context_length_exceeded",
            )
        prompt = row.ids[:start]
        if self._prompt is None:
            self._prompt = prompt
        elif prompt != self._prompt:
            raise _alike()
        self._replies.append(row.ids[start:end])

    def choices(self) -> Choices:
        """What was read.

        Raises:
            ApiError: 400: a reply reads like another one, or begins another one that no token ends.
        """
        assert self._prompt is not None
        # in order, what begins with a reply follows it at once
        if any(b[: len(a)] == a for a, b in pairwise(sorted(self._replies))):
            raise _alike()
        return Choices(self._prompt, tuple(self._replies))


def _alike() -> ApiError:
    return ApiError(
        "This model's chat template makes the same tokens of two options, so they cannot be told apart.",
        param="questions",
        code="invalid_value",
    )


def grouped(asked: Sequence[Choices]) -> Iterator[list[Choices]]:
    """Questions that are scored together: what their prompts share is computed once for all of them.

    The first prompt of a group is not counted: a long input would leave no room, and be read again for each question.
    """
    group: list[Choices] = []
    size = 0
    for one in asked:
        more = one.tokens - (_shared(group[0].prompt, one.prompt) if group else 0)
        if group and size + more > GROUP_TOKENS:
            yield group
            group = []
        size = size + more if group else sum(map(len, one.replies))
        group.append(one)
    yield group


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def score(served: ServedModel, group: Sequence[Choices]) -> list[list[float]]:
    """Log-probability of each reply; for the thread that computes."""
    questions: list[Question] = [(one.prompt, one.replies) for one in group]
    return score_choices_batch(served.loaded, questions, batch_tokens=sys.maxsize)
