"""Replies and prompts that are empty or hold nothing but white space.

An empty reply teaches the model to say nothing; an empty prompt teaches it to answer a question nobody asked.
"""

from collections.abc import Sequence

from luthier.data.checks.base import EMPTY_REPLY, Check, Finding, Tally
from luthier.examples import Conversation, Document, Example, Judged, Message, Preference


class Empty(Check):
    """Counts rows with an empty reply, an empty prompt, or no text at all."""

    def __init__(self) -> None:
        self._replies, self._prompts, self._documents = Tally(), Tally(), Tally()

    def see(self, example: Example, split: str) -> None:
        """Look at the turns that are trained on, and at the user's."""
        if isinstance(example, Document):
            if not example.text.strip():
                self._documents.add(example.where)
            return
        if isinstance(example, Conversation):
            prompt, replies = example.messages, [m for m in example.messages if m.role == "assistant"]
        elif isinstance(example, Judged):
            prompt, replies = example.prompt, [*example.reply]
        else:
            prompt, replies = example.prompt, [*example.chosen, *example.rejected]
        is_one_sided = isinstance(example, Preference) and not (example.chosen and example.rejected)
        if is_one_sided or any(_is_empty(message) for message in replies):
            self._replies.add(example.where)
        if _asks_nothing(prompt):
            self._prompts.add(example.where)

    def findings(self) -> list[Finding]:
        """Errors: such a row is never meant."""
        advice = "remove these rows, or look for the field that was lost when they were exported"
        kinds = (
            (self._replies, EMPTY_REPLY),
            (self._prompts, "an empty prompt"),
            (self._documents, "no text in the document"),
        )
        return [
            Finding("empty", "error", what, advice, tuple(tally.where), tally.count)
            for tally, what in kinds
            if tally.count
        ]


def _is_empty(message: Message) -> bool:
    return not message.tool_calls and not message.content.strip()


def _asks_nothing(messages: Sequence[Message]) -> bool:
    """True when a user turn is blank; a prompt of system turns alone is a prompt."""
    return any(m.role == "user" and not m.content.strip() for m in messages)
