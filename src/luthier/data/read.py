"""A data file becomes a stream of records, each with the line it stands on; nothing is repaired and nothing is lost.

A reader gives a `Record` for each row, or the `DataError` of a row that is broken, and goes on with the next. It raises
where it cannot go on: at the end of a JSON array that breaks off, say.

JSON Lines are read with `json`, never through Arrow: Arrow gives every row the union of all keys, so tool calls would
grow arguments of value null that nobody wrote. Where Parquet brings such nulls along, they are taken out again.
"""

import csv
import functools
import json
import logging
import math
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from luthier.data.strict_json import Unusable, decode_value, excerpt, require_whole_characters, skip_blank
from luthier.errors import DataError
from luthier.examples import Where

if TYPE_CHECKING:
    import pyarrow

BOM = b"\xef\xbb\xbf"
MAX_LINE_BYTES = 64 * 2**20
"""A longer line is no row of text; the bound keeps a file without line breaks from filling the memory."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Record:
    """One row as plain values (what JSON can hold), and where it stands.

    `kind` says what an absent value looks like: in CSV it may be an empty cell, in Parquet's structs it is dropped.
    """

    values: dict[str, Any]
    where: Where
    kind: Literal["json", "csv", "parquet"] = "json"


Rows: TypeAlias = Iterator[Record | DataError]
Refuse: TypeAlias = Callable[[DataError], None]
"""Takes the error of a row that cannot be read; if it returns, reading goes on with the next row."""


def read_records(path: Path, refuse: Refuse | None = None) -> Iterator[Record]:
    """The rows of a JSONL, JSON, CSV, TSV or Parquet file, one at a time and in order.

    JSONL, CSV and Parquet are streamed; a JSON array is held whole. Blank lines are skipped.

    Args:
        path: the file; its ending says of what kind it is.
        refuse: takes the error of each broken row; None raises the first.

    Raises:
        DataError: at once if `path` is no readable file of a known kind; while reading, with the line, if a row is
            broken, is not an object, or is not UTF-8; at the end if there was no row at all.
    """
    path = Path(path)
    _require_file(path)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"unknown kind of file {path.suffix or 'without an ending'!r}; expected one of {', '.join(READERS)} "
            "(unpack a compressed file first)",
            path,
        )
    return _records(path, reader, refuse)


def _require_file(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise DataError("no such file; check the path, which a recipe reads from its own folder", path) from None
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise DataError(f"cannot be read: {error.strerror or error}", path) from None
    if stat.S_ISDIR(mode):
        raise DataError("this is a folder; expected a data file such as train.jsonl in it", path)
    if not stat.S_ISREG(mode):
        raise DataError("not a regular file: rows are read more than once, so a pipe or device cannot be used", path)


def _records(path: Path, reader: Callable[[Path], Rows], refuse: Refuse | None) -> Iterator[Record]:
    count = 0
    try:
        for row in reader(path):
            count += 1
            if isinstance(row, Record):
                yield row
            elif refuse is None:
                raise row
            else:
                refuse(row)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", path) from None
    if not count:
        raise DataError("the file has no rows; expected at least one example", path)


@functools.lru_cache(maxsize=256)
def _tell_bom(path: Path) -> None:
    """Say it once for each file, however many passes are made over it."""
    _log.warning("%s begins with a byte-order mark, which is not part of the first row; it was skipped", path)


def is_jsonl(path: Path) -> bool:
    """Is this a file of JSON Lines, by its ending?"""
    return READERS.get(path.suffix.lower()) is _read_jsonl


def lines_of(path: Path) -> Iterator[tuple[int, bytes]]:
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


def _value(text: str, start: int, path: Path, line: int, unfinished: str) -> tuple[Any, int]:
    """As `decode_value`, for a text that begins on `line`; `unfinished` is said of a text that ends too early."""
    try:
        return decode_value(text, start)
    except json.JSONDecodeError as error:
        problem, line = _explain(error, unfinished), line + error.lineno - 1
    except Unusable as error:
        problem, line = str(error), line + text.count("\n", 0, start)
    raise DataError(problem, path, line)


def _explain(error: json.JSONDecodeError, unfinished: str) -> str:
    if error.msg.startswith("Invalid control character"):
        code = ord(error.doc[error.pos])
        return (
            f"broken JSON: the control character U+{code:04X} stands at character {error.colno} of a text; "
            f"expected it as \\u{code:04x}"
        )
    ends = error.msg.startswith("Unterminated string") or not error.doc[error.pos :].strip()
    return f"broken JSON: {error.msg} at character {error.colno}{unfinished if ends else ''}"


def _require_object(value: Any, path: Path, line: int) -> dict[str, Any]:
    if not isinstance(value, dict):
        hint = ""
        if isinstance(value, list) and line == 1:
            hint = "; if the whole file is one JSON array, give it the ending .json"
        raise DataError(f"the row is {kind_of(value)}; expected a JSON object {{...}}{hint}", path, line)
    return value


def _has_surrogate_escape(data: bytes) -> bool:
    return b"\\ud" in data or b"\\uD" in data


def _require_encodable(values: dict[str, Any], path: Path, line: int) -> None:
    try:
        require_whole_characters(values)
    except Unusable as error:
        raise DataError(str(error), path, line) from None


def kind_of(value: Any) -> str:
    """What a JSON value is, in words for a message: `a string`, `a list`, `null` ..."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    names = ((str, "a string"), (int, "a number"), (float, "a number"), (dict, "an object"), ((list, tuple), "a list"))
    return next((name for types, name in names if isinstance(value, types)), type(value).__name__)


