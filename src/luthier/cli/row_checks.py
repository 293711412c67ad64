"""Rows of data files, streamed through the checks; those that cannot be read become findings too."""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.errors import DataError
from luthier.examples import Example, Where

if TYPE_CHECKING:
    from luthier.data.checks.base import Finding, Tally
    from luthier.preflight.base import GateResult

MAX_KINDS = 20
"""Kinds of rows that cannot be read, told apart; further ones are counted together."""
_OTHER_KIND = "something else"


@dataclass
class Outcome:
    """All that was found; `error` is what ended the command before its end, and empty if nothing did."""

    rows: dict[str, int] = field(default_factory=dict)
    formats: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    findings: "list[Finding]" = field(default_factory=list)
    gates: "list[GateResult]" = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)
    error: str = ""

    @property
    def passed(self) -> bool:
        """Whether a run may go on."""
        return (
            not self.error and all(f.severity != "error" for f in self.findings) and all(g.passed for g in self.gates)
        )

    @property
    def rows_per_second(self) -> float:
        """Rows read and checked in a second."""
        return sum(self.rows.values()) / max(self.seconds, 1e-9)


class Broken:
    """Rows that cannot be read, counted by what is wrong with them; numbers in a message make no difference."""

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[str, Tally]] = {}

    def add(self, error: DataError) -> None:
        """Count a row."""
        from luthier.data.checks.base import Tally

        kind, message = re.sub(r"\d+", "0", error.message), error.message
        if kind not in self._kinds and len(self._kinds) >= MAX_KINDS:
            kind = message = _OTHER_KIND
        _, tally = self._kinds.setdefault(kind, (message, Tally()))
        tally.add(Where(str(error.path), error.line or 0, error.row or 0))

    def findings(self) -> "list[Finding]":
        """An error for each kind, in the order in which they were met."""
        from luthier.data.checks._text import rows
        from luthier.data.checks.base import Finding

        advice = "Mend these rows or take them out: `luthier run` stops at the first of them."
        found = []
        for message, tally in self._kinds.values():
            first = "; the first" if tally.count > 1 and message != _OTHER_KIND else ""
            told = f"{rows(tally.count)} cannot be read{first}: {message}"
            found.append(Finding("schema", "error", told, advice, tuple(tally.where), tally.count))
        return found


def check_streams(files: Mapping[str, Sequence[Path]], instruction: str | None, outcome: Outcome) -> None:
    """Stream the rows of each split through the checks; those that cannot be read become findings too."""
    from luthier.data.checks.base import run_checks

    broken = Broken()
    started = time.perf_counter()
    found = run_checks({name: stream(paths, name, instruction, outcome, broken) for name, paths in files.items()})
    outcome.findings = [*broken.findings(), *found]
    outcome.seconds = time.perf_counter() - started


def stream(
    paths: Sequence[Path], split: str, instruction: str | None, outcome: Outcome, broken: Broken
) -> Iterator[Example]:
    """The rows of a split's files, counted; those that cannot be read go to `broken`."""
    from luthier.data.formats.base import read_examples

    outcome.rows[split] = 0
    for path in paths:
        for example in read_examples(path, outcome.formats[str(path)], instruction, broken.add):
            outcome.rows[split] += 1
            yield example
