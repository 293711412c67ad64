"""Every row keeps a token to learn from.

A row whose reply was cut off, whose turns all have weight 0, or whose mask was lost adds nothing to the loss, or NaN;
the loss curve of the others looks well all the same.
"""

from typing import ClassVar

from luthier.preflight.base import Fault, Gate, GateResult, Stage, Subject


class TrainedTokens(Gate):
    """At least one trained token in each row, after the cut."""

    proves: ClassVar[str] = "Every row keeps at least one trained token after it was cut to training.max_tokens."
    stage: ClassVar[Stage] = "rows"
    advice: ClassVar[str] = "Raise training.max_tokens, shorten the prompts, or remove rows without a trained reply."

    def check(self, subject: Subject) -> GateResult:
        """Count the trained tokens of each row; the first token of a row cannot be predicted and does not count."""
        faults, counts = [], []
        for case in subject.cases:
            if case.error:
                continue
            if not case.rows:
                faults.append(Fault(case.row_id, "no row is left of it", case.where))
            for row in case.rows:
                counts.append(row.trained_tokens)
                if not row.trained_tokens:
                    faults.append(Fault(row.id, f"none of its {len(row.ids)} tokens is trained on", case.where))
        tokens = sum(len(row.ids) for case in subject.cases for row in case.rows)
        trained = sum(counts)
        share = f"{trained / tokens:.0%}" if tokens else "none"
        least = min(counts, default=0)
        message = f"{trained:,} of {tokens:,} tokens are trained on ({share}); the least in a row is {least}."
        return self.judge(faults, message, tokens=tokens, trained_tokens=trained)