def _read_jsonl(path: Path) -> Rows:
    for number, line in lines_of(path):
        try:
            values = _json_line(line, path, number)
        except DataError as error:
            yield error
            continue
        if values is not None:
            yield Record(values, Where(str(path), number))


_UNFINISHED_LINE = (
    "; the line ends before its object does. Expected every object whole on a line of its own: save a pretty-printed "
    "file that way, or as an array with the ending .json"
)
_RETURNS = (
    "the lines end with a carriage return alone, as on old Macs, so the file is one line; save it with line feeds"
)


def _json_line(line: bytes, path: Path, number: int) -> dict[str, Any] | None:
    """The object on one line; None if the line is blank."""
    text = _decode(line, path, number).strip(" \t\r\n")
    if not text:
        return None
    value, end = _value(text, 0, path, number, _UNFINISHED_LINE)
    if end != len(text):
        if text[end:].lstrip(" \t").startswith("\r"):
            raise DataError(_RETURNS, path, number)
        raise DataError(
            f"something follows the JSON value at character {end + 1}; expected one object a line", path, number
        )
    values = _require_object(value, path, number)
    if _has_surrogate_escape(line):
        _require_encodable(values, path, number)
    return values


def _read_json(path: Path) -> Rows:
    data = _without_bom(path.read_bytes(), path)
    text, escapes = _decode(data, path, 1), _has_surrogate_escape(data)
    at, line, counted, number = skip_blank(text, 0), 1, 0, 0
    if at == len(text):
        return
    if text[at] != "[":
        hint = "; if each line is an object of its own, give the file the ending .jsonl" if text[at] == "{" else ""
        raise DataError(f"expected one JSON array of objects, [{{...}}, ...]{hint}", path, 1 + text.count("\n", 0, at))
    at = skip_blank(text, at + 1)
    if text[at : at + 1] == "]":
        _require_end(text, at, path)
        return
    while True:
        line, counted = line + text.count("\n", counted, at), at
        value, at = _value(text, at, path, 1, "; the file ends before its array does")
        number += 1
        try:
            values = _require_object(value, path, line)
            if escapes:
                _require_encodable(values, path, line)
        except DataError as error:
            yield DataError(error.message, path, line, number)
        else:
            yield Record(values, Where(str(path), line, number))
        at = skip_blank(text, at)
        if text[at : at + 1] == "]":
            _require_end(text, at, path)
            return
        if text[at : at + 1] != ",":
            raise DataError(
                "broken JSON: expected ',' or ']' after an object of the array", path, 1 + text.count("\n", 0, at)
            )
        at = skip_blank(text, at + 1)


def _require_end(text: str, at: int, path: Path) -> None:
    at = skip_blank(text, at + 1)
    if at != len(text):
        raise DataError("something follows the end of the JSON array", path, 1 + text.count("\n", 0, at))


# CSV


class _TextLines:
    """The lines of a file as texts; `number` is that of the line read last. After one that is not UTF-8 it goes on."""

    def __init__(self, path: Path) -> None:
        self.number = 0
        self._path, self._lines = path, lines_of(path)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self.number, line = next(self._lines)
        return _decode(line, self._path, self.number)


