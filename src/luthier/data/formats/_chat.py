"""Messages, tools and tool calls of a chat row, in OpenAI's shape, as typed values.

A part of a message that could not be trained on or kept is an error, since a field that is silently dropped (tool
calls above all) trains the model on something else than the data says.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from luthier.data.formats.base import Fields
from luthier.data.read import Record, kind_of
from luthier.data.strict_json import excerpt, loads
from luthier.examples import ROLES, Message, ToolCall

_KNOWN = frozenset({"role", "content", "tool_calls", "tool_call_id", "name", "weight"})
# what the assistant said or did in fields that no template here renders: keeping quiet would lose it
_REFUSED = {
    "function_call": "write it as tool_calls",
    "reasoning_content": "put the reasoning into content, or remove it",
    "reasoning": "put the reasoning into content, or remove it",
    "thinking": "put the reasoning into content, or remove it",
    "refusal": "put the refusal into content",
    "audio": "only text can be trained on",
    "images": "only text can be trained on",
}
LEFTOVERS = "message_fields"
"""Key in `extra` of message fields that mean nothing to training: [{"message": "messages[0]", "fields": {...}}]."""


class ChatFields(Fields):
    """Fields of a record that holds messages; keeps what single messages carry beyond the known fields."""

    def __init__(self, record: Record) -> None:
        super().__init__(record)
        self.leftovers: list[dict[str, Any]] = []

    def messages(self, value: Any, name: str) -> tuple[Message, ...]:
        """A list of {role, content, ...} objects as messages.

        Raises:
            DataError: it is not such a list; says which message and field, and what was expected.
        """
        if not isinstance(value, list):
            raise self.error(f"{name!r} is {kind_of(value)}; expected a list of messages such as {_EXPECTED}")
        return tuple(_plain(item) or self.message(item, f"{name}[{i}]") for i, item in enumerate(value))

    def message(self, value: Any, at: str) -> Message:
        """One {role, content, ...} object as a message; `at` is its place in the row, for error messages."""
        if not isinstance(value, Mapping):
            raise self.error(f"{at} is {kind_of(value)}; expected a message such as {_EXPECTED}")
        role = value.get("role")
        if role not in ROLES:
            hint = "; a function's result has the role 'tool'" if role == "function" else ""
            found = f"the unknown role {excerpt(role)}" if isinstance(role, str) else f"the role {kind_of(role)}"
            raise self.error(f"{at} has {found}; expected one of {', '.join(ROLES)}{hint}")
        self._refuse(value, at)
        calls = self.tool_calls(value.get("tool_calls"), f"{at}.tool_calls")
        if calls and role != "assistant":
            raise self.error(f"{at} is a {role} message with tool_calls; only an assistant message can have them")
        return Message(
            role,
            self._content(value, role, at),
            calls,
            self._optional(value, "tool_call_id", at),
            self._optional(value, "name", at),
            self._weight(value.get("weight"), at),
        )

    def _refuse(self, value: Mapping[str, Any], at: str) -> None:
        rest = {k: v for k, v in value.items() if k not in _KNOWN and v is not None}
        for key, advice in _REFUSED.items():
            if rest.get(key):
                raise self.error(f"{at} has the field {key!r}, which would not be trained on; {advice}")
        if rest:
            self.keep(at, rest)

    def keep(self, at: str, fields: Mapping[str, Any]) -> None:
        """Keep fields of a message that nobody reads, for `extra`."""
        self.leftovers.append({"message": at, "fields": dict(fields)})

    def _content(self, value: Mapping[str, Any], role: str, at: str) -> str:
        content = value.get("content")
        if content is None:
            # in Parquet a null cannot be told from an absent field, and an assistant may say nothing
            given = "content" in value or value.get("tool_calls") or self.kind == "parquet"
            if role == "assistant" and given:
                return ""
            raise self.error(f"{at} ({role}) has no content; expected text, which may be empty")
        return text_of(content, f"{at}.content", self)

    def _optional(self, value: Mapping[str, Any], key: str, at: str) -> str | None:
        text = value.get(key)
        if text is not None and not isinstance(text, str):
            raise self.error(f"{at}.{key} is {kind_of(text)}; expected a string")
        return text

    def _weight(self, value: Any, at: str) -> float | None:
        if value is None:
            return None
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 <= value <= sys.float_info.max:
            raise self.error(f"{at}.weight is {excerpt(value)}; expected a number, 0 or more, that a float can hold")
        return float(value)

    def tool_calls(self, value: Any, at: str) -> tuple[ToolCall, ...]:
        """A list of calls in OpenAI's shape or as bare {name, arguments}; absent or null is no call."""
        if value is None:
            return ()
        if not isinstance(value, list):
            raise self.error(f"{at} is {kind_of(value)}; expected a list of calls such as {_CALL}")
        return tuple(self.tool_call(item, f"{at}[{i}]") for i, item in enumerate(value))

    def tool_call(self, value: Any, at: str) -> ToolCall:
        """One call; `arguments` may be an object or its JSON text, and absent arguments are none."""
        if not isinstance(value, Mapping):
            raise self.error(f"{at} is {kind_of(value)}; expected a call such as {_CALL}")
        outer = {k: v for k, v in value.items() if v is not None}
        if outer.get("type", "function") != "function":
            raise self.error(f"{at}.type is {excerpt(outer['type'])}; expected 'function', the only kind of tool")
        inner = outer.get("function", {k: v for k, v in outer.items() if k not in ("type", "id")})
        if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str) or not inner["name"]:
            raise self.error(f"{at} names no function; expected a call such as {_CALL}")
        known = {"type", "id", "function"} if "function" in outer else {"type", "id", "name", "arguments"}
        unknown = [*(outer.keys() - known), *(inner.keys() - {"name", "arguments"})]
        if unknown and not set(unknown) <= {"index"}:  # `index` comes from streamed answers and repeats the order
            raise self.error(f"{at} has the unknown field {excerpt(unknown[0])}; expected a call such as {_CALL}")
        if not isinstance(outer.get("id", ""), str):
            raise self.error(f"{at}.id is {kind_of(outer['id'])}; expected a string")
        return ToolCall(inner["name"], self._arguments(inner.get("arguments"), at), outer.get("id"))

    def _arguments(self, value: Any, at: str) -> Mapping[str, Any]:
        if isinstance(value, str):
            value = parse_json(value, f"{at}.arguments", self)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise self.error(f"{at}.arguments is {kind_of(value)}; expected an object, or its JSON text")
        return value

    def tools(self, value: Any, name: str = "tools") -> tuple[Mapping[str, Any], ...]:
        """The tools on offer: a list, or its JSON text, of OpenAI's shape or bare functions, which are wrapped."""
        if value is None or value == "":
            return ()
        if isinstance(value, str):
            value = parse_json(value, name, self)
        if not isinstance(value, list):
            raise self.error(f"{name!r} is {kind_of(value)}; expected a list of tools such as {_TOOL}")
        return tuple(self._tool(item, f"{name}[{i}]") for i, item in enumerate(value))

    def _tool(self, value: Any, at: str) -> Mapping[str, Any]:
        if isinstance(value, Mapping):
            # a bare function may carry the type beside its name, as in OpenAI's Responses API
            bare = {key: item for key, item in value.items() if (key, item) != ("type", "function")}
            tool = value if "function" in value else {"type": "function", "function": bare}
            function = tool["function"]
            if isinstance(function, Mapping) and isinstance(function.get("name"), str) and function["name"]:
                return tool
        raise self.error(f"{at} names no function; expected a tool such as {_TOOL}")

    def extra(self) -> dict[str, Any]:
        """As in `Fields`, with the unknown fields of single messages under `message_fields`."""
        rest = super().extra()
        if not self.leftovers:
            return rest
        if LEFTOVERS in rest:
            raise self.error(f"the row has a field {LEFTOVERS!r} and messages with unknown fields; remove one of them")
        return {**rest, LEFTOVERS: self.leftovers}


