"""Every row can be rendered, and its rows fit its turns.

A row that cannot be rendered is a fault of the run, never a row to leave out in silence.
"""

from typing import ClassVar

from luthier.preflight.base import Fault, Gate, GateResult, Stage, Subject


class Rendered(Gate):
    """Nothing is lost before the other gates look."""

    proves: ClassVar[str] = "Every row renders, as one sequence for all its trained replies or one for each."
    stage: ClassVar[Stage] = "rows"
    advice: ClassVar[str] = "Mend these rows, or choose a template that can hold them (model.template)."

    def check(self, subject: Subject) -> GateResult:
        """Look at each case's error and at the number of its rows, in the validation rows too."""
        faults = []
        for case in (*subject.cases, *subject.validation_cases):
            if case.error:
                faults.append(Fault(case.row_id, case.error, case.where))
            elif not case.whole or not all(row.ids for row in case.whole):
                faults.append(Fault(case.row_id, "it became no tokens at all", case.where))
            elif case.turns and not case.turn_rows():
                counts = f"{len(case.whole)} sequences for {len(case.turns)} replies"
                faults.append(Fault(case.row_id, f"{counts}; expected one, or one for each", case.where))
        validation = len(subject.validation_cases)
        said = f"{subject.coverage()} render{f', and {validation:,} of validation' if validation else ''}."
        return self.judge(faults, said, cases=len(subject.cases), validation_cases=validation)
