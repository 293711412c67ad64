"""No held-out prompt is in the training rows.

A test row that was trained on measures memory, not skill. Prompts are compared over all rows, after folding case and
white space; near duplicates are the data checks' matter.
"""

import hashlib
from typing import ClassVar

from luthier.config import canonical_hash
from luthier.examples import Document, Example
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
        seen = {prompt_key(example): example for example in subject.examples}
        faults = []
        for split, examples in subject.held_out.items():
            for example in examples:
                twin = seen.get(prompt_key(example))
                if twin is not None:
                    message = f"this prompt of the {split} rows is trained on too ({twin.where}, row {twin.id!r})"
                    faults.append(Fault(example.id, message, example.where))
        count = sum(len(examples) for examples in subject.held_out.values())
        success = f"None of {count:,} held-out prompts is among {len(subject.examples):,} training rows."
        return self.judge(faults, success, held_out=count)


def prompt_key(example: Example) -> bytes:
    """Equal for examples that ask the same: what was said before the reply, system messages apart, and the tools."""
    if isinstance(example, Document):
        asked: list[object] = [_fold(example.text)]
    else:
        said = [(m.role, _fold(m.content)) for m in example.prompt if m.role not in ("system", "developer")]
        asked = [said, list(example.tools)]
    return hashlib.sha256(canonical_hash(asked).encode()).digest()


def _fold(text: str) -> str:
    return " ".join(text.casefold().split())
