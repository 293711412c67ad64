"""Half a cosine from 1 to `floor` (SGDR, arXiv:1608.03983, without restarts)."""

import math

from pydantic import Field

from luthier.engine.schedules.base import Schedule


class Cosine(Schedule):
    """Fall slowly, then fast, then slowly."""

    floor: float = Field(0.0, ge=0, le=1)
    """Share of the learning rate that it falls to; reached after the last step."""

    def decay(self, progress: float) -> float:
        """floor + (1 - floor) (1 + cos(pi progress)) / 2"""
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * progress)) / 2
