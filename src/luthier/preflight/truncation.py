"""What the limit of tokens cuts off is counted, and too much of it is refused.

Rows longer than `training.max_tokens` lose their ends, which is where replies are. A cut on the left, or one that
moves the mask, would train on something else; both are looked for.
"""

from typing import ClassVar

from luthier.examples import Row
from luthier.preflight._cases import Case
from luthier.preflight.base import Fault, Gate, GateResult, Stage, Subject


class Truncation(Gate):
    """Rows are cut rarely, on the right, and as announced."""

    proves: ClassVar[str] = "No more rows are cut than data.max_truncated_share allows, and only on the right."
    stage: ClassVar[Stage] = "rows"
    advice: ClassVar[str] = "Raise training.max_tokens, shorten the rows, or allow it with data.max_truncated_share."

    def check(self, subject: Subject) -> GateResult:
        """Compare each row with the same row rendered without a limit."""
        limit, allowed = subject.settings.max_tokens, subject.settings.max_truncated_share
        cases = [case for case in subject.cases if not case.error]
        broken = [Fault(c.row_id, problem, c.where) for c in cases if (problem := _broken(c, limit))]
        cut = [c for c in cases if c.lost_tokens]
        trained = [_trained(c.whole) - _trained(c.rows) for c in cut]
        share = len(cut) / len(cases) if cases else 0.0
        total = sum(_trained(c.whole) for c in cases)
        longest = max((len(row.ids) for c in cases for row in c.whole), default=0)
        details = {
            "rows_cut": len(cut),
            "share": share,
            "tokens_lost": sum(c.lost_tokens for c in cut),
            "trained_tokens_lost": sum(trained),
            "longest_row_tokens": longest,
            "max_tokens": limit,
        }
        said = (
            f"{len(cut):,} of {len(cases):,} rows ({share:.1%}) are cut at {limit:,} tokens; they lose "
            f"{sum(trained):,} of {total:,} trained tokens. The longest row has {longest:,} tokens."
        )
        if share > allowed:
            rows = [Fault(c.row_id, f"loses {c.lost_tokens:,} tokens", c.where) for c in cut]
            rows = [Fault("", f"{said} Allowed are {allowed:.1%}."), *rows]
            return self.judge([*broken, *rows], "", **details)
        return self.judge(broken, said, **details)


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
