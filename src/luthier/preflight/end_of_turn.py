"""The model is taught to stop.

If the token that ends a turn is not trained on (masked because it is also the padding token, or never written), the
tuned model talks without end.
"""

from typing import ClassVar

from luthier.examples import Document, Row
from luthier.preflight._cases import Case
from luthier.preflight.base import Fault, Gate, GateResult, Stage, Subject

LEAST_SHARE = 0.99


class EndOfTurn(Gate):
    """A stop token ends each trained reply and is trained on."""

    proves: ClassVar[str] = "At least 99 % of the trained replies end with a trained token that stops the server."
    stage: ClassVar[Stage] = "rows"
    advice: ClassVar[str] = (
        "The template must write the model's end-of-turn token after each reply, and that token must be trained on; "
        "choose another model.template, or mend the file that it names."
    )

    def check(self, subject: Subject) -> GateResult:
        """Find the first stop token behind each reply's prompt; it must be there and be trained on.

        A reply whose end the cut took is the gate `truncation`'s matter and is left out.
        """
        if not subject.objective.writes:
            return self.passes("A head reads what is asked; no reply is learned.")
        stops = subject.template.stop_ids
        ended, missed = 0, 0
        faults = []
        for case in subject.cases:
            found = [_trained_end(case, row, len(turn.prompt_ids), stops) for turn, row in case.turn_rows()]
            if isinstance(case.example, Document):
                found = [_trained_end(case, row, len(row.ids) - 1, stops) for row in case.whole]
            ended += found.count(True)
            if missing := found.count(False):
                missed += missing
                faults.append(Fault(case.row_id, f"{missing} of its replies have no trained end", case.where))
        total = ended + missed
        share = ended / total if total else 0.0
        details = {"ended": ended, "share": share, "stop_ids": sorted(stops)}
        if not total:
            return self.fails("There is no reply that ends within its row.", **details)
        if share >= LEAST_SHARE:
            return self.passes(f"{share:.1%} of the replies end with a trained stop token.", **details)
        return self.judge(faults, "", **details)


def _trained_end(case: Case, whole: Row, start: int, stops: frozenset[int]) -> bool | None:
    """Whether the first stop token from `start` on is trained on; None if the cut took it."""
    kept = next((row for row, other in zip(case.rows, case.whole, strict=False) if other is whole), None)
    end = next((i for i in range(start, len(whole.ids)) if whole.ids[i] in stops), None)
    if end is None:
        return False
    if kept is None or end >= len(kept.ids):
        return None
    return bool(kept.loss_mask[end])
