"""Every row keeps a token to learn from.

A row whose reply was cut off, whose turns all have weight 0, or whose mask was lost adds nothing to the loss, or NaN;
the loss curve of the others looks well all the same. Validation rows without one would choose the best step by nothing.
"""

from typing import ClassVar

from luthier.examples import Row
from luthier.preflight._cases import Case
from luthier.preflight.base import Fault, Gate, GateResult, Stage, Subject


class TrainedTokens(Gate):
    """At least one trained token in each row, after the cut."""

    proves: ClassVar[str] = "Every row keeps at least one trained token after it was cut to training.max_tokens."
    stage: ClassVar[Stage] = "rows"
    advice: ClassVar[str] = "Raise training.max_tokens, shorten the prompts, or remove rows without a trained reply."

    def check(self, subject: Subject) -> GateResult:
        """Count the trained tokens of each row; the first token of a row cannot be predicted and does not count."""
        faults = [fault for case in (*subject.cases, *subject.validation_cases) for fault in _faults(case)]
        if not subject.objective.writes:  # a head reads the one token that a row may have
            faults = [fault for case in (*subject.cases, *subject.validation_cases) for fault in _empty(case)]
        rows = [row for case in subject.cases for row in case.rows]
        tokens, trained = sum(len(row.ids) for row in rows), sum(row.trained_tokens for row in rows)
        share = f"{trained / tokens:.0%}" if tokens else "none"
        least = min((row.trained_tokens for row in rows), default=0)
        message = f"{trained:,} of {tokens:,} tokens are trained on ({share}); the least in a row is {least}."
        return self.judge(faults, message, tokens=tokens, trained_tokens=trained)


def _empty(case: Case) -> list[Fault]:
    if case.error or any(row.ids for row in case.rows):
        return []
    return [Fault(case.row_id, "no token is left of it", case.where)]


def _faults(case: Case) -> list[Fault]:
    if not case.rows and not case.error:  # an error is told by `rendered`
        return [Fault(case.row_id, "no row is left of it", case.where)]
    return [Fault(row.id, untrained(row), case.where) for row in case.rows if not row.trained_tokens]


def untrained(row: Row) -> str:
    """What is wrong with a row without a trained token."""
    return f"none of its {len(row.ids)} tokens is trained on"
