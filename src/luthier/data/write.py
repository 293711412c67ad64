"""Examples as JSON Lines in one canonical form per kind, which the formats read back to equal examples.

A file appears whole or not at all: it is written beside its place, flushed to the disk, and renamed.
"""

import errno
import io
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from luthier.errors import DataError, StorageError
from luthier.examples import Conversation, Example, Judged, Message, Preference
from luthier.files import sync


def write_examples(path: Path, examples: Iterable[Example]) -> int:
    """Write examples to a JSONL file, replacing it in one step, and return how many there were.

    Conversations become rows of the format `messages`, preferences of `preference`, judged replies
    of `unpaired_preference`, documents of `text`. `extra` stays
    in a field of its own, so that none of its names can be taken for one of the format's. `where` is not written: the
    rows stand in a new place.

    Raises:
        StorageError: the disk is full or the folder cannot be written; what stood at `path` before still does.
        DataError: the examples are of more than one kind, or one holds what JSON cannot.
    """
    count, kind = 0, None
    with atomic_text(path) as file:
        for example in examples:
            kind = kind or type(example)
            if type(example) is not kind:
                raise DataError(
                    f"a {type(example).__name__} after rows of kind {kind.__name__}; one file holds one kind",
                    example.where.path,
                    example.where.line,
                    example.where.row,
                )
            file.write(_line(example))
            count += 1
    return count


def _line(example: Example) -> str:
    try:
        line = json.dumps(example_values(example), ensure_ascii=False, allow_nan=False) + "\n"
        line.encode("utf-8")
    except (TypeError, ValueError) as error:
        at = example.where
        raise DataError(f"cannot be written as JSON: {error}", at.path, at.line, at.row) from None
    return line


def example_values(example: Example) -> dict[str, Any]:
    """The canonical row of an example, as plain values."""
    values: dict[str, Any] = {"id": example.id} if example.id else {}
    if isinstance(example, Conversation):
        values |= {"tools": [dict(tool) for tool in example.tools]} if example.tools else {}
        values["messages"] = [message_values(m) for m in example.messages]
        values |= {} if example.target is None else {"target": example.target}
    elif isinstance(example, Preference):
        values |= {"tools": [dict(tool) for tool in example.tools]} if example.tools else {}
        for name, messages in (
            ("prompt", example.prompt),
            ("chosen", example.chosen),
            ("rejected", example.rejected),
        ):
            values[name] = [message_values(m) for m in messages]
    elif isinstance(example, Judged):
        values |= {"tools": [dict(tool) for tool in example.tools]} if example.tools else {}
        values["prompt"] = [message_values(m) for m in example.prompt]
        values |= {"completion": [message_values(m) for m in example.reply], "label": example.good}
    else:
        values["text"] = example.text
    values |= {"group": example.group} if example.group else {}
    values |= {"extra": dict(example.extra)} if example.extra else {}
    return values


def message_values(message: Message) -> dict[str, Any]:
    """A message in OpenAI's shape, `arguments` of tool calls as objects; fields at their defaults are left out."""
    values: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        values["tool_calls"] = [
            {
                **({} if call.id is None else {"id": call.id}),
                "type": "function",
                "function": {"name": call.name, "arguments": dict(call.arguments)},
            }
            for call in message.tool_calls
        ]
    rest: Mapping[str, Any] = {
        "tool_call_id": message.tool_call_id,
        "name": message.name,
        "weight": message.weight,
    }
    return values | {key: value for key, value in rest.items() if value is not None}


@contextmanager
def atomic_text(path: Path) -> Iterator[IO[str]]:
    """A UTF-8 text file that takes the place of `path` when the block ends well, and vanishes when it does not.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    with atomic_bytes(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="\n", write_through=True)
        yield text
        text.detach()


def remove_unfinished(folder: Path) -> None:
    """Remove what a process that was killed left of the files below; only where no other may be writing now."""
    for leftover in folder.glob(".*.tmp"):
        if leftover.is_file():  # folders are begun anew by whoever makes them
            leftover.unlink(missing_ok=True)


@contextmanager
def atomic_bytes(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` when the block ends well, and vanishes when it does not.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        file = temporary.open("xb")
    except OSError as error:
        raise _storage_error(path, error) from None
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        raise _storage_error(path, error) from None
    finally:
        temporary.unlink(missing_ok=True)  # after the rename there is nothing left to unlink


def _storage_error(path: Path, error: OSError) -> StorageError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(f"{path}: the disk is full; nothing was written. Free space and run the same command again")
    if error.errno == errno.ENOENT:
        return StorageError(f"{path}: there is no folder {str(path.parent)!r}; make it first")
    return StorageError(f"{path}: cannot be written: {error.strerror or error}")
