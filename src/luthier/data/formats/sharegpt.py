"""ShareGPT: {"conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}, ...]}.

`human` and `user` are the user, `gpt` and `assistant` the assistant; `function_call` is an assistant turn whose value
is the call as JSON, `observation` and `tool` are a tool's result. Turns written {"role", "content"} are read as in
the format messages.
"""

from collections.abc import Mapping
from typing import Any

from luthier.data.formats._chat import ChatFields, parse_json
from luthier.data.read import Record, kind_of
from luthier.data.strict_json import excerpt
from luthier.examples import Conversation, Message, Role

SAMPLE: Mapping[str, Any] = {
    "conversations": [
        {"from": "human", "value": "What is the capital of France?"},
        {"from": "gpt", "value": "Paris"},
    ]
}

SPEAKERS: Mapping[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}


def matches(values: Mapping[str, Any]) -> bool:
    """A row with `conversations`."""
    return "conversations" in values


def parse(record: Record, instruction: str | None = None) -> Conversation:
    """The conversation of a row; `instruction` is its system message if it has none.

    Raises:
        DataError: a field is of the wrong kind, a speaker is unknown, or a function call is not JSON.
    """
    fields = ChatFields(record)
    turns = fields.require("conversations")
    if not isinstance(turns, list):
        raise fields.error(f"'conversations' is {kind_of(turns)}; expected a list of {_EXPECTED}")
    messages = tuple(_turn(fields, turn, f"conversations[{i}]") for i, turn in enumerate(turns))
    return fields.conversation(messages, instruction, fields.tools(fields.take("tools")))


def _turn(fields: ChatFields, turn: Any, at: str) -> Message:
    if not isinstance(turn, Mapping):
        raise fields.error(f"{at} is {kind_of(turn)}; expected {_EXPECTED}")
    if "from" not in turn and "role" in turn:
        return fields.message(turn, at)
    speaker, value = turn.get("from"), turn.get("value")
    if not isinstance(speaker, str) or speaker not in SPEAKERS:
        raise fields.error(f"{at} is from {excerpt(speaker)}; expected one of {', '.join(SPEAKERS)}")
    if not isinstance(value, str):
        raise fields.error(f"{at}.value is {kind_of(value)}; expected a string")
    chat: dict[str, Any] = {k: v for k, v in turn.items() if k not in ("from", "value")}
    if clash := sorted(chat.keys() & {"role", "content"}):
        raise fields.error(f"{at} has both 'from' and {clash[0]!r}; expected {_EXPECTED}")
    chat |= {"role": SPEAKERS[speaker], "content": value}
    if speaker == "function_call":
        calls = parse_json(value, f"{at}.value", fields)
        chat |= {"content": "", "tool_calls": calls if isinstance(calls, list) else [calls]}
    return fields.message(chat, at)


_EXPECTED = '{"from": "human", "value": "..."}'
