"""What people export from OpenAI, read and told apart by what it holds; names of files matter only for ids.

Taken are training files, fine-tuning jobs with their events, checkpoints and result tables, lists of files, Evals with
their runs and output items, stored completions with their messages, and recorded answers of our own shape
(`luthier.moving.answers`). JSON may be one object, an array, a page of a list, or an object a line. A part that is not
understood is refused with its file and line; what is known and not needed is counted, so that the summary can tell it.
"""

import base64
import binascii
import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from luthier import registry
from luthier.data import strict_json
from luthier.data.formats.base import FORMATS
from luthier.data.read import Record, kind_of, lines_of
from luthier.errors import DataError
from luthier.examples import Conversation, Where
from luthier.jobs.results import COLUMNS
from luthier.jobs.rows import ACCEPTED
from luthier.moving.asked import asked_of
from luthier.moving.found import Found

Kind: TypeAlias = Literal["supervised", "dpo", "reinforcement"]
LEAVE_OUT = "Mend what is wrong, or leave a file out with --without FILE:"
MOST_TOLD = 20
"""Refusals that one message lists."""
_MESSAGE_ID = re.compile(r"(chatcmpl-.+)-(\d+)")


@dataclass
class Export:
    """All of an export, by kind."""

    jobs: dict[str, Found] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    """File names by id, as a list of files tells them."""
    evals: dict[str, Found] = field(default_factory=dict)
    runs: dict[str, Found] = field(default_factory=dict)
    items: dict[str, Found] = field(default_factory=dict)
    """Output items of runs."""
    completions: dict[str, Found] = field(default_factory=dict)
    messages: dict[str, dict[int, Found]] = field(default_factory=dict)
    """Of stored completions: what was asked, by the completion's id and the message's number."""
    answers: list[Found] = field(default_factory=list)
    """Recorded answers of our own shape."""
    rows: dict[Path, tuple[Kind, int]] = field(default_factory=dict)
    """Training files: the method that their rows are for, and how many they are."""
    curves: dict[Path, bytes] = field(default_factory=dict)
    """Result tables as plain CSV."""
    others: Counter[str] = field(default_factory=Counter)
    """What is known and not needed, by kind."""


