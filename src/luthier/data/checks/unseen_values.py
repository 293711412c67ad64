"""Values of JSON answers that held-out rows want and training never shows: a model mostly learns what it is shown.

Looked at are the fields of an object whose values are a choice, as a kind, a status or a yes and no is: few different
ones, each in many rows. A name or a number differs from row to row, and is no choice. Training may score well on rows
like its own, and fail where the wanted value is one that it never saw, so that the score on such a test says how it
carries over, and not how well it was learned.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from luthier.data.checks._patterns import printable_label
from luthier.data.checks._text import quoted, rows, share, view
from luthier.data.checks.base import Check, Finding
from luthier.examples import Conversation, Example

_LONGEST, _MOST_VALUES, _MOST_FIELDS = 64, 100, 200
_EACH = 5
"""Rows a value, in the mean over the held-out rows, from which a field is a choice."""
_WARNED = 0.02
"""Share of the held-out rows that want such a value, from which it is told."""
_SHOWN = _FIELDS = 5


class UnseenValues(Check):
    """Counts the values of each field by split; a field with too many different ones is let go."""

    min_splits = 2

    def __init__(self) -> None:
        self._rows: Counter[str] = Counter()
        self._answered: Counter[str] = Counter()
        self._values: dict[str, dict[str, Counter[str]]] = {}
        self._free: set[str] = set()

    def see(self, example: Example, split: str) -> None:
        """Count the values of an answer that is a JSON object."""
        self._rows[split] += 1
        answer = _answer(example)
        if answer is None:
            return
        self._answered[split] += 1
        for field, value in answer.items():
            self._count(field, value, split)

    def _count(self, field: str, value: Any, split: str) -> None:
        if field in self._free or isinstance(value, dict | list | float):
            return
        if field not in self._values and len(self._values) >= _MOST_FIELDS:
            return
        counts = self._values.setdefault(field, {}).setdefault(split, Counter())
        counts[json.dumps(value, ensure_ascii=False)] += 1
        if len(counts) > _MOST_VALUES or (isinstance(value, str) and len(value) > _LONGEST):
            self._free.add(field)
            del self._values[field]

    def findings(self) -> list[Finding]:
        """A warning for each held-out split that wants values which training never shows, with the fields."""
        trained = next(iter(self._rows), "")
        if not self._answered[trained]:
            return []  # training teaches no objects at all, which is another fault than a value that is not there
        found = (self._unseen(trained, split) for split in list(self._rows)[1:])
        return [finding for finding in found if finding is not None]

    def _unseen(self, trained: str, split: str) -> Finding | None:
        told: list[tuple[int, str]] = []
        for field, splits in self._values.items():
            wanted, shown = splits.get(split, Counter()), splits.get(trained, Counter())
            unseen = [value for value, _ in wanted.most_common() if value not in shown]
            concerned = sum(wanted[value] for value in unseen)
            is_choice = wanted.total() >= _EACH * len(wanted)
            if is_choice and concerned >= max(1, _WARNED * self._rows[split]):
                told.append((concerned, _told(field, concerned, unseen, shown)))
        if not told:
            return None
        told.sort(key=lambda one: -one[0])
        most = told[0][0]
        message = (
            f"{rows(most)} of {split} ({share(most, self._rows[split])}) or more want a value that {trained} never "
            f"shows in that field: {'; '.join(text for _, text in told[:_FIELDS])}"
        )
        if len(told) > _FIELDS:
            message += f"; and {len(told) - _FIELDS} more fields"
        advice = (
            f"add rows with these values to {trained}, or split rows of one source by share; as it is, the test asks "
            "for what was not taught, and a trained model tends to answer with what it was shown"
        )
        return Finding("unseen_values", "warning", message, advice, (), most)


def _told(field: str, concerned: int, unseen: Sequence[str], shown: Mapping[str, int]) -> str:
    there = f"; there it is {_listed(shown)}" if 0 < len(shown) <= _SHOWN else ""
    return f"{printable_label(field)} in {rows(concerned)} ({_listed(unseen)}{there})"


def _listed(values: Iterable[str]) -> str:
    """JSON texts in the quotes of all other findings; a number is told apart from its text."""
    read = (json.loads(value) for value in values)
    return quoted(printable_label(value) if isinstance(value, str) else _plain(value) for value in read)


def _plain(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool) or value is None else f"{value} as a number"


def _answer(example: Example) -> Mapping[str, Any] | None:
    """The object that an answer is; None where it is none."""
    if not isinstance(example, Conversation):
        return None
    if isinstance(example.target, Mapping):
        return example.target
    reply = view(example).reply.strip()
    if not reply.startswith("{"):
        return None
    try:
        value = json.loads(reply)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, Mapping) else None
