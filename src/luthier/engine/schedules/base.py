"""What a schedule is: the learning rate of step n as a pure function, so that a resumed run needs no state for it.

Every step learns: the first is above zero, and a schedule that falls to zero reaches it after the last step, not on it.
"""

from abc import ABC, abstractmethod

from pydantic import Field

from luthier.config import Settings


class Schedule(Settings, ABC):
    """One file each; the file name is `schedule.type`."""

    warmup_share: float = Field(0.05, ge=0, lt=1)
    """Share of all steps over which the learning rate rises from near zero."""

    @abstractmethod
    def decay(self, progress: float) -> float:
        """Factor for `progress` from 0 (the first step after warm-up) to 1 (where a step after the last would be)."""

    def factor(self, step: int, steps: int) -> float:
        """Factor on the learning rate at `step` of `steps`, both counted from 1."""
        warmup = round(self.warmup_share * steps)
        if step <= warmup:
            return step / (warmup + 1)
        return self.decay((step - warmup - 1) / (steps - warmup))
