"""Whether rewards like what the rows say is right.

A grader with the wrong field, a schema that nothing satisfies or a reference that never matches gives every reply the
same: the training runs, the loss is small, and nothing is learned, or the wrong thing is.
"""

from typing import ClassVar

from luthier.preflight.base import Fault, Gate, GateResult, Stage, Subject

ROWS = 64
LEAST_SHARE = 0.5


class ReferenceRewards(Gate):
    """The rows' own replies are worth more than saying nothing."""

    proves: ClassVar[str] = "Rewards of sampled replies value the rows' own replies above an empty one."
    stage: ClassVar[Stage] = "model"
    advice: ClassVar[str] = (
        "Look at [rollout.rewards]: each grader must read the field that the rows have, and the form that they want."
    )

    def check(self, subject: Subject) -> GateResult:
        """Grade up to 64 of the rows' replies, and an empty one to each of them."""
        if subject.sampled is None:
            return self.passes("This objective samples no replies.")
        found = subject.sampled.reference_rewards(ROWS)
        if not found:
            return self.passes("No row gives a reply that a grader looks at.", rows=0)
        mean = sum(reward for _, reward, _, _ in found) / len(found)
        empty = sum(nothing for _, _, nothing, _ in found) / len(found)
        faults = [
            Fault(row, f"its own reply is worth {reward:g}, an empty one {nothing:g}" + (f" ({why})" if why else ""))
            for row, reward, nothing, why in found
            if not reward > nothing  # written so that a NaN fails
        ]
        details = {"rows": len(found), "mean": mean, "mean_of_empty": empty, "worse": len(faults)}
        said = f"The replies of {len(found):,} rows are worth {mean:.3f} in the mean, an empty one {empty:.3f}."
        if len(faults) <= LEAST_SHARE * len(found):  # labels err, and a judge does
            return self.passes(said, **details)
        return self.judge(faults, said, **details)
