"""What a row of data means, once it is read: a conversation, a preference, a judged reply or a document.

No torch here.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

Role: TypeAlias = Literal["system", "developer", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Where:
    """The file and the 1-based line (row number in CSV and Parquet) that an example came from.

    `row` counts the rows of a JSON array from 1, since several may stand on one line; 0 where the line tells all.
    """

    path: str
    line: int
    row: int = 0

    def __str__(self) -> str:
        path, unit, number = self.parts()
        return f"{path}, {unit} {number}"

    def parts(self) -> tuple[str, str, int]:
        """The path as it is shown, `line` or `row`, and which one."""
        here = os.getcwd() + os.sep  # a path below the current folder reads better, and names no one's home
        return self.path.removeprefix(here), "row" if self.row else "line", self.row or self.line


NOWHERE = Where("<memory>", 0)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One function call by the assistant; `arguments` is the parsed object, never its JSON text."""

    name: str
    arguments: Mapping[str, Any]
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `weight` 0 keeps an assistant turn in the prompt but out of the loss; None means the default."""

    role: Role
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    weight: float | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """A chat that ends with an assistant turn when it is trained on.

    `target` is the structured answer when the data gives one (a JSON object, a label); `group` names rows that
    must stay on one side of a split; `extra` holds the fields that no format claims.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    where: Where = NOWHERE
    id: str = ""
    target: Any = None
    group: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The messages before the last assistant turn."""
        return self.messages[: self._last_assistant()]

    @property
    def completion(self) -> Message | None:
        """The last assistant turn, or None if there is none."""
        index = self._last_assistant()
        return self.messages[index] if index < len(self.messages) else None

    def _last_assistant(self) -> int:
        for index in range(len(self.messages) - 1, -1, -1):
            if self.messages[index].role == "assistant":
                return index
        return len(self.messages)


@dataclass(frozen=True, slots=True)
class Preference:
    """Two replies to one prompt, the first of which was preferred. Each reply is one message or several."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    where: Where = NOWHERE
    id: str = ""
    group: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Judged:
    """A reply to a prompt, of one message or several, and whether it was good; nothing it was compared with."""

    prompt: tuple[Message, ...]
    reply: tuple[Message, ...]
    good: bool
    tools: tuple[Mapping[str, Any], ...] = ()
    where: Where = NOWHERE
    id: str = ""
    group: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Document:
    """Raw text, trained on from its first token to its last."""

    text: str
    where: Where = NOWHERE
    id: str = ""
    group: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def prompt(self) -> tuple[Message, ...]:
        """Nothing: raw text is an answer to nobody."""
        return ()


Example: TypeAlias = Conversation | Preference | Judged | Document


@dataclass(frozen=True, slots=True)
class Row:
    """One training sequence. `loss_mask[i]` is the weight with which token i is predicted: 0 is not trained on.

    What else an objective needs of a row (whether it was liked, its advantage, what its tokens were sampled with) goes
    with it under a name of the objective's, as one number, or as one for each token.
    """

    ids: tuple[int, ...]
    loss_mask: tuple[float, ...]
    id: str = ""
    values: Mapping[str, float] = field(default_factory=dict, hash=False)
    token_values: Mapping[str, tuple[float, ...]] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name, numbers in (("mask entries", self.loss_mask), *self.token_values.items()):
            if len(self.ids) != len(numbers):
                raise ValueError(f"{len(self.ids)} ids but {len(numbers)} {name}")

    def taken(self, positions: Sequence[int]) -> "Row":
        """The row with the tokens at these positions alone."""

        def at(numbers: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(numbers[i] for i in positions)

        token_values = {name: at(numbers) for name, numbers in self.token_values.items()}
        return replace(self, ids=at(self.ids), loss_mask=at(self.loss_mask), token_values=token_values)

    def first(self, length: int) -> "Row":
        """The row up to a length."""
        return self if length >= len(self.ids) else self.taken(range(length))

    def telling(self, found: Mapping[str, Sequence[float]]) -> "Row":
        """The row with these numbers, by name, of each token that is trained on; 0 for all others.

        Raises:
            ValueError: there are more or fewer numbers than such tokens.
        """
        trained = [i for i, weight in enumerate(self.loss_mask) if weight and i]
        token_values = dict(self.token_values)
        for name, numbers in found.items():
            told = dict(zip(trained, numbers, strict=True))
            token_values[name] = tuple(told.get(i, 0.0) for i in range(len(self.ids)))
        return replace(self, token_values=token_values)

    @property
    def trained_tokens(self) -> int:
        """How many tokens of the row are trained on."""
        return sum(1 for m in self.loss_mask[1:] if m)
