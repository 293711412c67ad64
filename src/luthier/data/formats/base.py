"""A format says how one record becomes one example; a file in this directory is one, and its name is `data.format`.

A format module has a docstring whose first line describes it, `SAMPLE` (one record of it), and two functions:

    matches(values) -> bool                     does a record with these fields look like mine?
    parse(record, instruction) -> Example       DataError with file and line if a field is of the wrong kind

`id`, `target`, `group` and `extra` are read the same way in every format; a field that no format claims is kept in
the example's `extra`, never dropped.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

from luthier import registry
from luthier.data.read import Record, Refuse, kind_of, read_records
from luthier.data.tool_results import ResultError, matched_results
from luthier.errors import DataError
from luthier.examples import Conversation, Example, Message

FORMATS = "luthier.data.formats"
SNIFFED_ROWS = 50


class Fields:
    """The fields of one record, claimed one by one; what nobody claimed is `extra`."""

    def __init__(self, record: Record) -> None:
        self.values, self.where, self.kind = record.values, record.where, record.kind
        self._claimed: set[str] = set()

    def error(self, message: str) -> DataError:
        """A DataError that names this record's file and line."""
        return DataError(message, self.where.path, self.where.line, self.where.row)

    def take(self, name: str) -> Any:
        """Claim a field; None if it is absent or null."""
        self._claimed.add(name)
        return self.values.get(name)

    def require(self, name: str) -> Any:
        """Claim a field that must be there.

        Raises:
            DataError: it is absent or null; the message names the fields that there are.
        """
        value = self.take(name)
        if value is None:
            found = "is null" if name in self.values else f"is missing; the row has {', '.join(map(repr, self.values))}"
            raise self.error(f"{name!r} {found}")
        return value

    def text(self, name: str) -> str:
        """Claim a field that must be there and be text."""
        return self._text(name, self.require(name))

    def optional_text(self, name: str) -> str | None:
        """Claim a field that is text or absent."""
        value = self.take(name)
        return None if value is None else self._text(name, value)

    def _text(self, name: str, value: Any) -> str:
        if not isinstance(value, str):
            raise self.error(f"{name!r} is {kind_of(value)}; expected a string")
        return value

    def id(self) -> str:
        """Claim `id`; a row without one is called `<file stem>:<line>`, in a JSON array `<file stem>:<number>`."""
        return self._name("id") or f"{Path(self.where.path).stem}:{self.where.row or self.where.line}"

    def group(self) -> str | None:
        """Claim `group`; None if absent or empty (an empty cell names no group)."""
        return self._name("group") or None

    def _name(self, name: str) -> str:
        value = self.take(name)
        if value is None:
            return ""
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise self.error(f"{name!r} is {kind_of(value)}; expected a string or a whole number")
        return str(value)

    def target(self) -> Any:
        """Claim `target`; None if absent, null, or an empty cell of a CSV file."""
        value = self.take("target")
        return None if value == "" and self.kind == "csv" else value

    def extra(self) -> dict[str, Any]:
        """What nobody claimed, and the entries of the field `extra`, where `write_examples` keeps such fields.

        Call it last.
        """
        rest = {k: v for k, v in self.values.items() if k not in self._claimed}
        nested = rest.get("extra")
        if not isinstance(nested, Mapping):
            return rest
        del rest["extra"]
        if both := sorted(rest.keys() & nested.keys()):
            raise self.error(f"{both[0]!r} is both a field of the row and an entry of 'extra'; expected it once")
        return {**rest, **nested}

    def with_system(self, messages: tuple[Message, ...], instruction: str | None) -> tuple[Message, ...]:
        """`messages`, led by the row's own field `system` or else by `instruction`, unless they have a system turn.

        Raises:
            DataError: the row has a system turn and a `system` text that says something else.
        """
        system = self.optional_text("system") or None
        own = next((m for m in messages if m.role in ("system", "developer")), None)
        if own is not None:
            if system is not None and system != own.content:
                raise self.error("the row has a system message and a different field 'system'; expected one of them")
            return messages
        text = system if system is not None else instruction
        return messages if text is None else (Message("system", text), *messages)

    def require_results_matched(self, messages: Sequence[Message], of: str = "") -> None:
        """Raise a DataError if a tool result answers no call, or nobody can tell which; `of` names the messages."""
        try:
            matched_results(messages)
        except ResultError as error:
            raise self.error(f"{of}{error}") from None

    def conversation(
        self,
        messages: tuple[Message, ...],
        instruction: str | None,
        tools: tuple[Mapping[str, Any], ...] = (),
        target: Any = None,
    ) -> Conversation:
        """These turns with what every format reads alike: `system`, `id`, `target`, `group`, the rest as `extra`.

        Call it last. `target`, where a format has one of its own, stands for the field.

        Raises:
            DataError: a tool result answers no call, or a field is of the wrong kind.
        """
        self.require_results_matched(messages)
        own = self.target()
        return Conversation(
            self.with_system(messages, instruction),
            tools,
            self.where,
            self.id(),
            own if target is None else target,
            self.group(),
            self.extra(),
        )