def files_of(paths: Sequence[Path], without: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """The files to read, folders looked through, and the hidden ones that are left out.

    Raises:
        DataError: there is no such file or folder, or no file at all.
    """
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise DataError("no such file or folder", path)
        found += sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    left = {path.resolve() for path in without}
    if unknown := [path for path in without if path.resolve() not in {one.resolve() for one in found}]:
        raise DataError("--without names a file that is not among those to read", unknown[0])
    hidden = [path for path in found if path.name.startswith(".")]
    kept = [path for path in dict.fromkeys(found) if path not in hidden and path.resolve() not in left]
    if not kept:
        raise DataError("there is no file to read", paths[0])
    return kept, hidden


def read_export(paths: Sequence[Path], advice: str = LEAVE_OUT) -> Export:
    """Read files of an export.

    Raises:
        DataError: a part of a file is not understood; the message has every one, with file, line and why.
    """
    reader = _Reader()
    for path in paths:
        reader.read(path)
    refuse(reader.problems, advice)
    return reader.export


def refuse(problems: Sequence[DataError], advice: str) -> None:
    """Nothing where nothing is wrong; else all of it, and what to do.

    Raises:
        DataError: something is; the message has every problem.
    """
    if not problems:
        return
    lines = [f"  {problem}" for problem in problems[:MOST_TOLD]]
    if more := len(problems) - len(lines):
        lines.append(f"  and {more} more")
    parts = "1 part of the export is" if len(problems) == 1 else f"{len(problems)} parts of the export are"
    raise DataError("\n".join([f"{parts} not understood, and nothing was written. {advice}", *lines]))


class _Reader:
    """Files one after the other; what is wrong with one does not keep the others from being looked at."""

    def __init__(self) -> None:
        self.export = Export()
        self.problems: list[DataError] = []
        self._formats = {name: registry.load(FORMATS, name) for name in ACCEPTED}
        self._row_kind: Kind | None = None
        self._row_format: str | None = None
        self._rows = 0
        export = self.export
        self._takers: dict[str, Callable[[Found], None]] = {
            "fine_tuning.job": self._take_job,
            "eval": lambda found: self._keep(export.evals, found),
            "eval.run": lambda found: self._keep(export.runs, found),
            "eval.run.output_item": lambda found: self._keep(export.items, found),
            "chat.completion": lambda found: self._keep(export.completions, found),
            "file": self._take_file,
            "list": self._take_page,
        }

    def read(self, path: Path) -> None:
        """Whatever a file holds."""
        self._row_kind, self._row_format, self._rows = None, None, 0
        try:
            if (table := _result_table(path)) is not None:
                self.export.curves[path] = table
                return
            for found in _objects(path, self.problems.append):
                try:
                    self._take(found)
                except DataError as error:
                    self.problems.append(error)
        except DataError as error:
            self.problems.append(error)
        if self._row_kind is not None:
            self.export.rows[path] = (self._row_kind, self._rows)

    def _take(self, found: Found) -> None:
        values = found.values
        kind = values.get("object")
        if isinstance(kind, str) and kind in self._takers:
            self._takers[kind](found)
        elif isinstance(kind, str) and kind in NOT_NEEDED:
            self.export.others[kind] += 1
        elif isinstance(values.get("id"), str) and (match := _MESSAGE_ID.fullmatch(values["id"])) and "role" in values:
            self.export.messages.setdefault(match[1], {})[int(match[2])] = found
        elif ("output" in values or "answer" in values) and ("id" in values or "messages" in values):
            self.export.answers.append(found)
        else:
            self._take_row(found)

    def _keep(self, place: dict[str, Found], found: Found) -> None:
        identifier = found.text("id")
        known = place.get(identifier)
        if known is not None and known.values != found.values:  # the same page twice is no contradiction
            raise found.error(f"{identifier} is there twice, and not the same: first at {known.where}")
        place[identifier] = found

    def _take_job(self, found: Found) -> None:
        asked_of(found)  # a recipe is made of it much later, when nothing else is looked at any more
        self._keep(self.export.jobs, found)

    def _take_file(self, found: Found) -> None:
        self.export.files[found.text("id")] = found.text("filename")

    def _take_page(self, found: Found) -> None:
        data = found.values.get("data")
        if not isinstance(data, list):
            raise found.error(f"'data' is {kind_of(data)}; expected the objects of a page")
        for number, values in enumerate(data, 1):
            where = Where(found.where.path, found.where.line, number)
            if not isinstance(values, Mapping):
                self.problems.append(Found({}, where).error(f"an entry of the page is {kind_of(values)}"))
                continue
            try:
                self._take(Found(values, where))
            except DataError as error:
                self.problems.append(error)

    def _take_row(self, found: Found) -> None:
        name = next((name for name, one in self._formats.items() if one.matches(found.values)), None)
        if name is None:
            keys = ", ".join(map(repr, list(found.values)[:8])) or "no fields"
            kind = found.values.get("object")
            what = f"the object is {kind!r:.60}" if kind is not None else f"the fields are {keys}"
            raise found.error(
                f"{what}, which is nothing that OpenAI exports and Luthier reads (docs/moving.md lists it)"
            )
        example = self._formats[name].parse(Record(dict(found.values), found.where))
        kind = _method_of(name, example.completion is None if isinstance(example, Conversation) else False)
        if self._row_kind not in (None, kind) or self._row_format not in (None, name):
            earlier = f"{self._row_kind} in the format {self._row_format}"
            raise found.error(f"a row for {kind} in the format {name} after rows for {earlier}; one file has one kind")
        self._row_kind, self._row_format = kind, name
        self._rows += 1


NOT_NEEDED = frozenset(
    {
        "fine_tuning.job.event",
        "fine_tuning.job.checkpoint",
        "checkpoint.permission",
        "model",
        "upload",
        "upload.part",
        "batch",
    }
)
"""Objects that are known and say nothing that a recipe or a comparison needs."""


def _method_of(name: str, is_unanswered: bool) -> Kind:
    if name == "preference":
        return "dpo"
    return "reinforcement" if is_unanswered else "supervised"


def _objects(path: Path, refuse: Callable[[DataError], None]) -> Iterator[Found]:
    """The JSON objects of a file: one, an array of them, or one a line; broken lines are refused one by one."""
    lines = list(lines_of(path))
    text = b"".join(line for _, line in lines)
    try:
        whole = strict_json.loads(text.decode("utf-8"))
    except ValueError:
        yield from _of_lines(path, lines, refuse)
        return
    values = whole if isinstance(whole, list) else [whole]
    for number, one in enumerate(values, 1):
        where = Where(str(path), 1, number if isinstance(whole, list) else 0)
        if isinstance(one, Mapping):
            yield Found(one, where)
        else:
            refuse(Found({}, where).error(f"{kind_of(one)} where an object was expected"))
    if not values:
        refuse(DataError("the file holds nothing", path, 1))


def _of_lines(path: Path, lines: Sequence[tuple[int, bytes]], refuse: Callable[[DataError], None]) -> Iterator[Found]:
    is_any = False
    for number, line in lines:
        if not line.strip():
            continue
        is_any = True
        try:
            values = strict_json.loads(line.decode("utf-8"))
            if not isinstance(values, Mapping):
                raise ValueError(f"{kind_of(values)} where an object was expected")
        except ValueError as error:
            refuse(DataError(f"neither JSON that is understood nor a result table: {error}", path, number))
            if number == 1 and not line.lstrip().startswith(b"{"):
                return  # a file of another kind is one problem, not one a line
        else:
            yield Found(values, Where(str(path), number))
    if not is_any:
        refuse(DataError("the file holds nothing", path, 1))


# Result tables


def _result_table(path: Path) -> bytes | None:
    """A result table as plain CSV, however it is encoded; None if the file is none.

    Raises:
        DataError: it cannot be read, or is a table with other columns or with cells that are no numbers.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", path) from None
    plain = data.removeprefix(b"\xef\xbb\xbf")
    if not plain.startswith(b"step,"):
        try:  # as the API gives it
            plain = base64.b64decode(b"".join(data.split()), validate=True)
        except (binascii.Error, ValueError):
            return None
        if not plain.startswith(b"step,"):
            return None
    curve_of(plain, path)
    return plain


def curve_of(table: bytes, path: Path) -> list[dict[str, float]]:
    """The steps of a result table, under the names that the steps of a run have; cells that are empty are absent.

    Raises:
        DataError: it has other columns, or a cell is no number.
    """
    rows = csv.reader(io.StringIO(table.decode("utf-8", "replace"), newline=""))
    header = tuple(next(rows))
    if header not in COLUMNS.values():
        known = " or ".join(",".join(columns) for columns in COLUMNS.values())
        raise DataError(f"the table has the columns {','.join(header)[:200]}; expected {known}", path, 1)
    steps = []
    for line, cells in enumerate(rows, 2):
        if not cells:
            continue
        if len(cells) != len(header):
            raise DataError(f"the row has {len(cells)} cells; expected {len(header)}", path, line)
        try:
            step = {CURVE[name]: float(cell) for name, cell in zip(header, cells, strict=True) if cell.strip()}
        except ValueError as error:
            raise DataError(f"a cell is no number: {error}", path, line) from None
        kept = {name: value for name, value in step.items() if math.isfinite(value)}
        if "step" not in kept:
            raise DataError("the row does not say which step it is of", path, line)
        steps.append(kept)
    return steps


CURVE = {
    "step": "step",
    "train_loss": "loss",
    "train_accuracy": "token_accuracy",
    "train_mean_token_accuracy": "token_accuracy",
    "valid_loss": "validation_loss",
    "valid_mean_token_accuracy": "validation_token_accuracy",
    "validation_mean_token_accuracy": "validation_token_accuracy",
    "full_valid_loss": "full_validation_loss",
    "full_valid_mean_token_accuracy": "full_validation_token_accuracy",
}
"""Columns of both dialects under the names that `metrics.jsonl` has."""


def dumped(found: Found) -> str:
    """An object as it came."""
    return json.dumps(found.values, ensure_ascii=False, indent=2) + "\n"
