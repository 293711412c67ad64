"""Rows of one batch cannot see each other.

If attention crosses from one row into the next, every row is trained on a context that it will never have. One row's
own tokens are replaced; the log-probabilities of all other rows must stay equal to the last bit.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch

from luthier.examples import Row
from luthier.preflight._cases import shared_length
from luthier.preflight._probe import evaluating, score_probe, scored
from luthier.preflight.base import Gate, GateResult, Stage, Subject


class RowIsolation(Gate):
    """Changing one row leaves the others bit-identical."""

    proves: ClassVar[str] = "Changing the tokens of one row of a batch leaves every other row bit-identical."
    stage: ClassVar[Stage] = "model"
    advice: ClassVar[str] = "Attention leaks between rows on this model; please report the model's name."

    def check(self, subject: Subject) -> GateResult:
        """Score the batch, change the first row that can be changed, then the last, and score again each time."""
        loaded, scorer = subject.need_model(), subject.need_models().policy
        probe = score_probe(subject)
        if probe is None:
            return self.fails("There is no row with a trained token to score.")
        rows, batch = probe.rows, probe.batch
        changeable = _changeable(rows)
        if not changeable:  # one row only, or all are beginnings of one another: give the first another end beside it
            rows = [rows[0], _tail_changed(rows[0], subject)]
            changeable = _changeable(rows)
            batch = subject.batches.build(rows).to(loaded.device)
        if not changeable:
            return self.fails("The rows are too short to change one of them apart from the others.")
        victims = sorted({changeable[0], changeable[-1]})
        leaks = []
        with evaluating(loaded.model):  # in the arithmetic of training, not in float32: bits need no tolerance
            before = scored(scorer, batch)
            for victim in victims:
                changed = [
                    _replace(row, _own_from(i, rows), rows) if i == victim else row for i, row in enumerate(rows)
                ]
                after = scored(scorer, subject.batches.build(changed).to(loaded.device))
                others = [i for i in range(len(rows)) if i != victim]
                leaks += [rows[i].id for i in others if not torch.equal(before[i], after[i])]
        details = {"rows": len(rows), "probes": len(victims), "leaks": len(leaks)}
        if leaks:
            named = ", ".join(repr(row_id) for row_id in leaks[:5])
            return self.fails(f"Changing another row changed the scores of the rows {named}.", **details)
        return self.passes(f"{len(victims)} of {len(rows)} rows were changed; no other row moved by a bit.", **details)


def _changeable(rows: Sequence[Row]) -> list[int]:
    """Rows with tokens of their own that can be replaced."""
    return [i for i, row in enumerate(rows) if len(rows) > 1 and _own_from(i, rows) < len(row.ids)]


def _own_from(index: int, rows: Sequence[Row]) -> int:
    """The position from which on the tokens of a row can change without another row's tree changing its shape."""
    mine = rows[index].ids
    return max(shared_length(mine, other.ids) for i, other in enumerate(rows) if i != index) + 1


def _replace(row: Row, start: int, rows: Sequence[Row]) -> Row:
    """The row with other tokens from `start` on, taken from the rows so that they are in the vocabulary."""
    pool = sorted({token for other in rows for token in other.ids})
    following = dict(zip(pool, [*pool[1:], pool[0]], strict=True))
    return replace(row, ids=(*row.ids[:start], *(following[token] for token in row.ids[start:])))


def _tail_changed(row: Row, subject: Subject) -> Row:
    """A second row for a file that has one: the same beginning, another end."""
    vocabulary = len(subject.tokenizer)
    half = len(row.ids) // 2
    changed = (*row.ids[:half], *((t + 1) % vocabulary for t in row.ids[half:]))
    return replace(row, ids=changed, id=f"{row.id}/changed")