def _plain(value: Any) -> Message | None:
    """The message that has a role and a text and nothing else, which most have: a short cut, three times as fast."""
    if isinstance(value, dict) and len(value) == 2:
        role, content = value.get("role"), value.get("content")
        if isinstance(content, str) and role in ROLES:
            return Message(role, content)
    return None


def text_of(content: Any, at: str, fields: Fields) -> str:
    """The text of a message's content: a string, or a list of parts of type text, joined by line breaks.

    Raises:
        DataError: there is a part of another type (an image, say), or the content is of another kind.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise fields.error(f"{at} is {kind_of(content)}; expected a string, or a list of parts of type 'text'")
    return "\n".join(_part(part, f"{at}[{i}]", fields) for i, part in enumerate(content))


def _part(part: Any, at: str, fields: Fields) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise fields.error(f'{at} is {kind_of(part)}; expected {{"type": "text", "text": "..."}}')
    if part.get("type") != "text":
        raise fields.error(
            f"{at} is a part of type {excerpt(part.get('type'))}; only parts of type 'text' can be trained on"
        )
    if not isinstance(part.get("text"), str):
        raise fields.error(f"{at}.text is {kind_of(part.get('text'))}; expected a string")
    return str(part["text"])


def parse_json(text: str, at: str, fields: Fields) -> Any:
    """The value that a JSON text inside a field spells.

    Raises:
        DataError: it is not JSON.
    """
    try:
        return loads(text)
    except ValueError as error:
        raise fields.error(f"{at} is text that is not JSON: {error}") from None


def require_reply(fields: Fields, reply: Sequence[Message], name: str) -> None:
    """Raise a DataError if a reply has turns but does not begin with the assistant's."""
    if reply and reply[0].role != "assistant":
        raise fields.error(f"{name!r} begins with a {reply[0].role} message; expected the assistant's reply")


def shared_prefix(first: Sequence[Message], second: Sequence[Message]) -> int:
    """How many leading messages two conversations have in common."""
    count = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        count += 1
    return count


_EXPECTED = '{"role": "user", "content": "..."}'
_CALL = '{"type": "function", "function": {"name": "...", "arguments": {...}}}'
_TOOL = '{"type": "function", "function": {"name": "...", "parameters": {...}}}'
