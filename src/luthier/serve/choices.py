"""Replies to choose from, as tokens, and their log-probabilities under a served model."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from luthier.data.templates import Template
from luthier.examples import Conversation, Message
from luthier.models.generate import Question, score_choices_batch
from luthier.serve.api_error import ApiError
from luthier.serve.models import ServedModel

GROUP_TOKENS = 1024
"""Scored between two tokens of running completions, where one question does not take more by itself."""


@dataclass(frozen=True, slots=True)
class Choices:
    """A prompt and the replies to choose from, each with the token that ends it."""

    prompt: tuple[int, ...]
    replies: tuple[tuple[int, ...], ...]

    @property
    def tokens(self) -> int:
        """All that is read for it."""
        return len(self.prompt) + sum(map(len, self.replies))


def read_choices(template: Template, messages: Sequence[Message], replies: Sequence[str]) -> Choices:
    """The tokens of each reply, cut as in a training row of this chat.

    Raises:
        TemplateError: the template cannot render these messages.
        ApiError: 400: a reply reads like another one, or begins another one that no token ends.
    """
    rows = []
    for text in replies:
        reply = Message("assistant", text)
        rows.append(template.reply_row(Conversation((*messages, reply)), (reply,)))
    starts = [next(i for i, weight in enumerate(row.loss_mask) if weight) for row in rows]
    ends = [max(i for i, weight in enumerate(row.loss_mask) if weight) + 1 for row in rows]
    cut = [row.ids[start:end] for row, start, end in zip(rows, starts, ends, strict=True)]
    prompts = {tuple(row.ids[:start]) for row, start in zip(rows, starts, strict=True)}
    if len(prompts) != 1 or any(a == b[: len(a)] for i, a in enumerate(cut) for j, b in enumerate(cut) if i != j):
        raise ApiError(
            "This model's chat template makes the same tokens of two options, so they cannot be told apart.",
            param="questions",
            code="invalid_value",
        )
    return Choices(prompts.pop(), tuple(tuple(one) for one in cut))


def require_room(served: ServedModel, asked: Sequence[Choices]) -> None:
    """Check that each prompt with its longest reply fits in the context.

    Raises:
        ApiError: 400.
    """
    longest = max(len(one.prompt) + max(map(len, one.replies)) for one in asked)
    if longest > served.max_tokens:
        raise ApiError(
            f"This model's context is {served.max_tokens} tokens: the longest question with its input has {longest}.",
            param="input",
            code="context_length_exceeded",
        )


def grouped(asked: Sequence[Choices]) -> Iterator[list[Choices]]:
    """Questions that are scored together: what their prompts share is computed once for all of them."""
    group: list[Choices] = []
    size = 0
    for one in asked:
        shared = _shared(group[0].prompt, one.prompt) if group else 0
        if group and size + one.tokens - shared > GROUP_TOKENS:
            yield group
            group, size, shared = [], 0, 0
        group.append(one)
        size += one.tokens - shared
    yield group


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def score(served: ServedModel, group: Sequence[Choices]) -> list[list[float]]:
    """Log-probability of each reply; for the thread that computes."""
    questions: list[Question] = [(one.prompt, one.replies) for one in group]
    return score_choices_batch(served.loaded, questions, batch_tokens=sys.maxsize)
