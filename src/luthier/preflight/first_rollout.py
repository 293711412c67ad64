"""Whether there is anything to learn from the first replies that the model writes.

Advantages compare replies: where all of a prompt's replies are worth the same, they are 0 and nothing moves. A model
that never gets it right, and one that always does, look alike in the loss.
"""

from typing import ClassVar

from luthier.preflight.base import Gate, GateResult, Stage, Subject


class FirstRollout(Gate):
    """Some replies to the first prompts are better than others."""

    proves: ClassVar[str] = "Among the first sampled replies some are worth more than others to the same prompt."
    stage: ClassVar[Stage] = "model"
    advice: ClassVar[str] = (
        "If the reward is low, train on the rows' replies first (objective.type = 'sft', then adapter.start_from), "
        "give part of the reward for a part of the task, or raise rollout.temperature; if it is high, there is nothing "
        "left to learn."
    )

    def check(self, subject: Subject) -> GateResult:
        """Sample the first rollout; the first step then learns from it."""
        if subject.sampled is None:
            return self.passes("This objective samples no replies.")
        first = subject.sampled.first()
        said = f"The mean reward is {first['reward']:.3f}; {first['truncated']:.0%} of the replies were cut off"
        if first["dead"] < 1:
            return self.passes(f"{said}; of {first['dead']:.0%} of the prompts all are worth the same.", **first)
        return self.fails(f"{said}, and no reply is worth more than another to its prompt.", **first)
