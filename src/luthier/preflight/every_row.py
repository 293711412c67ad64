"""No row is an exception: each one keeps a token to learn from, and the cuts of all of them are counted.

The other gates over rows look at a sample of a long file. What they found there is counted here in all rows, those to
train on and those by which the best step is chosen, as they will go into the batches.
"""

from typing import ClassVar

from luthier.data.source import Unit
from luthier.examples import Example
from luthier.preflight.base import Fault, Gate, GateResult, Stage, Subject
from luthier.preflight.trained_tokens import untrained


class EveryRow(Gate):
    """What `trained_tokens` and `truncation` found in a sample holds for all rows."""

    proves: ClassVar[str] = (
        "Each of all training and validation rows keeps a trained token, and no more are cut than allowed."
    )
    stage: ClassVar[Stage] = "all_rows"
    advice: ClassVar[str] = (
        "Raise training.max_tokens, shorten or remove these rows, or allow cuts with data.max_truncated_share."
    )

    def check(self, subject: Subject) -> GateResult:
        """Count over every unit, split by split."""
        faults: list[Fault] = []
        counted: dict[str, int] = {}
        for split, examples in subject.splits.items():
            units = subject.units.get(split, ())
            if len(units) != len(examples):
                faults.append(Fault("", f"{len(units):,} of {len(examples):,} {split} rows were rendered"))
                continue
            for example, unit in zip(examples, units, strict=True):
                faults += [
                    Fault(row.id, untrained(row), example.where)
                    for row in unit
                    if not row.trained_tokens and subject.objective.writes
                ]
                faults += [] if unit else [Fault(example.id, "no row is left of it", example.where)]
            rows = sum(map(len, units))
            cut = sum(_cut(subject, example, unit) for example, unit in zip(examples, units, strict=True))
            allowed = subject.settings.max_truncated_share
            if cut > allowed * rows:
                faults.append(Fault("", f"{cut:,} of {rows:,} {split} rows are cut; allowed are {allowed:.1%}"))
            counted |= {f"{split}_rows": rows, f"{split}_rows_cut": cut}
        said = " and ".join(f"{len(examples):,} {split}" for split, examples in subject.splits.items() if examples)
        return self.judge(faults, f"All {said} rows keep a trained token, and few enough are cut.", **counted)


def _cut(subject: Subject, example: Example, unit: Unit) -> int:
    """How many rows of a unit lost tokens; only those as long as the limit can have."""
    if all(len(row.ids) < subject.settings.max_tokens for row in unit):
        return 0
    whole = subject.objective.rows(example, subject.untruncated)
    return sum(len(long.ids) > len(row.ids) for row, long in zip(unit, whole, strict=False))
