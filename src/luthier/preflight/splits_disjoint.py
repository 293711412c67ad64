"""No held-out prompt is in the training rows.

A test row that was trained on measures memory, not skill. Prompts are compared over all rows, after folding case and
white space; near duplicates are the data checks' matter.
"""

from collections.abc import Sequence
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
        held_out = [(split, example) for split, examples in subject.held_out.items() for example in examples]
        keys = _keys([*subject.examples, *(example for _, example in held_out)])
        seen = dict(zip(keys, subject.examples, strict=False))
        faults = []
        for (split, example), key in zip(held_out, keys[len(subject.examples) :], strict=True):
            twin = seen.get(key)
            if twin is not None:
                message = f"this prompt of the {split} rows is trained on too ({twin.where}, row {twin.id!r})"
                faults.append(Fault(example.id, message, example.where))
        success = f"None of {len(held_out):,} held-out prompts is among {len(subject.examples):,} training rows."
        return self.judge(faults, success, held_out=len(held_out))


def _keys(examples: Sequence[Example]) -> list[str]:
    """The key of each prompt; with its system messages where the users all ask the same ("Summarize.") about them."""
    asked = [prompt_key(example, with_system=False) for example in examples]
    whole = [prompt_key(example, with_system=True) for example in examples]
    return whole if len(set(asked)) * 10 <= len(set(whole)) else asked


def prompt_key(example: Example, with_system: bool) -> str:
    """Equal for examples that ask the same: what was said before the reply, and the tools; system messages if asked."""
    if isinstance(example, Document):
        asked: list[object] = [_fold(example.text)]
    else:
        said = [(m.role, _fold(m.content)) for m in example.prompt]
        kept = [turn for turn in said if with_system or turn[0] not in ("system", "developer")]
        asked = [kept, list(example.tools)]
    return canonical_hash(asked)


def _fold(text: str) -> str:
    return " ".join(text.casefold().split())
