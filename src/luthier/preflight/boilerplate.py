"""What the server writes before a reply is not trained on.

A mask that starts too early teaches the model to write its own role header (or an empty thinking block) a second time.
"""

from typing import ClassVar

from luthier.data.templates import Template
from luthier.examples import Message
from luthier.preflight.base import Fault, Gate, GateResult, Stage, Subject

PROBES = ("a", "Z 9?", "{}")


class Boilerplate(Gate):
    """No token of the generation prompt is trained on."""

    proves: ClassVar[str] = "No token that the server writes before a reply is trained on."
    stage: ClassVar[Stage] = "rows"
    advice: ClassVar[str] = (
        "The loss mask must begin after the generation prompt; this is a fault of the template's mask."
    )

    def check(self, subject: Subject) -> GateResult:
        """Look at the loss mask of the tokens that end every served prompt."""
        if subject.settings.loss_on == "all":
            return self.passes("Every token is trained on because data.loss_on = 'all' says so.")
        if not any(case.turns for case in subject.cases):  # a base model may have no chat template to probe
            return self.passes("There are no replies, so the server writes nothing before one.")
        length = generation_prompt_length(subject.template)
        faults, looked = [], 0
        for case in subject.cases:
            for turn, row in case.turn_rows():
                n = len(turn.prompt_ids)
                looked += 1
                trained = [i for i in range(max(n - length, 0), min(n, len(row.ids))) if row.loss_mask[i]]
                if trained:
                    message = f"message {turn.index}: tokens {trained} are trained on, but the server writes them"
                    faults.append(Fault(row.id, message, case.where))
        success = f"The {length} tokens before each of {looked:,} replies are not trained on."
        return self.judge(faults, success, generation_prompt_tokens=length, replies=looked)


def generation_prompt_length(template: Template) -> int:
    """How many tokens all served prompts end with, whatever was asked."""
    prompts = [template.prompt_ids((Message("user", text),)) for text in PROBES]
    length = 0
    while all(len(p) > length and p[-1 - length] == prompts[0][-1 - length] for p in prompts):
        length += 1
    return length
