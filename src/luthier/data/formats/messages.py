"""Chat: {"messages": [{"role", "content"}, ...]}, with tools, tool calls and per-message weights (OpenAI's shape).

This is also the one canonical form in which Luthier writes conversations, so what `write_examples` wrote is read
here to equal examples. Roles are system, developer, user, assistant and tool; `arguments` of a tool call may be an
object or its JSON text.
"""

from collections.abc import Mapping
from typing import Any

from luthier.data.formats._chat import ChatFields
from luthier.data.read import Record
from luthier.examples import Conversation

SAMPLE: Mapping[str, Any] = {
    "messages": [
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": "Paris"},
    ]
}


def matches(values: Mapping[str, Any]) -> bool:
    """A row with `messages`."""
    return "messages" in values


def parse(record: Record, instruction: str | None = None) -> Conversation:
    """The conversation of a row; `instruction` is its system message if it has none.

    Raises:
        DataError: a field is of the wrong kind, a role is unknown, or a message holds what cannot be trained on.
    """
    fields = ChatFields(record)
    messages = fields.messages(fields.require("messages"), "messages")
    if fields.values.get("functions"):
        raise fields.error("'functions' is OpenAI's old shape and would be lost; write the functions as 'tools'")
    return fields.conversation(messages, instruction, fields.tools(fields.take("tools")))
