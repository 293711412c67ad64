"""What is wrong with a data set, said with file and line: examples stream through the checks, findings come out.

A check is fed one example at a time and keeps a few bytes per row at most, so a million rows fit in memory. Checks
report and never repair; a finding of severity `error` stops a run.
"""

from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, TypeAlias

from luthier import registry
from luthier.errors import DataError
from luthier.examples import Example, Where

PACKAGE = "luthier.data.checks"
Severity: TypeAlias = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
PLACES_KEPT = 20


EMPTY_REPLY = "an empty reply"
"""What the check `empty` says of a row that has none."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a check (or a pre-flight gate) found, with what to do about it.

    `count` is how many rows are concerned; `where` names at most 20 of them. Neither `message` nor `advice` quotes
    a secret or personal data.
    """

    check: str
    severity: Severity
    message: str
    advice: str
    where: tuple[Where, ...] = ()
    count: int = 1

    def __post_init__(self) -> None:
        if self.severity not in SEVERITIES:
            raise ValueError(f"severity {self.severity!r}: expected one of {', '.join(SEVERITIES)}")
        object.__setattr__(self, "where", tuple(self.where)[:PLACES_KEPT])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; `from_dict` reads them back to an equal finding."""
        return {
            "check": self.check,
            "severity": self.severity,
            "message": self.message,
            "advice": self.advice,
            "where": [asdict(place) for place in self.where],
            "count": self.count,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Finding":
        """The finding that `to_dict` wrote.

        Raises:
            DataError: a field is missing or of the wrong kind.
        """
        try:
            return cls(
                check=str(values["check"]),
                severity=values["severity"],
                message=str(values["message"]),
                advice=str(values["advice"]),
                where=tuple(Where(str(p["path"]), int(p["line"]), int(p.get("row", 0))) for p in values["where"]),
                count=int(values["count"]),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"not a finding: {error!r}; expected what Finding.to_dict() writes") from None


class Check(ABC):
    """Watches a stream of examples for one kind of damage; a file in `data/checks` defines one."""

    min_splits: ClassVar[int] = 1
    """The check has nothing to say about fewer splits than this, and is then left out."""

    @abstractmethod
    def see(self, example: Example, split: str) -> None:
        """Take one example of a split (`train`, `validation`, `test`); splits come one after the other."""

    @abstractmethod
    def findings(self) -> list[Finding]:
        """What was found so far, in the check's own order."""


class Places:
    """Where each row stood, at 12 bytes a row; an index stands for a row."""

    def __init__(self) -> None:
        self._paths: list[str] = []
        self._path_numbers: dict[str, int] = {}
        self._path_of = array("I")
        self._line_of, self._row_of = array("I"), array("I")

    def __len__(self) -> int:
        return len(self._line_of)

    def __getitem__(self, index: int) -> Where:
        return Where(self._paths[self._path_of[index]], self._line_of[index], self._row_of[index])

    def add(self, where: Where) -> int:
        """Keep a place and return its index."""
        number = self._path_numbers.get(where.path)
        if number is None:
            number = self._path_numbers[where.path] = len(self._paths)
            self._paths.append(where.path)
        self._path_of.append(number)
        self._line_of.append(where.line)
        self._row_of.append(where.row)
        return len(self._line_of) - 1


class Tally:
    """How many rows were concerned, and the places of the first of them."""

    __slots__ = ("count", "where")

    def __init__(self) -> None:
        self.count = 0
        self.where: list[Where] = []

    def add(self, where: Where) -> None:
        """Count a row; two rows may stand on one line (of a JSON array)."""
        self.count += 1
        if len(self.where) < PLACES_KEPT:
            self.where.append(where)


def run_checks(splits: Mapping[str, Iterable[Example]], only: Sequence[str] | None = None) -> list[Finding]:
    """Stream every split through the checks, in the order given, and return the findings, errors first.

    Args:
        splits: rows by split name; the first is what is trained on, the later ones are held out from it.
        only: names of the checks to run; None runs all that `data/checks` holds.

    Raises:
        RecipeError: `only` names a check that does not exist.
        DataError: a row cannot be read (raised by the reader behind an iterable).
    """
    names = registry.names(PACKAGE) if only is None else list(only)
    classes = [registry.load_class(PACKAGE, name, Check) for name in names]  # type: ignore[type-abstract]
    checks = [cls() for cls in classes if len(splits) >= cls.min_splits]
    watchers = [check.see for check in checks]
    for split, examples in splits.items():
        for example in examples:
            for see in watchers:
                see(example, split)
    found = [finding for check in checks for finding in check.findings()]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))
