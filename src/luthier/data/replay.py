"""Replay: rows of other work beside those of the task, so that what they teach is practised too (Robins 1995).

What is mixed in is a pure function of the file and the seed: rows in the order of sha256(seed, row), so that a row that
is added moves no other, and a larger share takes more of the same. Rows that ask what a held-out row asks are
left out and counted. Replay is trained on and nothing else: it is no example of a prompt, no validation, no test, and
no part of what the checks say about the data.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from luthier.data.checks._text import exact_content
from luthier.data.checks.base import Finding
from luthier.data.prompts import asked
from luthier.data.write import example_values
from luthier.examples import Example, Where


@dataclass(frozen=True)
class Pool:
    """The rows that may be replayed, in the order in which they are taken."""

    rows: tuple[Example, ...]
    repeats: int = 0
    """Exact repeats that were left out."""
    leaks: tuple[Where, ...] = ()
    """Where the rows stand that were left out because they ask what a held-out row asks."""

    def counts(self) -> dict[str, int]:
        """For `split.json`."""
        return {"available": len(self.rows), "repeats": self.repeats, "leaks": len(self.leaks)}

    def findings(self) -> list[Finding]:
        """A warning where rows were left out because of the held-out ones."""
        if not self.leaks:
            return []
        return [
            Finding(
                "replay",
                "warning",
                f"{len(self.leaks):,} rows of data.replay ask what a held-out row asks: {self.leaks[0]}",
                "nothing has to be done: they are not trained on. If they are many, replay something farther from the "
                "task",
                self.leaks,
                len(self.leaks),
            )
        ]


def build_pool(rows: Iterable[Example], held_out: Mapping[str, Sequence[Example]], seed: int) -> Pool:
    """The rows in their order, without repeats and without those that a held-out row repeats.

    Args:
        rows: of the file.
        held_out: rows of validation and test.
        seed: another seed gives another order.
    """
    read = list(rows)
    different = list({exact_content(row): row for row in reversed(read)}.values())[::-1]
    questions = [asked(row) for examples in held_out.values() for row in examples]
    exact, alike = {q.final for q in questions}, {q.folded for q in questions} | {q.whole for q in questions}
    kept: list[Example] = []
    leaks: list[Where] = []
    for row in different:
        found = asked(row)
        same = not exact.isdisjoint((found.final, *found.trained))
        if same or not alike.isdisjoint((found.folded, found.whole, *found.turns)):
            leaks.append(row.where)
        else:
            kept.append(row)
    return Pool(
        tuple(sorted(kept, key=lambda row: _place(row, seed))),
        len(read) - len(different),
        tuple(leaks),
    )


def _place(row: Example, seed: int) -> bytes:
    values = {key: value for key, value in example_values(row).items() if key != "id"}
    text = json.dumps([seed, values], sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def wanted(share: float, task_rows: int) -> int:
    """How many rows make this share of all that is trained on, the task's rows included; at least one if any."""
    return max(1, round(task_rows * share / (1 - share))) if share > 0 else 0