def _read_csv(path: Path, delimiter: str = ",") -> Rows:
    # a text may be longer than the 128 KiB that the module allows by default; the setting is global, and harmless
    csv.field_size_limit(MAX_LINE_BYTES)
    lines = _TextLines(path)
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] = []
    while True:
        line = lines.number + 1  # a quoted cell may span lines: a row is named by its first
        try:
            cells = next(rows)
            if not cells:
                continue
            if not header:
                header = _header(cells, path, line, delimiter)
                continue
            values = _named(cells, header, path, line)
        except StopIteration:
            return
        except (csv.Error, DataError) as error:
            broken = error if isinstance(error, DataError) else DataError(_csv_problem(error), path, line)
            if not header:
                raise broken from None
            yield broken
        else:
            yield Record(values, Where(str(path), line), kind="csv")


def _csv_problem(error: csv.Error) -> str:
    if "new-line character" in str(error):
        return _RETURNS
    if "unexpected end of data" in str(error):
        return (
            "broken CSV: a quote that opens in this row never closes, so all that follows was taken for one cell; "
            'close it, and write a quote inside a cell as ""'
        )
    return f"broken CSV: {error}; is a quote missing its partner?"


def _named(cells: list[str], header: list[str], path: Path, line: int) -> dict[str, Any]:
    if len(cells) != len(header):
        count = "1 cell" if len(cells) == 1 else f"{len(cells)} cells"
        raise DataError(
            f"the row has {count}; expected {len(header)} ({', '.join(header)}). "
            "A cell that holds a separator must stand in quotes",
            path,
            line,
        )
    return dict(zip(header, cells, strict=True))


def _read_tsv(path: Path) -> Rows:
    return _read_csv(path, "\t")


def _header(cells: list[str], path: Path, line: int, delimiter: str) -> list[str]:
    if len(cells) == 1 and (other := next((c for c in ";\t|" if c in cells[0]), None)):
        raise DataError(
            f"the first line is one cell, {excerpt(cells[0])}: its columns seem to be separated by {other!r}; "
            f"expected {delimiter!r} (a .tsv file is separated by tabs)",
            path,
            line,
        )
    if "" in cells or len(set(cells)) != len(cells):
        raise DataError(f"the first line must name every column once; found {', '.join(map(repr, cells))}", path, line)
    return cells


# Parquet


def _read_parquet(path: Path) -> Rows:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        # as pyarrow opens a file by default, it holds a whole row group
        with pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            _require_named_once(file.schema_arrow.names, path)
            for batch in file.iter_batches(batch_size=1000):
                for index, values in enumerate(_dicts(batch)):
                    number += 1
                    where = Where(str(path), number)
                    try:
                        given = _cells(batch.slice(index, 1), where) if values is None else values
                        kept = {name: _plain(value, name, where) for name, value in given.items()}
                    except DataError as error:
                        yield error
                    else:
                        yield Record(kept, where, kind="parquet")
    except pyarrow.ArrowException as error:
        raise DataError(f"not a readable Parquet file: {str(error).splitlines()[0]}", path) from None


def _require_named_once(names: Sequence[str], path: Path) -> None:
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise DataError(f"two columns are called {excerpt(twice[0])}, so one would be lost; rename one of them", path)


# a text that is no UTF-8, a date that Python has no value for, a key that stands twice in a map or a struct
_UNREADABLE = (ValueError, OverflowError, KeyError, RecursionError)


def _dicts(batch: "pyarrow.RecordBatch") -> list[dict[str, Any] | None]:
    """The rows of a batch as plain values, or as None, which says to look at them one by one."""
    try:
        rows: list[dict[str, Any] | None] = batch.to_pylist(maps_as_pydicts="strict")
    except _UNREADABLE:
        return [None] * batch.num_rows
    return rows


def _cells(row: "pyarrow.RecordBatch", where: Where) -> dict[str, Any]:
    """The values of a batch of one row by column."""
    values = {}
    for name, column in zip(row.schema.names, row.columns, strict=True):
        try:
            values[name] = column.to_pylist(maps_as_pydicts="strict")[0]
        except _UNREADABLE as error:
            said = error.args[0] if isinstance(error, KeyError) else error
            raise DataError(f"column {name!r} cannot be read: {said}", where.path, where.line) from None
    return values


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


READERS: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
}
"""How a file is read, by its ending."""
