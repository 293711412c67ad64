"""A check that looks for kinds of things in the text of each row, and reports how many rows hold each kind.

A system turn or a list of tools that rows share is scanned once. What was matched is never kept: only its kind and the
row's place.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, NamedTuple

from luthier.data.checks._text import leaves, rows, share, unescaped, view
from luthier.data.checks.base import Check, Finding, Severity, Tally
from luthier.data.prompts import tools_text
from luthier.examples import Document, Example, Where

_REMEMBERED = 64


class Kind(NamedTuple):
    """How a kind is reported: `message` completes `N rows hold ...`."""

    severity: Severity
    message: str
    advice: str


class Tallies:
    """Rows counted by kind, and the findings that say so."""

    def __init__(self, check: str, kinds: Mapping[str, Kind]) -> None:
        self._check, self._kinds = check, kinds
        self._by_kind = {name: Tally() for name in kinds}

    def add(self, kind: str, where: Where) -> None:
        """Count a row for a kind."""
        self._by_kind[kind].add(where)

    def findings(self, total: int) -> list[Finding]:
        """One finding for each kind that occurred in `total` rows, the commonest first."""
        seen = [(kind, self._by_kind[name]) for name, kind in self._kinds.items() if self._by_kind[name].count]
        seen.sort(key=lambda pair: -pair[1].count)
        return [
            Finding(
                self._check,
                kind.severity,
                f"{rows(tally.count)} ({share(tally.count, total)}) with {kind.message}",
                kind.advice,
                tuple(tally.where),
                tally.count,
            )
            for kind, tally in seen
        ]


class TextScan(Check):
    """Abstract: a subclass names its check and its kinds, and says which kinds a text holds."""

    check: ClassVar[str]
    kinds: ClassVar[Mapping[str, Kind]]

    def __init__(self) -> None:
        self._tallies = Tallies(self.check, self.kinds)
        self._shared: dict[str, frozenset[str]] = {}
        self._rows = 0

    @abstractmethod
    def scan(self, text: str) -> set[str]:
        """The kinds, keys of `kinds`, that the text holds."""

    def see(self, example: Example, split: str) -> None:
        """Scan the row's system turn, tools, prompt, replies and target."""
        self._rows += 1
        texts = view(example)
        held = self.scan(texts.scanned())
        if texts.system:
            held = held | self._scan_shared(texts.system, lambda: unescaped(texts.system))
        if not isinstance(example, Document) and example.tools:
            tools = example.tools
            held = held | self._scan_shared(tools_text(tools), lambda: leaves(tools))
        for kind in held:
            self._tallies.add(kind, example.where)

    def _scan_shared(self, key: str, text: Callable[[], str]) -> frozenset[str]:
        """The kinds in `text()`, found out once for rows whose system turn or tools are `key`."""
        known = self._shared.get(key)
        if known is None:
            known = frozenset(self.scan(text()))
            if len(self._shared) < _REMEMBERED:
                self._shared[key] = known
        return known

    def findings(self) -> list[Finding]:
        """One finding for each kind that occurred, the commonest first."""
        return self._tallies.findings(self._rows)
