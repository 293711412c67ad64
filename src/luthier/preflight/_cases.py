"""Rows as the gates look at them: each with the conversation it came from and the turns that should be trained on.

What should be trained on is worked out here a second time, from the example and the prompts that are served, so that
the gates compare two derivations instead of believing one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypeVar

from luthier.data.templates import Template
from luthier.errors import LuthierError
from luthier.examples import Document, Example, Judged, Message, Preference, Row, Where
from luthier.objectives.base import Objective

T = TypeVar("T")
Change: TypeAlias = Callable[[str, str], str]


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most `count` items, evenly spaced, the first and the last among them."""
    if len(items) <= count:
        return list(items)
    if count == 1:
        return [items[0]]
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def shared_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens the two begin with together."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


@dataclass(frozen=True)
class Span:
    """A run of trained tokens: ids[start:end] of one row."""

    start: int
    end: int


def spans(row: Row) -> list[Span]:
    """The runs of tokens whose loss mask is not 0."""
    found: list[Span] = []
    start = -1
    for index, weight in enumerate((*row.loss_mask, 0.0)):
        if weight and start < 0:
            start = index
        elif not weight and start >= 0:
            found.append(Span(start, index))
            start = -1
    return found


@dataclass(frozen=True)
class Turn:
    """An assistant message that should be trained on, and the prompt that it answers as the server would send it."""

    index: int
    message: Message
    prompt_ids: tuple[int, ...]

    @property
    def weight(self) -> float:
        """The loss mask that its tokens should have."""
        return 1.0 if self.message.weight is None else self.message.weight


@dataclass(frozen=True)
class Case:
    """One sequence of messages with the rows it became.

    A preference is two cases, one for each reply. `whole` are the rows without a limit of tokens. A document has no
    messages and no turns. `error` says why nothing could be rendered.
    """

    example: Example
    messages: tuple[Message, ...]
    tools: tuple[Any, ...] = ()
    rows: tuple[Row, ...] = ()
    whole: tuple[Row, ...] = ()
    turns: tuple[Turn, ...] = ()
    error: str = ""

    @property
    def where(self) -> Where:
        """File and line of the example."""
        return self.example.where

    @property
    def row_id(self) -> str:
        """The id of the row, or of the example."""
        return self.whole[0].id if self.whole else self.example.id

    @property
    def lost_tokens(self) -> int:
        """Tokens that the limit cut off."""
        return sum(len(r.ids) for r in self.whole) - sum(len(r.ids) for r in self.rows)

    def turn_rows(self) -> list[tuple[Turn, Row]]:
        """Each turn with the untruncated row that trains it: one row for all turns, or one row a turn.

        Empty when rows and turns cannot be paired; the gate `rendered` reports that.
        """
        if len(self.whole) == 1:
            return [(turn, self.whole[0]) for turn in self.turns]
        return list(zip(self.turns, self.whole, strict=True)) if len(self.whole) == len(self.turns) else []


def render_cases(
    examples: Sequence[Example], objective: Objective, template: Template, untruncated: Template, loss_on: str
) -> Iterator[Case]:
    """The cases of each example, in order; one that cannot be rendered becomes a case with an `error`."""
    for example in examples:
        try:
            yield from _render(example, objective, template, untruncated, loss_on)
        except LuthierError as error:
            yield Case(example, (), error=str(error).removeprefix(f"{example.where}: "))


def _render(
    example: Example, objective: Objective, template: Template, untruncated: Template, loss_on: str
) -> Iterator[Case]:
    rows, whole = objective.rows(example, template), objective.rows(example, untruncated)
    if isinstance(example, Preference | Judged):
        replies = (example.reply,) if isinstance(example, Judged) else (example.chosen, example.rejected)
        if not len(rows) == len(whole) == len(replies):
            yield Case(example, (), error=f"{len(rows)} rows for {len(replies)} replies; expected one for each")
            return
        for index, reply in enumerate(replies):
            messages = example.prompt + reply
            turns = _turns(messages, example.tools, range(len(example.prompt), len(messages)), template)
            yield Case(example, messages, example.tools, rows[index : index + 1], whole[index : index + 1], turns)
    elif isinstance(example, Document):
        yield Case(example, (), (), rows, whole)
    elif not objective.writes:
        yield Case(example, objective.shown(example), (), rows, whole)
    else:
        answers = [i for i, m in enumerate(example.messages) if m.role == "assistant"]
        wanted = answers[-1:] if loss_on == "last_assistant" else answers
        turns = _turns(example.messages, example.tools, wanted, template)
        yield Case(example, example.messages, example.tools, rows, whole, turns)


def _turns(
    messages: tuple[Message, ...], tools: tuple[Any, ...], wanted: Sequence[int], template: Template
) -> tuple[Turn, ...]:
    trained = [i for i in wanted if messages[i].role == "assistant" and messages[i].weight != 0]
    prompts = template.prompt_ids_before(messages, trained, tools)
    return tuple(Turn(i, messages[i], tuple(ids)) for i, ids in zip(trained, prompts, strict=True))


def map_strings(example: Example, change: Change) -> Example:
    """The same example with every text in it replaced by `change(text, role)`; structure, names and roles stay.

    The role is the message's; `arguments` for those of a tool call, `schema` for a tool's, `document` for raw text.
    """
    if isinstance(example, Document):
        return replace(example, text=change(example.text, "document"))
    if isinstance(example, Preference):
        return replace(
            example,
            prompt=_map_messages(example.prompt, change),
            chosen=_map_messages(example.chosen, change),
            rejected=_map_messages(example.rejected, change),
            tools=tuple(_map_value(tool, change, "schema") for tool in example.tools),
        )
    if isinstance(example, Judged):
        return replace(
            example,
            prompt=_map_messages(example.prompt, change),
            reply=_map_messages(example.reply, change),
            tools=tuple(_map_value(tool, change, "schema") for tool in example.tools),
        )
    return replace(
        example,
        messages=_map_messages(example.messages, change),
        tools=tuple(_map_value(tool, change, "schema") for tool in example.tools),
    )


def _map_messages(messages: tuple[Message, ...], change: Change) -> tuple[Message, ...]:
    return tuple(
        replace(
            m,
            content=change(m.content, m.role),
            tool_calls=tuple(replace(c, arguments=_map_value(c.arguments, change, "arguments")) for c in m.tool_calls),
        )
        for m in messages
    )


def _map_value(value: Any, change: Change, role: str) -> Any:
    if isinstance(value, str):
        return change(value, role)
    if isinstance(value, Mapping):
        return {key: _map_value(inner, change, role) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_map_value(inner, change, role) for inner in value]
    return value
