"""What the server asks of a backend, and what comes back: token ids in, pieces of text out. No HTTP or torch here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from luthier.serve.api_error import ApiError

StopReason: TypeAlias = Literal["stop", "length"]
MAX_PROMPTS = 16
"""Prompts that one request to /v1/completions may carry."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen.

    Log-probabilities that are reported are the model's own, before temperature, penalties and bias.
    """

    temperature: float = 1.0
    """0 takes the most likely token."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens whose probability reaches this."""
    seed: int | None = None
    """None draws a fresh one."""
    presence_penalty: float = 0.0
    """Taken from the logit of every token that has been generated at least once."""
    frequency_penalty: float = 0.0
    """Taken from a token's logit once for each time it has been generated."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logit of a token id."""
    top_logprobs: int | None = None
    """How many alternatives are reported for each token; None reports no log-probabilities at all."""


@dataclass(frozen=True, slots=True)
class Held:
    """What completions are held to while they are written."""

    grammar: str
    """As `llguidance` reads it."""
    param: str
    """The field of the request that asked for it."""
    what: str
    """It in words."""


@dataclass(frozen=True, slots=True)
class Work:
    """`n` completions of one prompt by one model."""

    model: str
    ids: tuple[int, ...]
    """The prompt, at least one token."""
    max_new_tokens: int
    sampling: Sampling = Sampling()
    n: int = 1
    stop: tuple[str, ...] = ()
    """Texts that end a completion and are not part of it."""
    deadline_seconds: float = 600.0
    held: Held | None = None


@dataclass(frozen=True, slots=True)
class TokenScore:
    """One generated token with its log-probability and the likeliest alternatives: (text, bytes, log-probability)."""

    text: str
    data: bytes
    logprob: float
    top: tuple[tuple[str, bytes, float], ...]


@dataclass(frozen=True, slots=True)
class Delta:
    """The next piece of completion `index`: whole characters that no stop text can take back any more."""

    index: int
    text: str
    tokens: tuple[TokenScore, ...] = ()


@dataclass(frozen=True, slots=True)
class Done:
    """Completion `index` is over. `ids` are its tokens without the one that ended the turn."""

    index: int
    reason: StopReason
    ids: tuple[int, ...]
    generated_tokens: int
    """What was computed, the end-of-turn token included."""
    cut: bool
    """True if a stop text ended it, so that `ids` hold more than the text that was sent."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The whole request failed; nothing follows."""

    error: ApiError


Event: TypeAlias = Delta | Done | Failed


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished completion, put together."""

    text: str
    tokens: tuple[TokenScore, ...]
    done: Done


class Whole:
    """Puts one completion together from its pieces."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._tokens: list[TokenScore] = []

    def add(self, delta: Delta) -> None:
        """The next piece."""
        self._texts.append(delta.text)
        self._tokens.extend(delta.tokens)

    def finish(self, done: Done) -> Completion:
        """The completion, when nothing follows any more."""
        return Completion("".join(self._texts), tuple(self._tokens), done)
