"""No held-out prompt is in the training rows.

A test row that was trained on measures memory, not skill. All rows are compared, and in a chat every question that is
answered counts; blanks and Unicode form are folded. What is only alike or nearly the same is the data checks' matter.
"""

from typing import ClassVar

from luthier.data.prompts import asked
from luthier.examples import Example
from luthier.preflight.base import Fault, Gate, GateResult, Stage, Subject


class SplitsDisjoint(Gate):
    """Held-out rows were not trained on."""

    proves: ClassVar[str] = "No prompt of the validation or test rows occurs in the training rows."
    stage: ClassVar[Stage] = "rows"
    advice: ClassVar[str] = (
        "Remove these rows from one side, or leave data.test and data.validation to Luthier's split."
    )

    def check(self, subject: Subject) -> GateResult:
        """Look each held-out prompt up among the training prompts."""
        held_out = [(split, example) for split, examples in subject.held_out.items() for example in examples]
        seen: dict[int, Example] = {}
        for example in subject.examples:
            answered = asked(example)
            for key in (answered.final, *answered.trained):
                seen.setdefault(key, example)
        faults = []
        for split, example in held_out:
            twin = seen.get(asked(example).final)
            if twin is not None:
                message = f"this prompt of the {split} rows is trained on too ({twin.where}, row {twin.id!r})"
                faults.append(Fault(example.id, message, example.where))
        success = f"None of {len(held_out):,} held-out prompts is among {len(subject.examples):,} training rows."
        return self.judge(faults, success, held_out=len(held_out))
