"""What the HTTP side needs of a model and of what computes it, whichever program that is."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol, TypeAlias, TypeVar

from luthier.data.call_forms import Calls
from luthier.examples import Message
from luthier.serve.chat import ChatRequest
from luthier.serve.classification import ClassifyRequest
from luthier.serve.completion import CompletionRequest
from luthier.serve.decision import DecisionRequest
from luthier.serve.reward import ScoreRequest
from luthier.serve.work import Event, Work

T = TypeVar("T")
Asked: TypeAlias = ChatRequest | CompletionRequest | DecisionRequest | ScoreRequest | ClassifyRequest


class Reads(Protocol):
    """A chat template with its tokenizer."""

    @property
    def calls(self) -> Calls | None:
        """How it writes tool calls; None if nobody knows."""

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """The prompt of a chat; raises TemplateError."""

    def text_ids(self, text: str) -> list[int]:
        """The prompt of a plain text; raises TemplateError."""

    def parse_reply(self, ids: Sequence[int]) -> Message:
        """The message that generated tokens mean."""


class Served(Protocol):
    """A model under a name."""

    @property
    def name(self) -> str:
        """What requests call it."""

    @property
    def created(self) -> int:
        """Unix seconds."""

    @property
    def fingerprint(self) -> str:
        """Identifies weights and template."""

    @property
    def max_tokens(self) -> int:
        """Most tokens of a prompt and its answer."""

    @property
    def vocabulary(self) -> int:
        """Token ids are below this."""

    @property
    def template(self) -> Reads:
        """What reads its prompts."""

    def require(self, asked: Asked) -> None:
        """Refuse what this model cannot honor, with an ApiError 400 that names it."""


class Running(Protocol):
    """A piece of work that was taken."""

    def cancel(self) -> None:
        """Give it up; nothing is delivered any more."""


class Computes(Protocol):
    """What computes the models of a process."""

    @property
    def models(self) -> Mapping[str, Any]:
        """What can be asked for, by name."""

    @property
    def healthy(self) -> bool:
        """Whether requests are worked on."""

    def start(self) -> None:
        """Begin to work."""

    def stop(self) -> None:
        """End; requests that are still there fail."""

    def submit(self, work: Work, deliver: Callable[[Event], None]) -> Running:
        """Queue a piece of work; `deliver` is called once for each event, from another thread."""

    def add(self, served: Any) -> "Future[None]":
        """Serve one more model."""

    def remove(self, name: str) -> "Future[None]":
        """Stop to serve a model."""

    def compute(self, call: Callable[[], T]) -> "Future[T]":
        """Call something in the thread that computes."""
