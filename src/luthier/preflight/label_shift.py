"""Each trained token is predicted from the token before it, and from nothing later.

Labels that are shifted twice, or not at all, train a model to guess the token after next or to copy the present one;
the loss falls either way. The batches that the engine will run are taken apart and compared with their rows.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch

from luthier.examples import Row
from luthier.models.forest import Batch
from luthier.preflight._cases import spread
from luthier.preflight.base import Fault, Gate, GateResult, Stage, Subject

ROWS_PER_BATCH = 16
MAX_ROWS = 256


class LabelShift(Gate):
    """Targets are the next tokens of their own row."""

    proves: ClassVar[str] = (
        "In the batches that will be run, every target is its row's next token, and the first is never one."
    )
    stage: ClassVar[Stage] = "rows"
    advice: ClassVar[str] = "This is a fault in how batches are built; please report it with the rows named here."

    def check(self, subject: Subject) -> GateResult:
        """Build batches from real rows and read the targets back."""
        rows = spread(subject.trained_rows, MAX_ROWS)
        faults: list[Fault] = []
        for start in range(0, len(rows), ROWS_PER_BATCH):
            part = rows[start : start + ROWS_PER_BATCH]
            faults.extend(_compare(part, subject.batches.build(part)))
        if not rows:
            return self.fails("There is no row with a trained token to look at.")
        targets = sum(row.trained_tokens for row in rows)
        return self.judge(
            faults, f"{targets:,} targets of {len(rows):,} rows are right.", targets=targets, rows=len(rows)
        )


def _compare(rows: Sequence[Row], batch: Batch) -> list[Fault]:
    source_K = batch.hidden_H[batch.hidden_Q[batch.prediction_K]]
    target_K = batch.target_Q[batch.prediction_K]
    before_K, position_K = batch.forest.ids_N[source_K], batch.forest.positions_N[source_K]
    faults = []
    for index, row in enumerate(rows):
        mine = batch.row_K == index
        trained = [i for i, weight in enumerate(row.loss_mask) if weight and i > 0]
        problems = [
            name
            for name, found, wanted in (
                ("targets", target_K[mine], [row.ids[i] for i in trained]),
                ("tokens before the targets", before_K[mine], [row.ids[i - 1] for i in trained]),
                ("positions before the targets", position_K[mine], [i - 1 for i in trained]),
                ("weights", batch.loss_mask_K[mine].double(), [row.loss_mask[i] for i in trained]),
            )
            if not _equal(found, wanted)
        ]
        if problems:
            faults.append(Fault(row.id, f"wrong {', '.join(problems)}"))
    return faults


def _equal(found: torch.Tensor, wanted: Sequence[float]) -> bool:
    # weights are held in float32; ids and positions are whole numbers below 2**24, so both compare exactly there
    return found.shape == (len(wanted),) and torch.equal(found.float(), torch.tensor(wanted, dtype=torch.float32))