def read_examples(
    path: Path, format: str = "auto", instruction: str | None = None, refuse: Refuse | None = None
) -> Iterator[Example]:
    """The examples of a data file, one at a time and in order.

    Args:
        path: JSONL, JSON, CSV, TSV or Parquet.
        format: a file name in this directory, or `auto` to look at the first rows.
        instruction: system message for rows that have none.
        refuse: takes the error of each row that cannot be used; None raises the first.

    Raises:
        RecipeError: there is no such format.
        DataError: the file or a row cannot be used; carries file and line.
    """
    refuse = refuse or _raise_first
    module = registry.load(FORMATS, sniff(path) if format == "auto" else format)
    for record in read_records(path, refuse):
        try:
            example: Example = module.parse(record, instruction)
        except DataError as error:
            refuse(error)
        else:
            yield example


def _raise_first(error: DataError) -> NoReturn:
    raise DataError(f"{error.message}. `luthier check` lists every row like this", error.path, error.line, error.row)


def sniff(path: Path) -> str:
    """The name of the format that the first 50 rows of a file are in; broken rows are passed over.

    A format is chosen if it alone fits every row. If none does but a single one fits some rows, it is that one:
    parsing then says what is wrong with the others, by line.

    Raises:
        DataError: no format fits, or several do; names the fields seen and the formats known. Or every row is broken.
    """
    modules = {name: registry.load(FORMATS, name) for name in registry.names(FORMATS)}
    first_fit: dict[str, Record] = {}
    fits: dict[str, int] = dict.fromkeys(modules, 0)
    records = 0
    seen: dict[str, None] = {}
    broken: list[DataError] = []

    def keep_first(error: DataError) -> None:
        if not broken:
            broken.append(error)

    for record in islice(read_records(path, keep_first), SNIFFED_ROWS):
        records += 1
        seen.update(dict.fromkeys(record.values))
        for name, module in modules.items():
            if module.matches(record.values):
                fits[name] += 1
                first_fit.setdefault(name, record)
    if not records:
        raise broken[0]
    full = [name for name in modules if fits[name] == records]
    chosen = full or [name for name in modules if fits[name]]
    if len(chosen) == 1:
        return chosen[0]
    raise DataError(_explain(chosen, first_fit, list(seen), modules), path)


def _explain(chosen: list[str], first: Mapping[str, Record], keys: list[str], modules: Mapping[str, Any]) -> str:
    shown = ", ".join(repr(key) for key in keys[:20]) or "no fields"
    known = "\n".join(f"  {name}: {', '.join(module.SAMPLE)}" for name, module in modules.items())
    if not chosen:
        return (
            f"the rows have the fields {shown}, which is no known format; rename the fields to those of one. "
            f"Formats and their fields:\n{known}"
        )
    told = ", ".join(f"{name} (line {first[name].where.line})" for name in chosen)
    return (
        f"the rows look like more than one format: {told}; the fields are {shown}. "
        "Say which with data.format in a recipe or --format on the command line, or put each kind into a file of its "
        f"own. Formats and their fields:\n{known}"
    )
