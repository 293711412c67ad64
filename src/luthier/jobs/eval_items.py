"""The items of a run: read from the request or from a file, bounded, and held against the eval's schema."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from luthier.errors import EvaluationError
from luthier.jobs.eval_store import Item
from luthier.jobs.file_store import FileStore
from luthier.jobs.item_check import first_misfit
from luthier.serve.api_error import ApiError, too_many
from luthier.serve.fields import parse_object

MOST_ITEMS = 10_000
LINE_BYTES = 1024 * 1024
FILE_BYTES = 32 * 1024 * 1024
PURPOSES = ("evals", "fine-tune")
AT_PARAM = "data_source.source"
PATIENCE_SECONDS = 10.0
_looks = threading.BoundedSemaphore(2)


@contextmanager
def looking() -> Iterator[None]:
    """Hold the items of a new run in memory, as few may do at a time.

    Raises:
        ApiError: 429: too many others do.
    """
    if not _looks.acquire(timeout=PATIENCE_SECONDS):
        raise too_many()
    try:
        yield
    finally:
        _looks.release()


def items_of(files: FileStore, project: str, source: Mapping[str, Any]) -> list[Item]:
    """The items that a `file_content` or a `file_id` names, with the line of whatever is wrong.

    Raises:
        ApiError: 400: no such file, or its rows cannot be used.
    """
    items = []
    rows = _content(source) if source["type"] == "file_content" else _lines(files, project, source["id"])
    for number, item in enumerate(rows, 1):
        if number > MOST_ITEMS:
            raise _wrong(f"there are more than {MOST_ITEMS:,} items; make several runs")
        items.append(item)
    if not items:
        raise _wrong("there are no items")
    return items


def require_fit(schema: Mapping[str, Any], items: list[Item]) -> None:
    """Whether all items fit the schema.

    Raises:
        ApiError: 400 with the first line that does not.
    """
    try:
        found = first_misfit(schema, [one.item for one in items])
    except EvaluationError as error:
        raise _wrong(str(error)) from None
    if found is not None:
        raise _wrong(f"line {found[0] + 1}: the item does not fit item_schema: {found[1]}")


def require_samples(items: list[Item], why: str) -> None:
    """Whether all items came with a sample that has a text.

    Raises:
        ApiError: 400.
    """
    for number, one in enumerate(items, 1):
        if one.given is None or text_of(one.given) is None:
            raise _wrong(
                f"line {number}: the item has no 'sample' with an 'output_text', and {why}; give every item one, or "
                "let a model answer with a data source of the type 'completions'"
            )


def text_of(given: Mapping[str, Any]) -> str | None:
    """The answer in a sample: its `output_text`, or the message of its first choice."""
    text = given.get("output_text")
    if isinstance(text, str):
        return text
    message = _message_of(given)
    return message["content"] if isinstance(message.get("content"), str) else None


def tools_of(given: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The tool calls in a sample: its `output_tools`, or those of the message of its first choice."""
    calls = given.get("output_tools") or _message_of(given).get("tool_calls")
    return [one for one in calls if isinstance(one, dict)] if isinstance(calls, list) else []


def _message_of(given: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = given.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    message = first.get("message") if isinstance(first, dict) else None
    return message if isinstance(message, dict) else {}


def _content(source: Mapping[str, Any]) -> Iterator[Item]:
    for one in source["content"]:
        yield Item(one["item"], one.get("sample"))


def _lines(files: FileStore, project: str, file_id: str) -> Iterator[Item]:
    """Rows of `{"item", "sample"}`; a row of a training file is an item as it is."""
    try:
        row = files.get(project, file_id)
    except ApiError:
        raise _wrong(f"no such file: {file_id[:100]!r}") from None
    if row["purpose"] not in PURPOSES:
        raise _wrong(f"the file {file_id!r} has the purpose {row['purpose']!r}; expected {' or '.join(PURPOSES)}")
    if row["bytes"] > FILE_BYTES:
        raise _wrong(f"the file has {row['bytes']:,} bytes; expected at most {FILE_BYTES:,}")
    content = b"".join(files.content(project, file_id)).removeprefix(b"\xef\xbb\xbf")
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip():
            yield _item(line, f"line {number}", row["purpose"] == "fine-tune")


def _item(line: bytes, at: str, is_whole: bool) -> Item:
    if len(line) > LINE_BYTES:
        raise _wrong(f"{at}: longer than {LINE_BYTES:,} bytes")
    try:
        values = parse_object(line.decode("utf-8"), "the line", AT_PARAM)
    except UnicodeDecodeError:
        raise _wrong(f"{at}: no UTF-8") from None
    except ApiError as error:
        raise _wrong(f"{at}: {error.message.removesuffix('.')}") from None
    if is_whole:
        return Item(values)
    item, given = values.get("item"), values.get("sample")
    if not isinstance(item, dict) or not (given is None or isinstance(given, dict)) or set(values) - {"item", "sample"}:
        raise _wrong(f"{at}: expected an object with 'item', an object, and perhaps 'sample', an object")
    return Item(item, given)


def _wrong(why: str) -> ApiError:
    return ApiError(f"The items cannot be used: {why}.", param=AT_PARAM, code="invalid_items")
