"""A data file becomes a stream of records, each with the line it stands on; nothing is repaired and nothing is lost.

JSON Lines are read with `json`, never through Arrow: Arrow gives every row the union of all keys, so tool calls would
grow arguments of value null that nobody wrote. Where Parquet brings such nulls along, they are taken out again.
"""

import csv
import functools
import json
import logging
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any, NoReturn

from luthier.errors import DataError
from luthier.examples import Where

BOM = b"\xef\xbb\xbf"
MAX_LINE_BYTES = 64 * 2**20
"""A longer line is no row of text; the bound keeps a file without line breaks from filling the memory."""

_BLANK = re.compile(r"[ \t\n\r]*")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Record:
    """One row as plain values (what JSON can hold), and where it stands.

    `number` counts the rows of a JSON array from 1, since several may stand on one line; 0 where the line tells all.
    """

    values: dict[str, Any]
    where: Where
    number: int = 0


class _Unusable(ValueError):
    """A value that JSON text spells but that could not be kept as it is."""


def read_records(path: Path) -> Iterator[Record]:
    """The rows of a JSONL, JSON, CSV, TSV or Parquet file, one at a time and in order.

    JSONL, CSV and Parquet are streamed; a JSON array is held whole. Blank lines are skipped.

    Raises:
        DataError: at once if `path` is no readable file of a known kind; while reading, with the line, if a row is
            broken, is not an object, or is not UTF-8; at the end if there was no row at all.
    """
    path = Path(path)
    reader = READERS.get(path.suffix.lower())
    if not path.exists():
        raise DataError("no such file; check the path, which a recipe reads from its own folder", path)
    if path.is_dir():
        raise DataError("this is a folder; expected a data file such as train.jsonl in it", path)
    if not path.is_file():
        raise DataError("not a regular file: rows are read more than once, so a pipe or device cannot be used", path)
    if reader is None:
        raise DataError(
            f"unknown kind of file {path.suffix or 'without an ending'!r}; expected one of {', '.join(READERS)} "
            "(unpack a compressed file first)",
            path,
        )
    return _require_rows(path, reader)


def _require_rows(path: Path, reader: Callable[[Path], Iterator[Record]]) -> Iterator[Record]:
    count = 0
    try:
        for record in reader(path):
            count += 1
            yield record
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", path) from None
    if not count:
        raise DataError("the file has no rows; expected at least one example", path)


@functools.lru_cache(maxsize=256)
def _tell_bom(path: Path) -> None:
    """Say it once for each file, however many passes are made over it."""
    _log.warning("%s begins with a byte-order mark, which is not part of the first row; it was skipped", path)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Physical lines with their 1-based numbers and line ends. Only \\n ends a line: U+2028 may stand in a text."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if number == 1:
                line = _without_bom(line, path)
            if len(line) > MAX_LINE_BYTES:
                raise DataError(
                    f"the line is longer than {MAX_LINE_BYTES // 2**20} MiB; expected one row a line", path, number
                )
            yield number, line


def _without_bom(data: bytes, path: Path) -> bytes:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError("the text is UTF-16; save the file as UTF-8", path, 1)
    if data.startswith(BOM):
        _tell_bom(path)
        return data[len(BOM) :]
    return data


def _decode(data: bytes, path: Path, line: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        at = line + data.count(b"\n", 0, error.start)
        column = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
        raise DataError(
            f"not UTF-8: byte 0x{data[error.start]:02x} at byte {column} of the line; save the file as UTF-8", path, at
        ) from None


# JSON and JSON Lines


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _Unusable(f"the key {twice!r} stands twice in one object, so one of its values would be lost")
    return values


def _constant(name: str) -> NoReturn:
    raise _Unusable(f"{name} is not JSON; write null or a number")


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise _Unusable(f"the number {text[:40]} is too large for a 64-bit float; write it as text")
    return value


_STRICT = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_float=_float)


def loads(text: str) -> Any:
    """The value of one JSON text, as strict as a data file is read: nothing in it may be lost or changed.

    Raises:
        ValueError: it is not JSON, names a key twice, is nested too deeply, or holds half of a surrogate pair.
    """
    try:
        value = _STRICT.decode(text)
        if _has_surrogate_escape(text.encode("utf-8")):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise _Unusable("the JSON is nested too deeply") from None
    return value


def _value(text: str, start: int, path: Path, line: int) -> tuple[Any, int]:
    """The JSON value that begins at `start`, and where it ends; `line` is the line that `text` begins on."""
    try:
        return _STRICT.raw_decode(text, start)
    except json.JSONDecodeError as error:
        raise DataError(f"broken JSON: {error.msg} at character {error.colno}", path, line + error.lineno - 1) from None
    except RecursionError:
        problem = "the JSON is nested too deeply"
    except ValueError as error:  # our own hooks, and integers beyond Python's limit of digits
        problem = str(error)
    raise DataError(problem, path, line + text.count("\n", 0, start))


def _require_object(value: Any, path: Path, line: int) -> dict[str, Any]:
    if not isinstance(value, dict):
        hint = ""
        if isinstance(value, list) and line == 1:
            hint = "; if the whole file is one JSON array, give it the ending .json"
        raise DataError(f"the row is {kind_of(value)}; expected a JSON object {{...}}{hint}", path, line)
    return value


