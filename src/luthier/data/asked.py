"""Chats as what is asked: where a reply is written, and what graders see of a row."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from luthier.data.write import message_values
from luthier.examples import Conversation, Example, Judged, Message, Preference


def item_of(example: Conversation) -> dict[str, Any]:
    """What graders and environments see of a row: its own fields; its target; its messages but the last reply; and
    that reply's text as `reference_answer`."""
    answer = reference_of(example)
    return {
        **dict(example.extra),
        "messages": [message_values(message) for message in asked(example)],
        **({} if example.target is None else {"target": example.target}),
        **({} if answer is None else {"reference_answer": answer.content}),
    }


def asked(example: Conversation) -> tuple[Message, ...]:
    """The messages that are answered: those before a last reply, or all where none stands there."""
    messages = example.messages
    return messages[:-1] if messages and messages[-1].role == "assistant" else messages


def reference_of(example: Conversation) -> Message | None:
    """The reply that the row gives; None: it gives none, or an empty one (`with_place_for_reply`)."""
    last = example.messages[-1] if asked(example) != example.messages else None
    return last if last is not None and (last.content or last.tool_calls) else None


def says_what_is_right(example: Conversation) -> bool:
    """Whether it has a reply or a target; a row that only asks may hold the empty place of a reply."""
    return example.target is not None or reference_of(example) is not None


def with_place_for_reply(example: Example) -> Example:
    """The example with an empty reply where it ends with a question: what the model will be asked for. Rows of graded
    replies need no reply of their own; all else that looks at rows finds the place where one is written."""
    if not isinstance(example, Conversation) or example.messages[-1:] != asked(example)[-1:]:
        return example
    return replace(example, messages=(*example.messages, Message("assistant")))


def conversations(examples: Sequence[Example]) -> list[Conversation]:
    """The rows as questions with a wanted answer.

    A preference pair asks its prompt and wants the chosen reply, a judged one its reply if it was good; raw text asks
    nothing and is left out, as is a bad reply.
    """
    rows = []
    for example in examples:
        wanted = example.chosen if isinstance(example, Preference) else None
        wanted = example.reply if isinstance(example, Judged) and example.good else wanted
        if isinstance(example, Preference | Judged) and wanted is not None:
            messages, group, extra = example.prompt + wanted, example.group, example.extra
            example = Conversation(messages, example.tools, example.where, example.id, group=group, extra=extra)
        if isinstance(example, Conversation):
            rows.append(example)
    return rows
