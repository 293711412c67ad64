"""From a request and its answer to a training row, or the reason why there is none.

The messages are those of the request and the answer's, of which only the answer is trained on: what an assistant said
before has its own row, or none. Of everything else that was sent, only the tools are kept.
"""

import json
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from luthier.data import strict_json
from luthier.data.formats import messages as messages_format
from luthier.data.read import Record
from luthier.errors import DataError
from luthier.examples import Where

KEPT = ("role", "content", "name", "tool_calls", "tool_call_id")
"""Of a message."""
WHOLE = ("stop", "tool_calls")
"""Reasons to finish of an answer that was not cut off."""


class NoRow(Exception):
    """Why an exchange makes no row: a word for the metric."""


@dataclass(frozen=True)
class Exchange:
    """What went over the wire, both ways."""

    request_id: str
    request: bytes
    answer: bytes
    is_stream: bool
    created: int
    """Seconds since 1970."""
    seconds: float
    """From the request to the end of the answer."""


def digest_of(request_id: str) -> str:
    """What stands for the id of a request in its row: the id itself may name a person."""
    return sha256(request_id.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def row_of(exchange: Exchange) -> dict[str, Any]:
    """The row, with whatever personal data was sent.

    Raises:
        NoRow: the answer is cut off, refused, or holds more than text and tool calls; or it is none of a chat.
    """
    asked, answer = _object(exchange.request), _streamed(exchange.answer) if exchange.is_stream else None
    answer = answer or _object(exchange.answer)
    choice = _first_choice(answer)
    if choice.get("finish_reason") not in WHOLE:
        raise NoRow("cut_off")
    reply = choice.get("message")
    if not isinstance(reply, dict):
        raise NoRow("no_chat")
    if reply.get("refusal"):
        raise NoRow("refused")
    before = asked.get("messages")
    if not isinstance(before, list) or not all(isinstance(message, dict) for message in before):
        raise NoRow("no_chat")
    usage = answer.get("usage")
    extra = {
        "request": digest_of(exchange.request_id),
        "model": answer.get("model") or asked.get("model"),
        "created": exchange.created,
        "seconds": round(exchange.seconds, 4),
        "usage": {k: v for k, v in usage.items() if isinstance(v, int)} if isinstance(usage, dict) else None,
    }
    tools = asked.get("tools")
    row = {
        "id": f"cap-{secrets.token_hex(8)}",
        **({"tools": tools} if tools else {}),
        "messages": [*map(_earlier, before), _kept({**reply, "role": "assistant"})],
        "extra": extra,
    }
    _require_trainable(row)
    return row


def _object(data: bytes) -> dict[str, Any]:
    try:
        values = strict_json.loads(data.decode("utf-8"))
    except ValueError:
        raise NoRow("no_json") from None
    if not isinstance(values, dict):
        raise NoRow("no_json")
    return values


def _first_choice(answer: Mapping[str, Any]) -> dict[str, Any]:
    choices = answer.get("choices")
    for choice in choices if isinstance(choices, list) else []:
        if isinstance(choice, dict) and choice.get("index", 0) == 0:
            return choice
    raise NoRow("no_chat")


def _kept(message: Mapping[str, Any]) -> dict[str, Any]:
    return {key: message[key] for key in KEPT if message.get(key) is not None or key == "content"}


def _earlier(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message of the request; weight 0 says that it is not trained on."""
    return {**_kept(message), "weight": 0} if message.get("role") == "assistant" else _kept(message)


def _require_trainable(row: dict[str, Any]) -> None:
    """Raises NoRow if the row is none that training reads; what is wrong with it may quote it, so it is not told."""
    reply = row["messages"][-1]
    if not reply.get("content") and not reply.get("tool_calls"):
        raise NoRow("empty")
    try:
        messages_format.parse(Record(row, Where("capture", 1)))
    except DataError:
        raise NoRow("not_trainable") from None


def _streamed(data: bytes) -> dict[str, Any]:
    """The chat completion that the chunks of a stream make together.

    Raises:
        NoRow: it did not end as a stream does, or has a chunk that is none.
    """
    content, finish = "", None
    whole: dict[str, Any] = {}
    calls: dict[int, dict[str, Any]] = {}
    refusal = ""
    for chunk in _events(data):
        whole |= {key: chunk[key] for key in ("model", "usage") if chunk.get(key) is not None}
        for choice in chunk.get("choices") or []:
            if choice.get("index", 0) != 0:
                continue
            finish = choice.get("finish_reason") or finish
            delta = choice.get("delta") or {}
            content += delta.get("content") or ""
            refusal += delta.get("refusal") or ""
            for part in delta.get("tool_calls") or []:
                _join_call(calls, part)
    message: dict[str, Any] = {"content": content or None, "refusal": refusal or None}
    if calls:
        message["tool_calls"] = [calls[index] for index in sorted(calls)]
    return {**whole, "choices": [{"index": 0, "message": message, "finish_reason": finish}]}


def _events(data: bytes) -> Iterator[dict[str, Any]]:
    """The chunks of an event stream, which ends in `[DONE]`."""
    try:
        lines = data.decode("utf-8").replace("\r\n", "\n").split("\n")
        for line in lines:
            if line.startswith("data:"):
                text = line[5:].strip()
                if text == "[DONE]":
                    return
                chunk = json.loads(text)
                if not isinstance(chunk, dict) or "error" in chunk:
                    raise NoRow("cut_off")
                yield chunk
    except ValueError:
        raise NoRow("no_json") from None
    raise NoRow("cut_off")


def _join_call(calls: dict[int, dict[str, Any]], part: Mapping[str, Any]) -> None:
    """Add a piece of a tool call to what came of it before."""
    call = calls.setdefault(
        int(part.get("index", len(calls))), {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
    )
    call["id"] = part.get("id") or call["id"]
    function = part.get("function") or {}
    for key in ("name", "arguments"):
        call["function"][key] += function.get(key) or ""