def _require_encodable(values: dict[str, Any], path: Path, line: int) -> None:
    try:
        json.dumps(values, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(
            "half of a surrogate pair (an escape such as \\ud83d without its partner): a character was cut in two; "
            "repair the text",
            path,
            line,
        ) from None


def kind_of(value: Any) -> str:
    """What a JSON value is, in words for a message: `a string`, `a list`, `null` ..."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    names = ((str, "a string"), (int, "a number"), (float, "a number"), (dict, "an object"), ((list, tuple), "a list"))
    return next((name for types, name in names if isinstance(value, types)), type(value).__name__)


def _has_surrogate_escape(data: bytes) -> bool:
    return b"\\ud" in data or b"\\uD" in data


def _read_jsonl(path: Path) -> Iterator[Record]:
    for number, line in _lines(path):
        text = _decode(line, path, number).strip(" \t\r\n")
        if not text:
            continue
        value, end = _value(text, 0, path, number)
        if end != len(text):
            raise DataError(
                f"something follows the JSON value at character {end + 1}; expected one object a line", path, number
            )
        values = _require_object(value, path, number)
        if _has_surrogate_escape(line):
            _require_encodable(values, path, number)
        yield Record(values, Where(str(path), number))


def _skip_blank(text: str, start: int) -> int:
    match = _BLANK.match(text, start)
    return match.end() if match else start


def _read_json(path: Path) -> Iterator[Record]:
    data = _without_bom(path.read_bytes(), path)
    text, escapes = _decode(data, path, 1), _has_surrogate_escape(data)
    at, line, counted, number = _skip_blank(text, 0), 1, 0, 0
    if at == len(text):
        return
    if text[at] != "[":
        hint = "; if each line is an object of its own, give the file the ending .jsonl" if text[at] == "{" else ""
        raise DataError(f"expected one JSON array of objects, [{{...}}, ...]{hint}", path, 1 + text.count("\n", 0, at))
    at = _skip_blank(text, at + 1)
    if text[at : at + 1] == "]":
        _require_end(text, at, path)
        return
    while True:
        line, counted = line + text.count("\n", counted, at), at
        value, at = _value(text, at, path, 1)
        values = _require_object(value, path, line)
        if escapes:
            _require_encodable(values, path, line)
        number += 1
        yield Record(values, Where(str(path), line), number)
        at = _skip_blank(text, at)
        if text[at : at + 1] == "]":
            _require_end(text, at, path)
            return
        if text[at : at + 1] != ",":
            raise DataError(
                "broken JSON: expected ',' or ']' after an object of the array", path, 1 + text.count("\n", 0, at)
            )
        at = _skip_blank(text, at + 1)


def _require_end(text: str, at: int, path: Path) -> None:
    at = _skip_blank(text, at + 1)
    if at != len(text):
        raise DataError("something follows the end of the JSON array", path, 1 + text.count("\n", 0, at))


# CSV


def _read_csv(path: Path, delimiter: str = ",") -> Iterator[Record]:
    # a text may be longer than the 128 KiB that the module allows by default; the setting is global, and harmless
    csv.field_size_limit(MAX_LINE_BYTES)
    rows = csv.reader((_decode(line, path, n) for n, line in _lines(path)), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        line = rows.line_num + 1  # a quoted cell may span lines: a row is named by its first
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"broken CSV: {error}; is a quote missing its partner?", path, line) from None
        if not cells:
            continue
        if header is None:
            header = _header(cells, path, line, delimiter)
            continue
        if len(cells) != len(header):
            raise DataError(
                f"the row has {len(cells)} cells; expected {len(header)} ({', '.join(header)}). "
                "A cell that holds a separator must stand in quotes",
                path,
                line,
            )
        yield Record(dict(zip(header, cells, strict=True)), Where(str(path), line))


def _read_tsv(path: Path) -> Iterator[Record]:
    return _read_csv(path, "\t")


def _header(cells: list[str], path: Path, line: int, delimiter: str) -> list[str]:
    if len(cells) == 1 and (other := next((c for c in ";\t|" if c in cells[0]), None)):
        raise DataError(
            f"the first line is one cell, {cells[0]!r}: its columns seem to be separated by {other!r}; "
            f"expected {delimiter!r} (a .tsv file is separated by tabs)",
            path,
            line,
        )
    if "" in cells or len(set(cells)) != len(cells):
        raise DataError(f"the first line must name every column once; found {', '.join(map(repr, cells))}", path, line)
    return cells


# Parquet


def _read_parquet(path: Path) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000):
                for values in batch.to_pylist(maps_as_pydicts="strict"):
                    number += 1
                    where = Where(str(path), number)
                    yield Record({k: _plain(v, k, where) for k, v in values.items() if v is not None}, where)
    except pyarrow.ArrowException as error:
        raise DataError(f"not a readable Parquet file: {str(error).splitlines()[0]}", path) from None


def _plain(value: Any, column: str, where: Where) -> Any:
    """A Parquet value as JSON can hold it; a struct loses its nulls, which stand for keys that the row never had."""
    if isinstance(value, dict):
        return {k: _plain(v, column, where) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_plain(item, column, where) for item in value]
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise DataError(f"column {column!r} holds {value}, which JSON cannot; write null", where.path, where.line)
    if value is None or isinstance(value, (str, int, float)):
        return value
    raise DataError(
        f"column {column!r} holds {type(value).__name__}; expected text, numbers, true/false, dates, lists or structs",
        where.path,
        where.line,
    )


READERS: dict[str, Callable[[Path], Iterator[Record]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
}
"""How a file is read, by its ending."""
