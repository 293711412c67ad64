"""Finding the texts of an example again in what was rendered from it.

Templates trim ends and write arguments as JSON, and some tokenizers normalize Unicode; a text counts as found in any of
these forms, and in no other.
"""

import json
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

from luthier.examples import Message


def decode(tokenizer: Any, ids: Any) -> str:
    """The text of `ids`, control tokens included, nothing cleaned up."""
    text: str = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


def forms(leaf: Any) -> list[str]:
    """The ways in which a template may write a value faithfully."""
    if not isinstance(leaf, str):
        return [json.dumps(leaf), str(leaf)]
    text = leaf.strip()
    in_json = [json.dumps(text, ensure_ascii=ascii_only)[1:-1] for ascii_only in (False, True)]
    return [text, *in_json, *(unicodedata.normalize(form, text) for form in ("NFC", "NFKC"))]


def occurs(leaf: Any, text: str) -> bool:
    """Whether `leaf` is in `text`, in one of its faithful forms."""
    return any(form in text for form in forms(leaf))


def leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """(path, value) of every text, number and key in `value`; a null says nothing and is left out."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield f"{path}.{key}", str(key)
            yield from leaves(inner, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from leaves(inner, f"{path}[{index}]")
    elif value is not None and value != "":
        yield path, value


def message_leaves(message: Message, path: str) -> Iterator[tuple[str, Any]]:
    """(path, value) of everything in a message that the model should see.

    Left out: the ids that tie a tool's result to its call, and the name that a tool's result repeats. They are
    plumbing between programs, and most models' templates have no place for them.
    """
    if message.content.strip():
        yield f"{path}.content", message.content
    if message.name and message.role != "tool":
        yield f"{path}.name", message.name
    for index, call in enumerate(message.tool_calls):
        at = f"{path}.tool_calls[{index}]"
        yield f"{at}.name", call.name
        yield from leaves(call.arguments, f"{at}.arguments")
