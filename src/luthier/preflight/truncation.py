"""What the limit of tokens cuts off is counted, and too much of it is refused.

Rows longer than `training.max_tokens` lose their ends, which is where replies are. A cut on the left, or one that
moves the mask, would train on something else; both are looked for.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from luthier.examples import Row
from luthier.preflight._cases import Case
from luthier.preflight.base import Fault, Gate, GateResult, Stage, Subject


class Truncation(Gate):
    """Rows are cut rarely, on the right, and as announced."""

    proves: ClassVar[str] = "No more rows are cut than data.max_truncated_share allows, and only on the right."
    stage: ClassVar[Stage] = "rows"
    advice: ClassVar[str] = "Raise training.max_tokens, shorten the rows, or allow it with data.max_truncated_share."

    def check(self, subject: Subject) -> GateResult:
        """Compare each row with the same row rendered without a limit; training and validation rows each by themselves.

        Validation rows without their replies would choose the best step by nothing.
        """
        train, validation = _Cut("training", subject.cases), _Cut("validation", subject.validation_cases)
        limit, allowed = subject.settings.max_tokens, subject.settings.max_truncated_share
        faults = [
            Fault(c.row_id, problem, c.where)
            for part in (train, validation)
            for c in part.cases
            if (problem := _broken(c, limit))
        ]
        for part in (train, validation):
            faults += part.faults(limit, allowed)
        details = {**train.details(), "max_tokens": limit, "validation_rows_cut": len(validation.cut)}
        return self.judge(faults, f"{train.said(limit)} {validation.said(limit)}".strip(), **details)


class _Cut:
    """What the limit cuts off the rows of one split."""

    def __init__(self, split: str, cases: Sequence[Case]) -> None:
        self.split = split
        self.cases = [case for case in cases if not case.error]
        self.cut = [case for case in self.cases if case.lost_tokens]
        self.share = len(self.cut) / len(self.cases) if self.cases else 0.0
        self.trained_lost = sum(_trained(c.whole) - _trained(c.rows) for c in self.cut)
        self.longest = max((len(row.ids) for c in self.cases for row in c.whole), default=0)

    def said(self, limit: int) -> str:
        """The counts in words; empty where there is no row."""
        if not self.cases:
            return ""
        total = sum(_trained(c.whole) for c in self.cases)
        return (
            f"{len(self.cut):,} of {len(self.cases):,} {self.split} rows ({self.share:.1%}) are cut at {limit:,} "
            f"tokens and lose {self.trained_lost:,} of {total:,} trained tokens; "
            f"the longest has {self.longest:,} tokens."
        )

    def faults(self, limit: int, allowed: float) -> list[Fault]:
        """The rows that are cut, if they are more than allowed."""
        if self.share <= allowed:
            return []
        rows = [Fault(c.row_id, f"loses {c.lost_tokens:,} tokens", c.where) for c in self.cut]
        return [Fault("", f"{self.said(limit)} Allowed are {allowed:.1%}."), *rows]

    def details(self) -> dict[str, Any]:
        """Plain numbers for `preflight.json`."""
        return {
            "rows_cut": len(self.cut),
            "share": self.share,
            "tokens_lost": sum(c.lost_tokens for c in self.cut),
            "trained_tokens_lost": self.trained_lost,
            "longest_row_tokens": self.longest,
        }


def _trained(rows: tuple[Row, ...]) -> int:
    return sum(row.trained_tokens for row in rows)


def _broken(case: Case, limit: int) -> str:
    """How the rows differ from the beginnings of the uncut rows; empty if they do not."""
    if len(case.rows) != len(case.whole):
        return f"{len(case.whole)} sequences became {len(case.rows)}"
    for row, whole in zip(case.rows, case.whole, strict=True):
        n = len(row.ids)
        if n != min(len(whole.ids), limit):
            return f"it has {n} tokens; expected {min(len(whole.ids), limit)} of its {len(whole.ids)}"
        if row.ids != whole.ids[:n]:
            return "it was cut elsewhere than on the right"
        if row.loss_mask != whole.loss_mask[:n]:
            return "the cut moved the loss mask"
    return ""
